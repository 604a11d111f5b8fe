"""The backward pass of the grouped SwiGLU kernels (`grouped_swiglu.py`).

Where a chip has one core, one kernel computes all gradients: tile by tile, with the sums over an
expert's tiles in VMEM. Of two cores that share the tiles, both would have part of such a sum. So
there, and where the hidden layer is in chunks, one kernel computes the gradients of rows and
routing weights (dgrad) and another those of the experts' weights (wgrad), from what the first
wrote.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_parity.kernels.common import (
  F32,
  num_cores,
  pl,
  pltpu,
  product,
  swiglu_gate_gradient,
  to_row,
)
from moe_parity.kernels.grouped_swiglu_blocks import (
  Hidden,
  RowArray,
  WeightsDown,
  WeightsIn,
  as_matrix,
  call_kernel,
  core_tile,
  hidden_layer,
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
from moe_parity.kernels.tile_layout import TileMap
from moe_parity.planning import tpu_slices


class BackwardOperands(NamedTuple):
  """Gradient of the result, and what the forward pass multiplied."""

  dy_RD: RowArray
  weight_R: Float[Array, " R"]
  w_in_L2ID: WeightsIn
  w_down_LID: WeightsDown


def is_joint(tiling: SwigluTiling) -> bool:
  """Whether one kernel computes all gradients."""
  return num_cores() == 1 and tiling.has_room_for_sums


def reads_rows_only(tiling: SwigluTiling) -> bool:
  """Whether the hidden layer can be computed again where only the rows were saved."""
  return is_joint(tiling) or tiling.has_room_for_rows


def gradients(
  tiles: TileMap, buffers: ResidualBuffers, operands: BackwardOperands, expected_rows: int
) -> tuple[RowArray, Float[Array, " R"], WeightsIn, WeightsDown]:
  """Gradients of rows, routing weights and experts' weights.

  Args:
    buffers: rows [R, D], and gate and up [R, W] before the activation; without these two, they are
      computed again.
  """
  if is_joint(SwigluTiling.of(operands.w_in_L2ID)):
    return _joint_kernel(tiles, buffers, operands, expected_rows)
  dx_RD, dweight_R, *dhidden = _dgrad_kernel(tiles, buffers, operands, expected_rows)
  dweights = _wgrad_kernel(
    tiles, buffers, operands.dy_RD, operands.w_in_L2ID, *dhidden, expected_rows
  )
  return dx_RD, dweight_R, *dweights


class _HiddenGradients(NamedTuple):
  """Of a tile: gradients of gate and up [tile, chunk]; the hidden layer times its routing weight
  [tile, chunk]; the chunk's part of the routing weights' gradients [tile, 1], float32. All zero in
  padding rows."""

  dgate: Array
  dup: Array
  hidden: Array
  dweight: Array


def _hidden_gradients(dy, gate, up, weight, w_down, num_valid) -> _HiddenGradients:
  mask = functools.partial(mask_rows, num_valid=num_valid)
  dhidden = mask(product(dy, w_down[0], (1, 1)))
  gate, up = mask(gate.astype(F32)), mask(up.astype(F32))
  sigmoid = jax.nn.sigmoid(gate)
  silu, unweighted = gate * sigmoid, dhidden * weight
  return _HiddenGradients(
    swiglu_gate_gradient(unweighted, gate, up, sigmoid).astype(dy.dtype),
    (unweighted * silu).astype(dy.dtype),
    (silu * up * weight).astype(dy.dtype),
    jnp.sum(dhidden * silu * up, axis=1, keepdims=True),
  )


def _row_gradients(of: _HiddenGradients, w_in) -> Float[Array, "tile D"]:
  return product(of.dgate, w_in[0, 0], (1, 0)) + product(of.dup, w_in[0, 1], (1, 0))


def _joint_kernel(
  tiles: TileMap, buffers: ResidualBuffers, operands: BackwardOperands, expected_rows: int
) -> tuple[Array, ...]:
  """All of `gradients`, on one core and with the whole hidden layer at once."""
  tiling, row_tile = SwigluTiling.of(operands.w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, operands.dy_RD.dtype
  num_saved = len(buffers.stacks)

  def kernel(expert_N, num_valid_N, num_used, layer, dy, weight, w_in, w_down, *refs):
    x, *saved = refs[:num_saved]
    dx, dweight, dw_in, dw_down, total = refs[num_saved:]
    tile, is_active = core_tile(pl.program_id(0), pl.program_id(1), num_used)

    @pl.when(is_active)
    def _():
      rows, drows, num_valid = as_matrix(x), as_matrix(dy), num_valid_N[tile]
      gate, up = (ref[...] for ref in saved) if saved else hidden_layer(rows, w_in)
      of = _hidden_gradients(drows, gate, up, weight_column(weight), w_down, num_valid)
      dx[...] = _row_gradients(of, w_in).astype(dtype).reshape(dx.shape)
      dweight[0] = to_row(of.dweight)
      rows, drows = mask_rows(rows, num_valid), mask_rows(drows, num_valid)
      expert, last = expert_N[tile], num_used[0] - 1
      is_first = (tile == 0) | (expert_N[jnp.maximum(tile - 1, 0)] != expert)
      for i, (left, right) in enumerate(((of.dgate, rows), (of.dup, rows), (of.hidden, drows))):
        total[i] = jnp.where(is_first, 0, total[i]) + product(left, right, (0, 0))

      @pl.when((tile == last) | (expert_N[jnp.minimum(tile + 1, last)] != expert))
      def _():
        dw_in[0] = total[:2].astype(dtype)
        dw_down[0] = total[2].astype(dtype)

  rows, hidden = rows_spec(operands.dy_RD.shape), hidden_spec(tiling)
  run = call_kernel(
    kernel, tiles, buffers.layer, (2, num_tiles // 2, 1), ("arbitrary",) * 3,
    in_specs=[rows, weights_spec(), *matrix_specs(tiling),
              *map(layer_spec, (rows, hidden, hidden)[:num_saved])],
    out_specs=[rows, weights_spec(), *matrix_specs(tiling)],
    out_shape=[jax.ShapeDtypeStruct(operands.dy_RD.shape, dtype),
               jax.ShapeDtypeStruct((num_tiles, 1, row_tile), F32),
               *(jax.ShapeDtypeStruct(w.shape, dtype) for w in operands[2:])],
    scratch=[pltpu.VMEM((3, tiling.chunk, tiling.d_model), F32)],
    cost=tiling.cost(expected_rows, 6 if num_saved > 1 else 8, 3, num_saved - 1, num_weights=2),
  )  # fmt: skip
  dy_RD, weight_R, *weights = operands
  dx_RD, dweight, *dweights = run(
    dy_RD, weight_R.reshape(num_tiles, 1, row_tile), *weights, *buffers.stacks
  )
  return dx_RD, dweight.reshape(-1), *dweights


def _dgrad_kernel(
  tiles: TileMap, buffers: ResidualBuffers, operands: BackwardOperands, expected_rows: int
) -> tuple[Array, ...]:
  """Gradients of rows [R, D] and routing weights [R], then the operands of `_wgrad_kernel`, [R, W]:
  gradients of gate and up, and the hidden layer times its routing weight."""
  tiling, row_tile = SwigluTiling.of(operands.w_in_L2ID), tpu_slices.ROW_TILE
  num_tiles, dtype = tiles.expert_N.size, operands.dy_RD.dtype
  x, *hidden_stacks = buffers.stacks
  is_saved, residuals = bool(hidden_stacks), hidden_stacks or [x]

  def kernel(expert_N, num_valid_N, num_used, layer, dy, weight, w_in, w_down, *refs):
    saved, refs = refs[: len(residuals)], refs[len(residuals) :]
    dx, dweight, dgate, dup, hidden, total, row_dot = refs
    core, step, chunk = (pl.program_id(i) for i in range(3))
    tile, is_active = core_tile(core, step, num_used)

    @pl.when(is_active)
    def _():
      gate, up = (ref[...] for ref in saved) if is_saved else hidden_layer(as_matrix(*saved), w_in)
      of = _hidden_gradients(
        as_matrix(dy), gate, up, weight_column(weight), w_down, num_valid_N[tile]
      )
      dgate[...], dup[...], hidden[...] = of[:3]
      total[...] = jnp.where(chunk == 0, 0, total[...]) + _row_gradients(of, w_in)
      dx[...] = total[...].astype(dtype).reshape(dx.shape)
      row_dot[...] = jnp.where(chunk == 0, 0, row_dot[...]) + of.dweight
      dweight[0] = to_row(row_dot[...])

  rows, hidden = rows_spec(operands.dy_RD.shape), hidden_spec(tiling)
  width = tiling.num_chunks * tiling.chunk
  hidden_shape = jax.ShapeDtypeStruct((operands.dy_RD.shape[0], width), dtype)
  run = call_kernel(
    kernel, tiles, buffers.layer,
    (2, num_tiles // 2, tiling.num_chunks), ("parallel", "arbitrary", "arbitrary"),
    in_specs=[rows, weights_spec(), *matrix_specs(tiling),
              *[layer_spec(hidden if is_saved else rows)] * len(residuals)],
    out_specs=[rows, weights_spec(), *[hidden] * 3],
    out_shape=[jax.ShapeDtypeStruct(operands.dy_RD.shape, dtype),
               jax.ShapeDtypeStruct((num_tiles, 1, row_tile), F32), *[hidden_shape] * 3],
    scratch=[pltpu.VMEM((row_tile, tiling.d_model), F32), pltpu.VMEM((row_tile, 1), F32)],
    cost=tiling.cost(expected_rows, *((3, 2, 5) if is_saved else (5, 3, 3))),
  )  # fmt: skip
  dx_RD, dweight, *dhidden = run(
    operands.dy_RD, operands.weight_R.reshape(num_tiles, 1, row_tile),
    pad_hidden(operands.w_in_L2ID, 2, tiling), pad_hidden(operands.w_down_LID, 1, tiling),
    *residuals,
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
    cost=tiling.cost(expected_rows, 3, 2, 3),
  )  # fmt: skip
  dw_in_L2ID, dw_down_LID = run(buffers.stacks[0], dy_RD, dgate_RI, dup_RI, hidden_RI)
  return dw_in_L2ID[:, :, : tiling.d_expert], dw_down_LID[:, : tiling.d_expert]
