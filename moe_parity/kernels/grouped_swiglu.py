"""SwiGLU experts on rows sorted by expert: Pallas kernels for TPUs, interpreted on a CPU.

Rows come in tiles of one expert each (`tile_layout.py`), and tiles without rows cost nothing. Rows
are read and written in the layout that an all-to-all and a gather leave them in
(`experts.permute.to_lane_tiles`), so nothing is copied into the layout of a matrix. Padding rows of
a tile are masked inside the kernels.

There are three kernels: the forward pass; the gradients of rows and routing weights (dgrad); the
gradients of the experts' weights (wgrad). The forward kernel saves its residuals as
`residual_stacks.py` describes. A hidden layer that does not fit in VMEM is computed in chunks.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import (
  F32,
  interpret,
  pl,
  pltpu,
  product,
  swiglu_gate_gradient,
  to_row,
  vmem_budget_bytes,
)
from moe_parity.kernels.grouped_swiglu_tiling import SwigluTiling
from moe_parity.kernels.residual_stacks import ResidualBuffers, layer_spec
from moe_parity.kernels.tile_layout import TileMap, tile_map
from moe_parity.planning import tpu_slices

RowArray = Float[Array, " R *D"]
Hidden = Float[Array, "R W"]  # whole chunks: W is at least I
WeightsIn = Float[Array, "L 2 I D"]
WeightsDown = Float[Array, "L I D"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def grouped_swiglu(
  x_RD: RowArray,
  weight_R: Float[Array, " R"],
  w_in_L2ID: WeightsIn,
  w_down_LID: WeightsDown,
  count_L: Int[Array, " L"],
  expected_rows: int,
) -> RowArray:
  """weight * down(silu(gate(x)) * up(x)) of rows sorted by expert.

  Args:
    x_RD: a matrix or lane tiles; R as `planning.expert_parallel.tile_padded_rows` gives it, with
      expert l's rows from `tile_aligned_starts` on.
    count_L: rows of each expert. Other rows are not read, in the gradient of the result neither,
      and are undefined in results.
    expected_rows: at balanced routing; XLA schedules other work by the cost they imply.
  """
  buffers = residual_stacks.allocate_single(*_residual_shapes(x_RD, w_in_L2ID), after=count_L)
  tiles = tile_map(count_L, x_RD.shape[0])
  return _forward_kernel(tiles, buffers, x_RD, weight_R, w_in_L2ID, w_down_LID, expected_rows)[0]


def _residual_shapes(x_RD: RowArray, w_in_L2ID: WeightsIn) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Rows, and the hidden layer before the activation: gate and up."""
  tiling = SwigluTiling.of(w_in_L2ID)
  hidden_RI = jax.ShapeDtypeStruct((x_RD.shape[0], tiling.num_chunks * tiling.chunk), x_RD.dtype)
  return jax.ShapeDtypeStruct(x_RD.shape, x_RD.dtype), hidden_RI, hidden_RI


def _forward(x_RD, weight_R, w_in_L2ID, w_down_LID, count_L, expected_rows):
  buffers = residual_stacks.allocate(*_residual_shapes(x_RD, w_in_L2ID), after=count_L)
  tiles = tile_map(count_L, x_RD.shape[0])
  y_RD, *written = _forward_kernel(
    tiles, buffers, x_RD, weight_R, w_in_L2ID, w_down_LID, expected_rows
  )
  residual = residual_stacks.save(buffers, written)
  return y_RD, (tiles, residual, weight_R, w_in_L2ID, w_down_LID)


def _backward(expected_rows, residuals, dy_RD):
  tiles, residual, weight_R, w_in_L2ID, w_down_LID = residuals
  buffers = residual_stacks.load(residual)
  dx_RD, dweight_R, *dhidden = _dgrad_kernel(
    tiles, buffers, dy_RD, weight_R, w_in_L2ID, w_down_LID, expected_rows
  )
  dw_in_L2ID, dw_down_LID = _wgrad_kernel(tiles, buffers, dy_RD, w_in_L2ID, *dhidden, expected_rows)
  return dx_RD, dweight_R, dw_in_L2ID, dw_down_LID, None


grouped_swiglu.defvjp(_forward, _backward)


def _pad_hidden(a: Array, axis: int, tiling: SwigluTiling) -> Array:
  """Zero hidden channels up to whole chunks."""
  padding = tiling.num_chunks * tiling.chunk - tiling.d_expert
  return jnp.pad(a, [(0, padding if i == axis else 0) for i in range(a.ndim)]) if padding else a


