"""Grouped implementation of routed experts: products over rows sorted by expert, for TPUs.

Assignments are sorted by expert and the first `num_rows` of them computed at once. The rest, if
more rows came than expected, is computed by a loop over smaller windows of the same order. Rows are
permuted by gathers, forward and backward.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import (
  IN_BOUNDS,
  SortedAssignments,
  map_segments,
  sort_by_expert,
)
from moe_parity.experts.overflow_rounds import with_overflow_rounds
from moe_parity.experts.permute import permute_rows, to_lane_tiles, unpermute_and_sum
from moe_parity.kernels.grouped_swiglu import grouped_swiglu
from moe_parity.kernels.tile_layout import tile_aligned_starts
from moe_parity.planning import tpu_slices
from moe_parity.planning.expert_parallel import tile_padded_rows


class SortedWindow(NamedTuple):
  """A window of assignments in expert order, in a buffer of R rows.

  Attributes:
    assignment_R: the assignment of each row; any in padding.
    row_TK: the row of each assignment; R where it is not in this window.
    count_E: rows of each expert, laid out as in `kernels/tile_layout.py`.
  """

  assignment_R: Int[Array, " R"]
  row_TK: Int[Array, "T K"]
  count_E: Int[Array, " E"]


def grouped_ffn(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_E2ID: Float[Array, "E 2 I D"],
  w_down_EID: Float[Array, "E I D"],
  num_rows: int,
) -> Float[Array, "T D"]:
  """`expert_ffn` by grouped products; any positive num_rows gives the same result."""
  by_expert = sort_by_expert(expert_TK, w_in_E2ID.shape[0])
  operands = x_TD, gate_TK, w_in_E2ID, w_down_EID
  first_window = functools.partial(_window_ffn, 0, min(num_rows, expert_TK.size))
  if num_rows >= expert_TK.size:
    return first_window(operands, by_expert, x_TD.dtype)
  tile = tpu_slices.ROW_TILE
  overflow_rows = tile * -(-num_rows // (4 * tile))

  def overflow_round(index, operands, by_expert):
    return _window_ffn(num_rows + index * overflow_rows, overflow_rows, operands, by_expert)

  def first_round(operands, _, by_expert):
    return first_window(operands, by_expert), ()

  num_left = jnp.maximum(by_expert.count_E.sum() - num_rows, 0)
  y_TD, _ = with_overflow_rounds(
    first_round, overflow_round, operands, (), by_expert, -(-num_left // overflow_rows)
  )
  return y_TD.astype(x_TD.dtype)


def _window_ffn(
  start,
  num_rows: int,
  operands: tuple,
  by_expert: SortedAssignments,
  dtype: DTypeLike = jnp.float32,
) -> Float[Array, "T D"]:
  """What assignments start ... start + num_rows - 1 in expert order add to each token."""
  x_TD, gate_TK, w_in_E2ID, w_down_EID = operands
  window = _window(start, num_rows, by_expert, gate_TK.shape)
  token_R = window.assignment_R // gate_TK.shape[1]
  x_RD = to_lane_tiles(permute_rows(x_TD, token_R, window.row_TK))
  weight_R = _window_weights(gate_TK, window)
  y_RD = grouped_swiglu(x_RD, weight_R, w_in_E2ID, w_down_EID, window.count_E, num_rows)
  return unpermute_and_sum(y_RD.reshape(token_R.size, -1), token_R, window.row_TK, dtype)


def _window(
  start, num_rows: int, by_expert: SortedAssignments, shape_TK: tuple[int, int]
) -> SortedWindow:
  num_buffer_rows = tile_padded_rows(num_rows, by_expert.count_E.size)
  old_start_E = jnp.clip(by_expert.start_E, start, start + num_rows)
  end_E = jnp.clip(by_expert.start_E + by_expert.count_E, start, start + num_rows)
  count_E = end_E - old_start_E
  new_start_E = tile_aligned_starts(count_E)
  row_R = jnp.arange(num_buffer_rows, dtype=jnp.int32)
  position_R, _ = map_segments(row_R, new_start_E, count_E, old_start_E)
  row_A, is_in_window_A = map_segments(by_expert.inverse_A, old_start_E, count_E, new_start_E)
  return SortedWindow(
    by_expert.sort_index_A.at[position_R].get(mode=IN_BOUNDS),
    jnp.where(is_in_window_A, row_A, num_buffer_rows).reshape(shape_TK),
    count_E,
  )


@jax.custom_vjp
def _window_weights(gate_TK: Float[Array, "T K"], window: SortedWindow) -> Float[Array, " R"]:
  return gate_TK.reshape(-1).at[window.assignment_R].get(mode=IN_BOUNDS)


def _window_weights_forward(gate_TK, window):
  return _window_weights(gate_TK, window), window


def _window_weights_backward(window, dweight_R):
  return dweight_R.at[window.row_TK].get(mode="fill", fill_value=0), None


_window_weights.defvjp(_window_weights_forward, _window_weights_backward)
