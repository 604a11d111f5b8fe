"""SwiGLU experts on rows that lie by expert: Pallas kernels for TPUs, run step by step elsewhere.

Rows come in tiles of one expert each (`tiles.py`), and work follows the rows there are: tiles that
nobody fills are not computed. Rows are read and written as an exchange sends them and a gather
leaves them (`gathers.as_lanes`), so nothing is copied into the layout of a matrix, and what lies in
a tile's empty room is kept out inside the kernels.

There are three: the experts; the gradients of rows and routing weights; those of the experts'
weights. The first writes what the others read where `kept.py` says. Where a hidden layer does not
fit the chip's memory it goes through in chunks.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import kernel_bytes, platform
from moe_parity.kernels.grouped_swiglu_tiling import Sizes
from moe_parity.kernels.tile_layout import Tiles, tiles_of
from moe_parity.planning.expert_parallel import LANES, TILE

F32 = jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def grouped_ffn(
  x_RD: Float[Array, " R *D"],
  weight_R: Float[Array, " R"],
  w_in_L2ID: Float[Array, "L 2 I D"],
  w_down_LID: Float[Array, "L I D"],
  count_L: Int[Array, " L"],
  expected: int,
) -> Float[Array, " R *D"]:
  """weight * down(silu(gate(x)) * up(x)) of rows that lie by expert.

  Args:
    x_RD: as matrix or as lanes; R as `planning.expert_parallel.room_for` says, and expert l's rows
      begin at `first_rows`.
    count_L: how many are each expert's. What lies in other rows, of the gradient of the result too,
      is not read; what lies there in results is anything.
    expected: rows of a fair draw: by what they take XLA schedules the rest.
  """
  memory = residual_stacks.memory_of_one(*_to_keep(x_RD, w_in_L2ID), after=count_L)
  tiles = tiles_of(count_L, x_RD.shape[0])
  return _experts(tiles, memory, x_RD, weight_R, w_in_L2ID, w_down_LID, expected)[0]


def _to_keep(x_RD, w_in_L2ID):
  """Rows, and the hidden layer before the activation: gate and up."""
  sizes = Sizes.of(w_in_L2ID)
  hidden_RI = jax.ShapeDtypeStruct((x_RD.shape[0], sizes.num_chunks * sizes.chunk), x_RD.dtype)
  return jax.ShapeDtypeStruct(x_RD.shape, x_RD.dtype), hidden_RI, hidden_RI


def _grouped_forward(x_RD, weight_R, w_in_L2ID, w_down_LID, count_L, expected):
  memory = residual_stacks.memory_for(*_to_keep(x_RD, w_in_L2ID), after=count_L)
  tiles = tiles_of(count_L, x_RD.shape[0])
  y_RD, *written = _experts(tiles, memory, x_RD, weight_R, w_in_L2ID, w_down_LID, expected)
  return y_RD, (
    tiles,
    residual_stacks.handed_over(memory, written),
    weight_R,
    w_in_L2ID,
    w_down_LID,
  )


def _grouped_backward(expected, residuals, dy_RD):
  tiles, residual, weight_R, w_in_L2ID, w_down_LID = residuals
  memory = residual_stacks.memory_of(residual)
  dx_RD, dweight_R, *dhidden = _gradients_of_rows(
    tiles, memory, dy_RD, weight_R, w_in_L2ID, w_down_LID, expected
  )
  dw_in_L2ID, dw_down_LID = _gradients_of_experts(
    tiles, memory, dy_RD, w_in_L2ID, *dhidden, expected
  )
  return dx_RD, dweight_R, dw_in_L2ID, dw_down_LID, None


grouped_ffn.defvjp(_grouped_forward, _grouped_backward)


def _widened(a, axis: int, sizes: Sizes):
  """Hidden channels that do nothing, up to whole chunks."""
  more = sizes.num_chunks * sizes.chunk - sizes.d_expert
  return jnp.pad(a, [(0, more if i == axis else 0) for i in range(a.ndim)]) if more else a


def _share(core, step, num_used):
  """The tile that a core computes at a step, and whether it does: after its last it stays there.
  Cores have one half each, of which the second may be empty."""
  half = (num_used[0] + 1) // 2
  mine = jnp.clip(num_used[0] - core * half, 0, half)
  return core * half + jnp.clip(step, 0, jnp.maximum(mine - 1, 0)), step < mine


def _rows_spec(shape):
  """Of a tile of rows [R, ...], where the grid is (core, step, chunk)."""
  rest = (0,) * (len(shape) - 1)
  return pl.BlockSpec(
    (TILE, *shape[1:]), lambda core, step, _, *tiles: (_share(core, step, tiles[2])[0], *rest)
  )


def _numbers_spec():
  """Of one number a row, [N, 1, TILE]."""
  return pl.BlockSpec(
    (1, 1, TILE), lambda core, step, _, *tiles: (_share(core, step, tiles[2])[0], 0, 0)
  )


def _hidden_spec(sizes: Sizes):
  """Of a tile's chunk of a hidden layer [R, I]."""
  return pl.BlockSpec(
    (TILE, sizes.chunk),
    lambda core, step, chunk, *tiles: (_share(core, step, tiles[2])[0], chunk),
  )


