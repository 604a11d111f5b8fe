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
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import (
  F32,
  pl,
  pltpu,
  product,
  swiglu_gate_gradient,
  to_row,
)
from moe_parity.kernels.grouped_swiglu_blocks import (
  as_matrix,
  call_kernel,
  core_tile,
  hidden_spec,
  mask_rows,
  matrix_specs,
  pad_hidden,
  rows_spec,
  weight_column,
  weights_spec,
  wgrad_specs,
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
  """Rows [R, D], and the hidden layer before the activation: gate and up [R, W]."""
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


def _forward_kernel(
  tiles: TileMap,
  buffers: ResidualBuffers,
  x_RD: RowArray,
  weight_R: Float[Array, " R"],
  w_in_L2ID: WeightsIn,
  w_down_LID: WeightsDown,
  expected_rows: int,
) -> tuple[Array, ...]:
  """The result [R, D], and what is saved for the backward pass: rows [R, D], gate and up [R, W],
  before the activation."""
  tiling, row_tile = SwigluTiling.of(w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, x_RD.dtype

  def kernel(
    expert_N, num_valid_N, num_used, layer, x, weight, w_in, w_down, _x, _gate, _up,
    y, x_saved, gate, up, total,
  ):  # fmt: skip
    core, step, chunk = (pl.program_id(i) for i in range(3))

    @pl.when(core_tile(core, step, num_used)[1])
    def _():
      rows = as_matrix(x)
      x_saved[...] = x[...]
      gate[...] = product(rows, w_in[0, 0], (1, 1)).astype(dtype)
      up[...] = product(rows, w_in[0, 1], (1, 1)).astype(dtype)
      gate32, up32 = gate[...].astype(F32), up[...].astype(F32)
      hidden = (jax.nn.silu(gate32) * up32 * weight_column(weight)).astype(dtype)
      part = product(hidden, w_down[0], (1, 0))
      total[...] = jnp.where(chunk == 0, 0, total[...]) + part
      y[...] = total[...].astype(dtype).reshape(y.shape)

  rows, hidden = rows_spec(x_RD.shape), hidden_spec(tiling)
  run = call_kernel(
    kernel, tiles, buffers.layer,
    (2, num_tiles // 2, tiling.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[rows, weights_spec(), *matrix_specs(tiling),
              *[pl.BlockSpec(memory_space=pl.ANY)] * 3],
    out_specs=[rows, *map(layer_spec, (rows, hidden, hidden))],
    out_shape=[jax.ShapeDtypeStruct(a.shape, dtype) for a in (x_RD, *buffers.stacks)],
    scratch=[pltpu.VMEM((row_tile, tiling.d_model), F32)],
    cost=tiling.cost(expected_rows, 3, 2), aliases={4: 1, 5: 2, 6: 3},
  )  # fmt: skip
  return run(
    x_RD, weight_R.reshape(num_tiles, 1, row_tile), pad_hidden(w_in_L2ID, 2, tiling),
    pad_hidden(w_down_LID, 1, tiling), *buffers.stacks,
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
  """Gradients of rows [R, D] and routing weights [R], then the operands of `_wgrad_kernel`, [R, W]:
  gradients of gate and up, and the hidden layer times its routing weight, all zero in padding rows.
  """
  tiling, row_tile = SwigluTiling.of(w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, dy_RD.dtype

  def kernel(
    expert_N, num_valid_N, num_used, layer, dy, weight, w_in, w_down, gate, up,
    dx, dweight, dgate, dup, hidden, total, row_dot,
  ):  # fmt: skip
    core, step, chunk = (pl.program_id(i) for i in range(3))
    tile, is_active = core_tile(core, step, num_used)

    @pl.when(is_active)
    def _():
      mask = functools.partial(mask_rows, num_valid=num_valid_N[tile])
      dhidden = mask(product(as_matrix(dy), w_down[0], (1, 1)))
      gate32, up32 = mask(gate[...].astype(F32)), mask(up[...].astype(F32))
      sigmoid = jax.nn.sigmoid(gate32)
      silu = gate32 * sigmoid
      unweighted = dhidden * weight_column(weight)
      hidden[...] = (silu * up32 * weight_column(weight)).astype(dtype)
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
  run = call_kernel(
    kernel, tiles, buffers.layer,
    (2, num_tiles // 2, tiling.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[rows_spec(dy_RD.shape), weights_spec(), *matrix_specs(tiling),
              *[layer_spec(hidden_spec(tiling))] * 2],
    out_specs=[rows_spec(dy_RD.shape), weights_spec(), *[hidden_spec(tiling)] * 3],
    out_shape=[jax.ShapeDtypeStruct(dy_RD.shape, dtype),
               jax.ShapeDtypeStruct((num_tiles, 1, row_tile), F32), *[hidden_shape] * 3],
    scratch=[pltpu.VMEM((row_tile, tiling.d_model), F32), pltpu.VMEM((row_tile, 1), F32)],
    cost=tiling.cost(expected_rows, 2, 5),
  )  # fmt: skip
  dx_RD, dweight, *dhidden = run(
    dy_RD, weight_R.reshape(num_tiles, 1, row_tile), pad_hidden(w_in_L2ID, 2, tiling),
    pad_hidden(w_down_LID, 1, tiling), gate, up,
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
  """Gradients of the experts' weights [L, 2, I, D] and [L, I, D]: part of a chunk at a time, summed
  over an expert's tiles in VMEM."""
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
      mask = functools.partial(mask_rows, num_valid=num_valid_N[step])
      rows, drows = mask(as_matrix(x)), mask(as_matrix(dy))
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

  rows, hidden, out_specs = wgrad_specs(tiling, dy_RD.shape, chunk)
  num_experts, d_model, width = tiling.num_experts, tiling.d_model, chunk * num_chunks
  run = call_kernel(
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
