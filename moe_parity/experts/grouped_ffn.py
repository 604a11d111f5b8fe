"""Routed experts on one device by rows sorted by expert: the formulation for TPUs.

Assignments are sorted by expert and the first `num_rows` of them computed at once; what is left,
where many assignments are nobody's and more rows came than expected, goes through a loop of smaller
windows of the same order. Rows move by gathers, forward and backward.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_parity.experts.assignments import IN_BOUNDS, Groups, group_by_expert, moved
from moe_parity.experts.overflow_rounds import in_rounds
from moe_parity.experts.permute import as_lanes, copies_of_rows, sum_of_copies
from moe_parity.kernels.grouped_swiglu import grouped_swiglu
from moe_parity.kernels.tile_layout import tile_aligned_starts
from moe_parity.planning import tpu_slices
from moe_parity.planning.expert_parallel import room_for


class Window(NamedTuple):
  """A stretch of the order by expert, in a buffer of R rows.

  assignment_R: whose row and weight each place takes; any assignment's where it is nobody's.
  place_TK: where each assignment is computed; R where it is not in this window.
  count_E: rows of each expert, which lie as `tiles.py` says.
  """

  assignment_R: Int[Array, " R"]
  place_TK: Int[Array, "T K"]
  count_E: Int[Array, " E"]


def ragged_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID, num_rows: int):
  """`experts.expert_ffn`, one product over sorted assignments; any positive num_rows is exact."""
  groups = group_by_expert(expert_TK, w_in_E2ID.shape[0])
  operands = x_TD, gate_TK, w_in_E2ID, w_down_EID
  first = functools.partial(_part, 0, min(num_rows, expert_TK.size))
  if num_rows >= expert_TK.size:
    return first(operands, groups).astype(x_TD.dtype)
  more = tpu_slices.ROW_TILE * -(-num_rows // (4 * tpu_slices.ROW_TILE))

  def replay(index, operands, groups):
    return _part(num_rows + index * more, more, operands, groups)

  def first_window(operands, _, groups):
    return first(operands, groups), ()

  num_replays = -(-jnp.maximum(groups.count_E.sum() - num_rows, 0) // more)
  y_TD, _ = in_rounds(first_window, replay, operands, (), groups, num_replays)
  return y_TD.astype(x_TD.dtype)


def _part(start, num_rows: int, operands, groups: Groups):
  """What assignments start ... start + num_rows - 1 of the order add to each token, in float32."""
  x_TD, gate_TK, w_in_E2ID, w_down_EID = operands
  window = _window(start, num_rows, groups, gate_TK.shape)
  token_R = window.assignment_R // gate_TK.shape[1]
  x_RD = as_lanes(copies_of_rows(x_TD, token_R, window.place_TK))
  y_RD = grouped_swiglu(
    x_RD, _weights(gate_TK, window), w_in_E2ID, w_down_EID, window.count_E, num_rows
  )  # fmt: skip
  return sum_of_copies(y_RD.reshape(token_R.size, -1), token_R, window.place_TK)


def _window(start, num_rows: int, groups: Groups, shape_TK) -> Window:
  room = room_for(num_rows, groups.count_E.size)
  from_E = jnp.clip(groups.start_E, start, start + num_rows)
  count_E = jnp.clip(groups.start_E + groups.count_E, start, start + num_rows) - from_E
  to_E = tile_aligned_starts(count_E)
  number_R, _ = moved(jnp.arange(room, dtype=jnp.int32), to_E, count_E, from_E)
  place_A, is_inside_A = moved(groups.place_A, from_E, count_E, to_E)
  return Window(
    groups.order_A.at[number_R].get(mode=IN_BOUNDS),
    jnp.where(is_inside_A, place_A, room).reshape(shape_TK),
    count_E,
  )


@jax.custom_vjp
def _weights(gate_TK, window: Window):
  return gate_TK.reshape(-1).at[window.assignment_R].get(mode=IN_BOUNDS)


def _weights_backward(window, dweight_R):
  return dweight_R.at[window.place_TK].get(mode="fill", fill_value=0), None


_weights.defvjp(lambda gate_TK, window: (_weights(gate_TK, window), window), _weights_backward)