def _weight_specs(sizes: Sizes):
  """Of a chunk of the weights that a tile's rows meet."""

  def expert(core, step, tiles):
    return tiles[0][_share(core, step, tiles[2])[0]]

  return [
    pl.BlockSpec(
      (1, 2, sizes.chunk, sizes.d_model),
      lambda core, step, chunk, *tiles: (expert(core, step, tiles), 0, chunk, 0),
    ),
    pl.BlockSpec(
      (1, sizes.chunk, sizes.d_model),
      lambda core, step, chunk, *tiles: (expert(core, step, tiles), chunk, 0),
    ),
  ]


def _call(
  kernel, tiles: Tiles, layer, grid, semantics, in_specs, out_specs, out_shape, scratch, cost,
  aliases=None,
):  # fmt: skip
  """`kernel` over `grid`, told by `tiles` and `layer` what is where."""
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
        dimension_semantics=semantics, vmem_limit_bytes=kernel_bytes()
      ),
      cost_estimate=cost,
      interpret=platform() != "tpu",
    ),
    *prefetched,
  )


def _product(a, b, contracted: tuple[int, int]):
  return lax.dot_general(
    a, b, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=F32
  )


def _matrix(rows_ref):
  """A tile of rows as [TILE, D], whether it came as that or as lanes."""
  return rows_ref[...].reshape(TILE, -1)


def _column(numbers_ref):
  """One number a row as [TILE, 1]."""
  return numbers_ref[0].reshape(TILE, 1)


def _row(column):
  """[TILE, 1] as [1, TILE]: as a transpose, since a reshape of it is more than a v4 can do."""
  return jnp.broadcast_to(column, (TILE, LANES)).T[:1]


def _known(a, num_filled):
  """Zero in rows that nobody fills, whatever lies there."""
  row = lax.broadcasted_iota(jnp.int32, (TILE, 1), 0)
  return jnp.where(row < num_filled, a, jnp.zeros_like(a))


