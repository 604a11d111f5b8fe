"""Routed experts on sorted rows through `lax.ragged_dot`: the formulation for TPUs.

There it compiles to one grouped-matmul kernel whose FLOPs are the useful ones. Elsewhere it is a
trap: on CPU, and on GPU without an experimental flag, XLA lowers it to a dense product over all
experts with masked rows (E times the work). It is exact everywhere, so tests run it on a CPU.

Assignments are sorted by expert and the first `num_rows` of them computed at once; what is left,
where many assignments are nobody's and more rows came than expected, goes through a loop of smaller
windows of the same order. Rows move by gathers, forward and backward.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe_parity.parallel.gathers import copies, sum_of_copies
from moe_parity.parallel.grouping import IN_BOUNDS, Groups, group_by_expert
from moe_parity.parallel.rounds import in_rounds


def ragged_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID, num_rows: int):
  """`experts.expert_ffn`, one product over sorted assignments; any positive num_rows is exact."""
  groups = group_by_expert(expert_TK, w_in_E2ID.shape[0])
  operands = x_TD, gate_TK, w_in_E2ID, w_down_EID
  first = functools.partial(_window, 0, min(num_rows, expert_TK.size))
  if num_rows >= expert_TK.size:
    return first(operands, groups).astype(x_TD.dtype)
  more = -(-num_rows // 4)

  def replay(index, operands, groups):
    return _window(num_rows + index * more, more, operands, groups)

  num_replays = -(-jnp.maximum(groups.count_E.sum() - num_rows, 0) // more)
  return in_rounds(first, replay, operands, groups, num_replays).astype(x_TD.dtype)


def _window(start, num_rows: int, operands, groups: Groups):
  """What assignments start ... start + num_rows - 1 of the order add to each token, in float32."""
  x_TD, gate_TK, w_in_E2ID, w_down_EID = operands
  num_experts, _, d_expert, d_model = w_in_E2ID.shape
  w_in_EDH = w_in_E2ID.reshape(num_experts, 2 * d_expert, d_model).swapaxes(1, 2)
  end_E = jnp.clip(groups.start_E + groups.count_E - start, 0, num_rows)
  count_E = end_E - jnp.clip(groups.start_E - start, 0, num_rows)
  row_A = jnp.arange(num_rows, dtype=jnp.int32)
  order_A = groups.order_A.at[jnp.minimum(start + row_A, groups.order_A.size - 1)].get(
    mode=IN_BOUNDS
  )
  computed_A1 = (row_A < end_E[-1])[:, None]
  place_TK = groups.place_A.reshape(gate_TK.shape) - start
  computed_TK = (place_TK >= 0) & (place_TK < end_E[-1])
  place_TK = jnp.where(computed_TK, place_TK, num_rows)

  def known(a):
    """ragged_dot promises nothing in the rows past the last group, which are nobody's. A select on
    each side of it keeps what lies there out of the results and, transposed, the gradients."""
    return jnp.where(computed_A1, a, 0)

  token_A = order_A // gate_TK.shape[1]
  h_AH = known(lax.ragged_dot(known(copies(x_TD, token_A, place_TK)), w_in_EDH, count_E))
  gate_AI, up_AI = jnp.split(h_AH.astype(jnp.float32), 2, axis=-1)
  weight_A1 = known(copies(gate_TK.reshape(-1, 1), order_A, place_TK.reshape(-1, 1)))
  s_AI = (jax.nn.silu(gate_AI) * up_AI * weight_A1).astype(x_TD.dtype)
  y_AD = known(lax.ragged_dot(s_AI, w_down_EID, count_E))
  return sum_of_copies(y_AD, token_A, place_TK)
