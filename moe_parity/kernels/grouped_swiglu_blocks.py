"""Blocks of the grouped SwiGLU kernels: which tile of which array a grid step reads and writes.

R rows in N tiles of `tile` = ROW_TILE, sorted by expert; D d_model; L experts; W the hidden layer I
in whole chunks.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from moe_parity.kernels.common import interpret, pl, pltpu, product, vmem_budget_bytes
from moe_parity.kernels.grouped_swiglu_tiling import SwigluTiling
from moe_parity.kernels.tile_layout import TileMap
from moe_parity.planning import tpu_slices

RowArray = Float[Array, " R *D"]
Hidden = Float[Array, "R W"]  # whole chunks: W is at least I
WeightsIn = Float[Array, "L 2 I D"]
WeightsDown = Float[Array, "L I D"]


def pad_hidden(a: Shaped[Array, "L ..."], axis: int, tiling: SwigluTiling) -> Array:
  """Weights [L, 2, I, D] (axis 2) or [L, I, D] (axis 1) with zero hidden channels up to whole
  chunks: I becomes W = num_chunks * chunk."""
  padding = tiling.num_chunks * tiling.chunk - tiling.d_expert
  return jnp.pad(a, [(0, padding if i == axis else 0) for i in range(a.ndim)]) if padding else a


def core_tile(core, step, num_used):
  """(tile, whether it is computed) of a core at a step: after its last tile a core stays there.

  Each core has one half of the tiles, of which the second may be empty.

  Args:
    core, step: program ids, int32 scalars. num_used: int32 [1], tiles that hold rows.
  """
  half = (num_used[0] + 1) // 2
  num_own = jnp.clip(num_used[0] - core * half, 0, half)
  return core * half + jnp.clip(step, 0, jnp.maximum(num_own - 1, 0)), step < num_own


def rows_spec(shape: tuple[int, ...]):
  """A tile of rows, [tile, D] of [R, D] or [tile, D/128, 128] of lane tiles; the grid is
  (core, step, chunk)."""
  rest = (0,) * (len(shape) - 1)
  return pl.BlockSpec(
    (tpu_slices.ROW_TILE, *shape[1:]),
    lambda core, step, _, *tiles: (core_tile(core, step, tiles[2])[0], *rest),
  )


def weights_spec():
  """A tile of routing weights, one number a row, [1, 1, tile] of [N, 1, tile]."""
  return pl.BlockSpec(
    (1, 1, tpu_slices.ROW_TILE),
    lambda core, step, _, *tiles: (core_tile(core, step, tiles[2])[0], 0, 0),
  )


def hidden_spec(tiling: SwigluTiling):
  """A tile's chunk of a hidden layer, [tile, chunk] of [R, W]."""
  return pl.BlockSpec(
    (tpu_slices.ROW_TILE, tiling.chunk),
    lambda core, step, chunk, *tiles: (core_tile(core, step, tiles[2])[0], chunk),
  )


def matrix_specs(tiling: SwigluTiling):
  """A chunk of the weights of a tile's expert: gate and up [1, 2, chunk, D] of [L, 2, W, D], then
  down [1, chunk, D] of [L, W, D]."""

  def expert(core, step, tiles):
    return tiles[0][core_tile(core, step, tiles[2])[0]]

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


def call_kernel(
  kernel, tiles: TileMap, layer, grid, semantics, in_specs, out_specs, out_shape, scratch, cost,
  aliases=None,
):  # fmt: skip
  """`kernel` over `grid`, as a function of its array operands.

  Args:
    tiles, layer: int32 scalars that are prefetched and choose the blocks: expert [N], valid rows
      [N] and used tiles [1] of `TileMap`, the layer [1] of the residuals.
    aliases: operand -> output that is the same buffer.
  """
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


def as_matrix(rows_ref):
  """A tile of rows as [tile, D], from [tile, D] or from lane tiles [tile, D/128, 128]."""
  return rows_ref[...].reshape(tpu_slices.ROW_TILE, -1)


def weight_column(weights_ref):
  """One routing weight a row: [1, 1, tile] as [tile, 1]."""
  return weights_ref[0].reshape(tpu_slices.ROW_TILE, 1)


def hidden_layer(rows, w_in) -> tuple[Array, Array]:
  """Gate and up of a tile [tile, chunk], before the activation, rounded to the rows' dtype."""
  return tuple(product(rows, w_in[0, i], (1, 1)).astype(rows.dtype) for i in range(2))


def mask_rows(a: Shaped[Array, "tile W"], num_valid) -> Shaped[Array, "tile W"]:
  """Zero in rows from `num_valid` (an int32 scalar) on, whatever they hold."""
  row = lax.broadcasted_iota(jnp.int32, (tpu_slices.ROW_TILE, 1), 0)
  return jnp.where(row < num_valid, a, jnp.zeros_like(a))


def wgrad_specs(tiling: SwigluTiling, shape_RD: tuple[int, ...], chunk: int):
  """Blocks of the weight gradients' kernel, whose grid is (chunk, step).

  Returns:
    rows [tile, D] of [R, D]; hidden layer [tile, chunk] of [R, W]; the gradients of gate and up
    [1, 2, chunk, D] and of down [1, chunk, D].
  """

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