def _experts(tiles, memory, x_RD, weight_R, w_in_L2ID, w_down_LID, expected):
  """The result, and what is kept: rows and the hidden layer before the activation, gate and up."""
  sizes = Sizes.of(w_in_L2ID)
  num_tiles, dtype = tiles.expert_N.size, x_RD.dtype

  def kernel(
    expert_N, filled_N, num_used, layer, x, weight, w_in, w_down, _x, _gate, _up,
    y, x_kept, gate, up, total,
  ):  # fmt: skip
    core, step, chunk = (pl.program_id(i) for i in range(3))

    @pl.when(_share(core, step, num_used)[1])
    def _():
      rows = _matrix(x)
      x_kept[...] = x[...]
      gate[...] = _product(rows, w_in[0, 0], (1, 1)).astype(dtype)
      up[...] = _product(rows, w_in[0, 1], (1, 1)).astype(dtype)
      gate32, up32 = gate[...].astype(F32), up[...].astype(F32)
      hidden = (jax.nn.silu(gate32) * up32 * _column(weight)).astype(dtype)
      part = _product(hidden, w_down[0], (1, 0))
      total[...] = jnp.where(chunk == 0, 0, total[...]) + part
      y[...] = total[...].astype(dtype).reshape(y.shape)

  rows, hidden = _rows_spec(x_RD.shape), _hidden_spec(sizes)
  run = _call(
    kernel, tiles, memory.layer,
    (2, num_tiles // 2, sizes.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[rows, _numbers_spec(), *_weight_specs(sizes),
              *[pl.BlockSpec(memory_space=pl.ANY)] * 3],
    out_specs=[rows, *map(residual_stacks.of_layer, (rows, hidden, hidden))],
    out_shape=[jax.ShapeDtypeStruct(a.shape, dtype) for a in (x_RD, *memory.stacks)],
    scratch=[pltpu.VMEM((TILE, sizes.d_model), F32)],
    cost=sizes.cost(expected, 3, 2), aliases={4: 1, 5: 2, 6: 3},
  )  # fmt: skip
  return run(
    x_RD, weight_R.reshape(num_tiles, 1, TILE), _widened(w_in_L2ID, 2, sizes),
    _widened(w_down_LID, 1, sizes), *memory.stacks,
  )  # fmt: skip


def _gradients_of_rows(tiles, memory, dy_RD, weight_R, w_in_L2ID, w_down_LID, expected):
  """Of rows and routing weights, then what `_gradients_of_experts` needs: of gate and up, and the
  hidden layer with its routing weight, zero in rows that nobody fills."""
  sizes = Sizes.of(w_in_L2ID)
  num_tiles, dtype = tiles.expert_N.size, dy_RD.dtype

  def kernel(
    expert_N, filled_N, num_used, layer, dy, weight, w_in, w_down, gate, up,
    dx, dweight, dgate, dup, hidden, total, along,
  ):  # fmt: skip
    core, step, chunk = (pl.program_id(i) for i in range(3))
    tile, is_mine = _share(core, step, num_used)

    @pl.when(is_mine)
    def _():
      known = functools.partial(_known, num_filled=filled_N[tile])
      dhidden = known(_product(_matrix(dy), w_down[0], (1, 1)))
      gate32, up32 = known(gate[...].astype(F32)), known(up[...].astype(F32))
      sigmoid = jax.nn.sigmoid(gate32)
      silu = gate32 * sigmoid
      unweighted = dhidden * _column(weight)
      hidden[...] = (silu * up32 * _column(weight)).astype(dtype)
      dup[...] = (unweighted * silu).astype(dtype)
      dgate[...] = (unweighted * up32 * sigmoid * (1 + gate32 * (1 - sigmoid))).astype(dtype)
      part = _product(dgate[...], w_in[0, 0], (1, 0)) + _product(dup[...], w_in[0, 1], (1, 0))
      total[...] = jnp.where(chunk == 0, 0, total[...]) + part
      dx[...] = total[...].astype(dtype).reshape(dx.shape)
      along_chunk = jnp.sum(dhidden * silu * up32, axis=1, keepdims=True)
      along[...] = jnp.where(chunk == 0, 0, along[...]) + along_chunk
      dweight[0] = _row(along[...])

  _, gate, up = memory.stacks
  hidden_shape = jax.ShapeDtypeStruct(gate.shape[1:], dtype)
  run = _call(
    kernel, tiles, memory.layer,
    (2, num_tiles // 2, sizes.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[_rows_spec(dy_RD.shape), _numbers_spec(), *_weight_specs(sizes),
              *[residual_stacks.of_layer(_hidden_spec(sizes))] * 2],
    out_specs=[_rows_spec(dy_RD.shape), _numbers_spec(), *[_hidden_spec(sizes)] * 3],
    out_shape=[jax.ShapeDtypeStruct(dy_RD.shape, dtype),
               jax.ShapeDtypeStruct((num_tiles, 1, TILE), F32), *[hidden_shape] * 3],
    scratch=[pltpu.VMEM((TILE, sizes.d_model), F32), pltpu.VMEM((TILE, 1), F32)],
    cost=sizes.cost(expected, 2, 5),
  )  # fmt: skip
  dx_RD, dweight, *dhidden = run(
    dy_RD, weight_R.reshape(num_tiles, 1, TILE), _widened(w_in_L2ID, 2, sizes),
    _widened(w_down_LID, 1, sizes), gate, up,
  )  # fmt: skip
  return dx_RD, dweight.reshape(-1), *dhidden