def _core_tile(core, step, num_used):
  """The tile that a core computes at a step, and whether it does: after its last tile it stays
  there. Each core has one half of the tiles, of which the second may be empty."""
  half = (num_used[0] + 1) // 2
  num_own = jnp.clip(num_used[0] - core * half, 0, half)
  return core * half + jnp.clip(step, 0, jnp.maximum(num_own - 1, 0)), step < num_own


def _rows_spec(shape: tuple[int, ...]):
  """A tile of rows [R, ...], where the grid is (core, step, chunk)."""
  rest = (0,) * (len(shape) - 1)
  return pl.BlockSpec(
    (tpu_slices.ROW_TILE, *shape[1:]),
    lambda core, step, _, *tiles: (_core_tile(core, step, tiles[2])[0], *rest),
  )


def _weights_spec():
  """A tile of routing weights, one number a row, [N, 1, tile]."""
  return pl.BlockSpec(
    (1, 1, tpu_slices.ROW_TILE),
    lambda core, step, _, *tiles: (_core_tile(core, step, tiles[2])[0], 0, 0),
  )


def _hidden_spec(tiling: SwigluTiling):
  """A tile's chunk of a hidden layer [R, I]."""
  return pl.BlockSpec(
    (tpu_slices.ROW_TILE, tiling.chunk),
    lambda core, step, chunk, *tiles: (_core_tile(core, step, tiles[2])[0], chunk),
  )


def _matrix_specs(tiling: SwigluTiling):
  """A chunk of the weights of a tile's expert: gate and up, then down."""

  def expert(core, step, tiles):
    return tiles[0][_core_tile(core, step, tiles[2])[0]]

  return [
    pl.BlockSpec(
      (1, 2, tiling.chunk, tiling.d_model),
      lambda core, step, chunk, *tiles: (expert(core, step, tiles), 0, chunk, 0),
    ),
    pl.BlockSpec(
      (1, tiling.chunk, tiling.d_model),
      lambda core, step, chunk, *tiles: (expert(core, step, tiles), chunk, 0),
    ),
  ]


def _call(
  kernel, tiles: TileMap, layer, grid, semantics, in_specs, out_specs, out_shape, scratch, cost,
  aliases=None,
):  # fmt: skip
  """`kernel` over `grid`; `tiles` and `layer` are prefetched and choose the blocks."""
  prefetched = *tiles, layer
  return functools.partial(
    pl.pallas_call(
      kernel,
      input_output_aliases={len(prefetched) + i: out for i, out in (aliases or {}).items()},
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(prefetched),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=scratch,
      ),
      out_shape=out_shape,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=semantics, vmem_limit_bytes=vmem_budget_bytes()
      ),
      cost_estimate=cost,
      interpret=interpret(),
    ),
    *prefetched,
  )


def _matrix(rows_ref):
  """A tile of rows as [tile, D], whether it came as a matrix or as lane tiles."""
  return rows_ref[...].reshape(tpu_slices.ROW_TILE, -1)


def _weight_column(weights_ref):
  """One routing weight a row as [tile, 1]."""
  return weights_ref[0].reshape(tpu_slices.ROW_TILE, 1)


def _mask_rows(a, num_valid):
  """Zero in padding rows, whatever they hold."""
  row = lax.broadcasted_iota(jnp.int32, (tpu_slices.ROW_TILE, 1), 0)
  return jnp.where(row < num_valid, a, jnp.zeros_like(a))


