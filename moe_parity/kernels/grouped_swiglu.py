"""SwiGLU experts on rows sorted by expert: Pallas kernels for TPUs, interpreted on a CPU.

Rows come in tiles of one expert each (`tile_layout.py`), and tiles without rows cost nothing. Rows
are read and written in the layout that an all-to-all and a gather leave them in
(`experts.permute.to_lane_tiles`), so nothing is copied into the layout of a matrix. Padding rows of
a tile are masked inside the kernels.

In a `residual_stacks.scan` the forward kernel saves the rows and the hidden layer. Elsewhere, as in
a layer that is rematerialized, the rows are the only residual and the backward pass computes the
hidden layer again, if VMEM has room for it: then rematerialization does not run the forward kernel.
The kernels of the backward pass are in `grouped_swiglu_gradients.py`. A hidden layer that does not
fit in VMEM is computed in chunks.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import F32, pl, pltpu, product
from moe_parity.kernels.grouped_swiglu_blocks import (
  RowArray,
  WeightsDown,
  WeightsIn,
  as_matrix,
  call_kernel,
  core_tile,
  hidden_layer,
  hidden_spec,
  matrix_specs,
  pad_hidden,
  rows_spec,
  weight_column,
  weights_spec,
)
from moe_parity.kernels.grouped_swiglu_gradients import BackwardOperands, gradients, reads_rows_only
from moe_parity.kernels.grouped_swiglu_tiling import SwigluTiling
from moe_parity.kernels.residual_stacks import ResidualBuffers, layer_spec
from moe_parity.kernels.tile_layout import TileMap, tile_map
from moe_parity.planning import tpu_slices


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
  tiles = tile_map(count_L, x_RD.shape[0])
  return _forward_kernel(tiles, None, x_RD, weight_R, w_in_L2ID, w_down_LID, expected_rows)[0]


def _residual_shapes(x_RD: RowArray, w_in_L2ID: WeightsIn) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Rows [R, D], and the hidden layer before the activation: gate and up [R, W]."""
  tiling = SwigluTiling.of(w_in_L2ID)
  hidden_RI = jax.ShapeDtypeStruct((x_RD.shape[0], tiling.num_chunks * tiling.chunk), x_RD.dtype)
  return jax.ShapeDtypeStruct(x_RD.shape, x_RD.dtype), hidden_RI, hidden_RI


def _forward(x_RD, weight_R, w_in_L2ID, w_down_LID, count_L, expected_rows):
  tiles, buffers = tile_map(count_L, x_RD.shape[0]), None
  if residual_stacks.is_scanning() or not reads_rows_only(SwigluTiling.of(w_in_L2ID)):
    buffers = residual_stacks.allocate(*_residual_shapes(x_RD, w_in_L2ID), after=count_L)
  y_RD, *written = _forward_kernel(
    tiles, buffers, x_RD, weight_R, w_in_L2ID, w_down_LID, expected_rows
  )
  residual = residual_stacks.save(buffers, written) if buffers else residual_stacks.single(x_RD)
  return y_RD, (tiles, residual, weight_R, w_in_L2ID, w_down_LID)


def _backward(expected_rows, residuals, dy_RD):
  tiles, residual, weight_R, w_in_L2ID, w_down_LID = residuals
  buffers = residual_stacks.load(residual)
  operands = BackwardOperands(dy_RD, weight_R, w_in_L2ID, w_down_LID)
  return *gradients(tiles, buffers, operands, expected_rows), None


grouped_swiglu.defvjp(_forward, _backward)


def _forward_kernel(
  tiles: TileMap,
  buffers: ResidualBuffers | None,
  x_RD: RowArray,
  weight_R: Float[Array, " R"],
  w_in_L2ID: WeightsIn,
  w_down_LID: WeightsDown,
  expected_rows: int,
) -> tuple[Array, ...]:
  """The result [R, D], and with `buffers` what is saved for the backward pass: rows [R, D], gate
  and up [R, W], before the activation."""
  tiling, row_tile = SwigluTiling.of(w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, x_RD.dtype
  stacks = buffers.stacks if buffers else ()

  def kernel(expert_N, num_valid_N, num_used, layer, x, weight, w_in, w_down, *refs):
    y, *saved, total = refs[len(stacks) :]  # the first ones are the stacks, aliased to `saved`
    core, step, chunk = (pl.program_id(i) for i in range(3))

    @pl.when(core_tile(core, step, num_used)[1])
    def _():
      gate, up = hidden_layer(as_matrix(x), w_in)
      if saved:
        for ref, value in zip(saved, (x[...], gate, up), strict=True):
          ref[...] = value
      hidden = jax.nn.silu(gate.astype(F32)) * up.astype(F32) * weight_column(weight)
      hidden = hidden.astype(dtype)
      part = product(hidden, w_down[0], (1, 0))
      total[...] = jnp.where(chunk == 0, 0, total[...]) + part
      y[...] = total[...].astype(dtype).reshape(y.shape)

  rows, hidden = rows_spec(x_RD.shape), hidden_spec(tiling)
  written = list(map(layer_spec, (rows, hidden, hidden))) if stacks else []
  run = call_kernel(
    kernel, tiles, buffers.layer if buffers else jnp.zeros(1, jnp.int32),
    (2, num_tiles // 2, tiling.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[rows, weights_spec(), *matrix_specs(tiling),
              *[pl.BlockSpec(memory_space=pl.ANY)] * len(stacks)],
    out_specs=[rows, *written],
    out_shape=[jax.ShapeDtypeStruct(a.shape, dtype) for a in (x_RD, *stacks)],
    scratch=[pltpu.VMEM((row_tile, tiling.d_model), F32)],
    cost=tiling.cost(expected_rows, 3, *((3, 2) if stacks else (2, 0))),
    aliases={4 + i: 1 + i for i in range(len(stacks))},
  )  # fmt: skip
  return run(
    x_RD, weight_R.reshape(num_tiles, 1, row_tile), pad_hidden(w_in_L2ID, 2, tiling),
    pad_hidden(w_down_LID, 1, tiling), *stacks,
  )  # fmt: skip