def _gradients_of_experts(tiles, memory, dy_RD, w_in_L2ID, dgate_RI, dup_RI, hidden_RI, expected):
  """Of the experts' weights. A part of a chunk is summed over all tiles of an expert in the chip's
  memory."""
  sizes = Sizes.of(w_in_L2ID)
  num_tiles, dtype = tiles.expert_N.size, dy_RD.dtype
  chunk, num_chunks = sizes.chunk // sizes.parts, sizes.num_chunks * sizes.parts

  def kernel(expert_N, filled_N, num_used, layer, x, dy, dgate, dup, hidden, dw_in, dw_down, total):
    step = pl.program_id(1)
    last = num_used[0] - 1

    @pl.when(step <= last)
    def _():
      known = functools.partial(_known, num_filled=filled_N[step])
      rows, drows = known(_matrix(x)), known(_matrix(dy))
      expert = expert_N[step]
      is_first = (step == 0) | (expert_N[jnp.maximum(step - 1, 0)] != expert)
      factors = (dgate, rows), (dup, rows), (hidden, drows)
      for i, (left, right) in enumerate(factors):
        part = _product(left[...], right, (0, 0))
        total[i] = jnp.where(is_first, 0, total[i]) + part

      @pl.when((step == last) | (expert_N[jnp.minimum(step + 1, last)] != expert))
      def _():
        dw_in[0] = total[:2].astype(dtype)
        dw_down[0] = total[2].astype(dtype)

  def tile(step, tiles):
    return jnp.minimum(step, tiles[2][0] - 1)

  def rows(shape):
    rest = (0,) * (len(shape) - 1)
    return pl.BlockSpec(
      (TILE, *shape[1:]), lambda chunk, step, *tiles: (tile(step, tiles), *rest)
    )  # fmt: skip

  hidden = pl.BlockSpec((TILE, chunk), lambda chunk, step, *tiles: (tile(step, tiles), chunk))
  num_experts, d_model, width = sizes.num_experts, sizes.d_model, chunk * num_chunks
  run = _call(
    kernel, tiles, memory.layer, (num_chunks, num_tiles), ("parallel", "arbitrary"),
    in_specs=[residual_stacks.of_layer(rows(dy_RD.shape)), rows(dy_RD.shape), *[hidden] * 3],
    out_specs=[
      pl.BlockSpec(
        (1, 2, chunk, d_model),
        lambda chunk, step, *tiles: (tiles[0][tile(step, tiles)], 0, chunk, 0),
      ),
      pl.BlockSpec(
        (1, chunk, d_model),
        lambda chunk, step, *tiles: (tiles[0][tile(step, tiles)], chunk, 0),
      ),
    ],
    out_shape=[jax.ShapeDtypeStruct((num_experts, 2, width, d_model), dtype),
               jax.ShapeDtypeStruct((num_experts, width, d_model), dtype)],
    scratch=[pltpu.VMEM((3, chunk, d_model), F32)],
    cost=sizes.cost(expected, 2, 3),
  )  # fmt: skip
  dw_in_L2ID, dw_down_LID = run(memory.stacks[0], dy_RD, dgate_RI, dup_RI, hidden_RI)
  return dw_in_L2ID[:, :, : sizes.d_expert], dw_down_LID[:, : sizes.d_expert]
