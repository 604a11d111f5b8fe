"""Routed experts on sorted rows through `lax.ragged_dot`: the formulation for TPUs.

There it compiles to one grouped-matmul kernel whose FLOPs are the useful ones. Elsewhere it is a
trap: on CPU, and on GPU without an experimental flag, XLA lowers it to a dense product over all
experts with masked rows (E times the work). It is exact everywhere, so tests run it on a CPU.

Assignments are sorted by expert and the first `num_rows` of them computed at once; what is left,
where many assignments are nobody's and more rows came than expected, goes through a loop of smaller
windows of the same order. Rows move by gathers, forward and backward.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.parallel.gathers import copies_of_rows, sum_of_copies
from moe_parity.parallel.grouping import IN_BOUNDS, Groups, group_by_expert
from moe_parity.parallel.rounds import in_rounds

# Rows in a window are a multiple of this: for 61,441 rows XLA:TPU takes a masked dense product, and
# no kernel (113 ms where the kernel has 0.6, v5p, compiler-estimated).
ROWS = 128

# [A, H] x [A, D] -> [E, H, D]: one product an expert, over its rows.
OVER_ROWS = lax.RaggedDotDimensionNumbers(
  dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


class Window(NamedTuple):
  """A stretch of the order by expert. A places, of which the first sum(count_E) are computed.

  assignment_A: whose row and weight each place takes; in places not computed, those of an
    assignment that is computed elsewhere, if there is any.
  place_TK: where each assignment is computed; A where it is not in this window.
  """

  assignment_A: Int[Array, " A"]
  place_TK: Int[Array, "T K"]
  count_E: Int[Array, " E"]


def whole_windows(num_rows: int) -> int:
  """`num_rows` rounded up to what the kernel takes."""
  return -(-num_rows // ROWS) * ROWS


def ragged_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID, num_rows: int):
  """`experts.expert_ffn`, one product over sorted assignments; any positive num_rows is exact."""
  groups = group_by_expert(expert_TK, w_in_E2ID.shape[0])
  operands = x_TD, gate_TK, w_in_E2ID, w_down_EID
  num_rows = whole_windows(num_rows)
  first = functools.partial(_part, 0, min(num_rows, expert_TK.size))
  if num_rows >= expert_TK.size:
    return first(operands, groups).astype(x_TD.dtype)
  more = whole_windows(-(-num_rows // 4))

  def replay(index, operands, groups):
    return _part(num_rows + index * more, more, operands, groups)

  def first_window(operands, _, groups):
    return first(operands, groups)

  num_replays = -(-jnp.maximum(groups.count_E.sum() - num_rows, 0) // more)
  return in_rounds(first_window, replay, operands, (), groups, num_replays).astype(x_TD.dtype)


def _part(start, num_rows: int, operands, groups: Groups):
  """What assignments start ... start + num_rows - 1 of the order add to each token, in float32."""
  x_TD, gate_TK, w_in_E2ID, w_down_EID = operands
  window = _window(start, num_rows, groups, gate_TK)
  token_A = window.assignment_A // gate_TK.shape[1]
  x_AD = copies_of_rows(x_TD, token_A, window.place_TK)
  y_AD = grouped_ffn(
    x_AD, _weights(gate_TK, window), w_in_E2ID, w_down_EID, window.count_E
  )  # fmt: skip
  return sum_of_copies(y_AD, token_A, window.place_TK)


def _window(start, num_rows: int, groups: Groups, gate_TK) -> Window:
  end_E = jnp.clip(groups.start_E + groups.count_E - start, 0, num_rows)
  count_E = end_E - jnp.clip(groups.start_E - start, 0, num_rows)
  row_A = jnp.arange(num_rows, dtype=jnp.int32)
  last = groups.order_A.size - 1
  assignment_A = groups.order_A.at[
    jnp.minimum(start + jnp.where(row_A < end_E[-1], row_A, 0), last)
  ].get(mode=IN_BOUNDS)  # fmt: skip
  place_TK = groups.place_A.reshape(gate_TK.shape) - start
  inside_TK = (place_TK >= 0) & (place_TK < end_E[-1])
  return Window(assignment_A, jnp.where(inside_TK, place_TK, num_rows), count_E)


@jax.custom_vjp
def _weights(gate_TK, window: Window):
  return gate_TK.reshape(-1).at[window.assignment_A].get(mode=IN_BOUNDS)


def _weights_backward(window, dweight_A):
  return dweight_A.at[window.place_TK].get(mode="fill", fill_value=0), None


_weights.defvjp(lambda gate_TK, window: (_weights(gate_TK, window), window), _weights_backward)


def grouped_ffn(
  x_AD: Float[Array, "A D"],
  weight_A: Float[Array, " A"],
  w_in_E2ID: Float[Array, "E 2 I D"],
  w_down_EID: Float[Array, "E I D"],
  count_E: Int[Array, " E"],
) -> Float[Array, "A D"]:
  """weight * down(silu(gate(x)) * up(x)) of rows that lie by expert, A a multiple of `ROWS`.

  Args:
    x_AD: finite everywhere, as the gradient of the result must be.
    count_E: rows of each expert. Rows beyond their sum are nobody's: what lies there in the result,
      and in the gradient of x, is undefined.
  """
  num_experts, _, d_expert, d_model = w_in_E2ID.shape
  w_in_EHD = w_in_E2ID.reshape(num_experts, 2 * d_expert, d_model)
  return _swiglu(x_AD, weight_A, w_in_EHD, w_down_EID, count_E)


@jax.custom_vjp
def _swiglu(x_AD, weight_A, w_in_EHD, w_down_EID, count_E):
  """ragged_dot promises nothing in the rows past the last group: selects in the narrow hidden layer
  keep what lies there out of results and gradients."""
  return _forward(x_AD, weight_A, w_in_EHD, w_down_EID, count_E)[0]


def _known(a_AI, count_E, dtype):
  row_A = jnp.arange(a_AI.shape[0], dtype=jnp.int32)
  return jnp.where((row_A < count_E.sum())[:, None], a_AI, 0).astype(dtype)


def _halves(h_AH):
  """Gate and up in float32."""
  return tuple(half.astype(jnp.float32) for half in jnp.split(h_AH, 2, axis=-1))


def _forward(x_AD, weight_A, w_in_EHD, w_down_EID, count_E):
  h_AH = lax.ragged_dot(x_AD, w_in_EHD.swapaxes(1, 2), count_E)
  gate_AI, up_AI = _halves(h_AH)
  s_AI = _known(jax.nn.silu(gate_AI) * up_AI * weight_A[:, None], count_E, x_AD.dtype)
  y_AD = lax.ragged_dot(s_AI, w_down_EID, count_E)
  return y_AD, (x_AD, weight_A, w_in_EHD, w_down_EID, count_E, h_AH)


def _backward(residuals, dy_AD):
  x_AD, weight_A, w_in_EHD, w_down_EID, count_E, h_AH = residuals
  dtype = x_AD.dtype
  ds_AI = lax.ragged_dot(dy_AD, w_down_EID.swapaxes(1, 2), count_E).astype(jnp.float32)
  gate_AI, up_AI = _halves(h_AH)
  sigmoid_AI = jax.nn.sigmoid(gate_AI)
  silu_AI = gate_AI * sigmoid_AI
  dweight_A = _known(ds_AI * silu_AI * up_AI, count_E, jnp.float32).sum(1)
  s_AI = _known(silu_AI * up_AI * weight_A[:, None], count_E, dtype)
  da_AI = ds_AI * weight_A[:, None]
  dgate_AI = _known(da_AI * up_AI * sigmoid_AI * (1 + gate_AI * (1 - sigmoid_AI)), count_E, dtype)
  dup_AI = _known(da_AI * silu_AI, count_E, dtype)
  dh_AH = jnp.concatenate([dgate_AI, dup_AI], axis=1)
  dx_AD = lax.ragged_dot(dh_AH, w_in_EHD, count_E)
  dw_in_EHD = lax.ragged_dot_general(dh_AH, x_AD, count_E, OVER_ROWS)
  dw_down_EID = lax.ragged_dot_general(s_AI, dy_AD, count_E, OVER_ROWS)
  return dx_AD, dweight_A.astype(weight_A.dtype), dw_in_EHD, dw_down_EID, None


_swiglu.defvjp(_forward, _backward)