def _forward_kernel(
  tiles: TileMap,
  buffers: ResidualBuffers,
  x_RD: RowArray,
  weight_R: Float[Array, " R"],
  w_in_L2ID: WeightsIn,
  w_down_LID: WeightsDown,
  expected_rows: int,
) -> tuple[Array, ...]:
  """The result, and the saved residuals: rows, and the hidden layer before the activation."""
  tiling, row_tile = SwigluTiling.of(w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, x_RD.dtype

  def kernel(
    expert_N, num_valid_N, num_used, layer, x, weight, w_in, w_down, _x, _gate, _up,
    y, x_saved, gate, up, total,
  ):  # fmt: skip
    core, step, chunk = (pl.program_id(i) for i in range(3))

    @pl.when(_core_tile(core, step, num_used)[1])
    def _():
      rows = _matrix(x)
      x_saved[...] = x[...]
      gate[...] = product(rows, w_in[0, 0], (1, 1)).astype(dtype)
      up[...] = product(rows, w_in[0, 1], (1, 1)).astype(dtype)
      gate32, up32 = gate[...].astype(F32), up[...].astype(F32)
      hidden = (jax.nn.silu(gate32) * up32 * _weight_column(weight)).astype(dtype)
      part = product(hidden, w_down[0], (1, 0))
      total[...] = jnp.where(chunk == 0, 0, total[...]) + part
      y[...] = total[...].astype(dtype).reshape(y.shape)

  rows, hidden = _rows_spec(x_RD.shape), _hidden_spec(tiling)
  run = _call(
    kernel, tiles, buffers.layer,
    (2, num_tiles // 2, tiling.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[rows, _weights_spec(), *_matrix_specs(tiling),
              *[pl.BlockSpec(memory_space=pl.ANY)] * 3],
    out_specs=[rows, *map(layer_spec, (rows, hidden, hidden))],
    out_shape=[jax.ShapeDtypeStruct(a.shape, dtype) for a in (x_RD, *buffers.stacks)],
    scratch=[pltpu.VMEM((row_tile, tiling.d_model), F32)],
    cost=tiling.cost(expected_rows, 3, 2), aliases={4: 1, 5: 2, 6: 3},
  )  # fmt: skip
  return run(
    x_RD, weight_R.reshape(num_tiles, 1, row_tile), _pad_hidden(w_in_L2ID, 2, tiling),
    _pad_hidden(w_down_LID, 1, tiling), *buffers.stacks,
  )  # fmt: skip


def _dgrad_kernel(
  tiles: TileMap,
  buffers: ResidualBuffers,
  dy_RD: RowArray,
  weight_R: Float[Array, " R"],
  w_in_L2ID: WeightsIn,
  w_down_LID: WeightsDown,
  expected_rows: int,
) -> tuple[Array, ...]:
  """Gradients of rows and routing weights, then the operands of `_wgrad_kernel`: gradients of gate
  and up, and the hidden layer times its routing weight, all zero in padding rows."""
  tiling, row_tile = SwigluTiling.of(w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, dy_RD.dtype

  def kernel(
    expert_N, num_valid_N, num_used, layer, dy, weight, w_in, w_down, gate, up,
    dx, dweight, dgate, dup, hidden, total, row_dot,
  ):  # fmt: skip
    core, step, chunk = (pl.program_id(i) for i in range(3))
    tile, is_active = _core_tile(core, step, num_used)

    @pl.when(is_active)
    def _():
      mask = functools.partial(_mask_rows, num_valid=num_valid_N[tile])
      dhidden = mask(product(_matrix(dy), w_down[0], (1, 1)))
      gate32, up32 = mask(gate[...].astype(F32)), mask(up[...].astype(F32))
      sigmoid = jax.nn.sigmoid(gate32)
      silu = gate32 * sigmoid
      unweighted = dhidden * _weight_column(weight)
      hidden[...] = (silu * up32 * _weight_column(weight)).astype(dtype)
      dup[...] = (unweighted * silu).astype(dtype)
      dgate[...] = swiglu_gate_gradient(unweighted, gate32, up32, sigmoid).astype(dtype)
      part = product(dgate[...], w_in[0, 0], (1, 0)) + product(dup[...], w_in[0, 1], (1, 0))
      total[...] = jnp.where(chunk == 0, 0, total[...]) + part
      dx[...] = total[...].astype(dtype).reshape(dx.shape)
      row_dot_chunk = jnp.sum(dhidden * silu * up32, axis=1, keepdims=True)
      row_dot[...] = jnp.where(chunk == 0, 0, row_dot[...]) + row_dot_chunk
      dweight[0] = to_row(row_dot[...])

  _, gate, up = buffers.stacks
  hidden_shape = jax.ShapeDtypeStruct(gate.shape[1:], dtype)
  run = _call(
    kernel, tiles, buffers.layer,
    (2, num_tiles // 2, tiling.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[_rows_spec(dy_RD.shape), _weights_spec(), *_matrix_specs(tiling),
              *[layer_spec(_hidden_spec(tiling))] * 2],
    out_specs=[_rows_spec(dy_RD.shape), _weights_spec(), *[_hidden_spec(tiling)] * 3],
    out_shape=[jax.ShapeDtypeStruct(dy_RD.shape, dtype),
               jax.ShapeDtypeStruct((num_tiles, 1, row_tile), F32), *[hidden_shape] * 3],
    scratch=[pltpu.VMEM((row_tile, tiling.d_model), F32), pltpu.VMEM((row_tile, 1), F32)],
    cost=tiling.cost(expected_rows, 2, 5),
  )  # fmt: skip
  dx_RD, dweight, *dhidden = run(
    dy_RD, weight_R.reshape(num_tiles, 1, row_tile), _pad_hidden(w_in_L2ID, 2, tiling),
    _pad_hidden(w_down_LID, 1, tiling), gate, up,
  )  # fmt: skip
  return dx_RD, dweight.reshape(-1), *dhidden


def _wgrad_kernel(
  tiles: TileMap,
  buffers: ResidualBuffers,
  dy_RD: RowArray,
  w_in_L2ID: WeightsIn,
  dgate_RI: Hidden,
  dup_RI: Hidden,
  hidden_RI: Hidden,
  expected_rows: int,
) -> tuple[WeightsIn, WeightsDown]:
  """Gradients of the experts' weights: part of a chunk at a time, summed over an expert's tiles in
  VMEM."""
  tiling = SwigluTiling.of(w_in_L2ID)
  num_tiles, dtype = tiles.expert_N.size, dy_RD.dtype
  chunk, num_chunks = tiling.chunk // tiling.wgrad_splits, tiling.num_chunks * tiling.wgrad_splits

  def kernel(
    expert_N, num_valid_N, num_used, layer, x, dy, dgate, dup, hidden, dw_in, dw_down, total
  ):  # fmt: skip
    step = pl.program_id(1)
    last = num_used[0] - 1

    @pl.when(step <= last)
    def _():
      mask = functools.partial(_mask_rows, num_valid=num_valid_N[step])
      rows, drows = mask(_matrix(x)), mask(_matrix(dy))
      expert = expert_N[step]
      is_first = (step == 0) | (expert_N[jnp.maximum(step - 1, 0)] != expert)
      factors = (dgate, rows), (dup, rows), (hidden, drows)
      for i, (left, right) in enumerate(factors):
        part = product(left[...], right, (0, 0))
        total[i] = jnp.where(is_first, 0, total[i]) + part

      @pl.when((step == last) | (expert_N[jnp.minimum(step + 1, last)] != expert))
      def _():
        dw_in[0] = total[:2].astype(dtype)
        dw_down[0] = total[2].astype(dtype)

  rows, hidden, out_specs = _wgrad_specs(tiling, dy_RD.shape, chunk)
  num_experts, d_model, width = tiling.num_experts, tiling.d_model, chunk * num_chunks
  run = _call(
    kernel, tiles, buffers.layer, (num_chunks, num_tiles), ("parallel", "arbitrary"),
    in_specs=[layer_spec(rows), rows, *[hidden] * 3],
    out_specs=out_specs,
    out_shape=[jax.ShapeDtypeStruct((num_experts, 2, width, d_model), dtype),
               jax.ShapeDtypeStruct((num_experts, width, d_model), dtype)],
    scratch=[pltpu.VMEM((3, chunk, d_model), F32)],
    cost=tiling.cost(expected_rows, 2, 3),
  )  # fmt: skip
  dw_in_L2ID, dw_down_LID = run(buffers.stacks[0], dy_RD, dgate_RI, dup_RI, hidden_RI)
  return dw_in_L2ID[:, :, : tiling.d_expert], dw_down_LID[:, : tiling.d_expert]


def _wgrad_specs(tiling: SwigluTiling, shape_RD: tuple[int, ...], chunk: int):
  """Blocks of `_wgrad_kernel`, whose grid is (chunk, step): rows, hidden layer, two results."""

  def tile(step, tiles):
    return jnp.minimum(step, tiles[2][0] - 1)

  row_tile, rest = tpu_slices.ROW_TILE, (0,) * (len(shape_RD) - 1)
  rows = pl.BlockSpec(
    (row_tile, *shape_RD[1:]), lambda chunk, step, *tiles: (tile(step, tiles), *rest)
  )
  hidden = pl.BlockSpec((row_tile, chunk), lambda chunk, step, *tiles: (tile(step, tiles), chunk))
  dw_in = pl.BlockSpec(
    (1, 2, chunk, tiling.d_model),
    lambda chunk, step, *tiles: (tiles[0][tile(step, tiles)], 0, chunk, 0),
  )
  dw_down = pl.BlockSpec(
    (1, chunk, tiling.d_model),
    lambda chunk, step, *tiles: (tiles[0][tile(step, tiles)], chunk, 0),
  )
  return rows, hidden, [dw_in, dw_down]
