"""Routed experts on sorted rows through `lax.ragged_dot`: the formulation for TPUs.

There it compiles to one grouped-matmul kernel whose FLOPs are the useful ones. Elsewhere it is a
trap: on CPU, and on GPU without an experimental flag, XLA lowers it to a dense product over all
experts with masked rows (E times the work). It is exact everywhere, so tests run it on a CPU.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe_parity.parallel.grouping import group_by_expert


def ragged_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID):
  """`experts.expert_ffn`, one product over sorted assignments."""
  num_experts, _, d_expert, d_model = w_in_E2ID.shape
  w_in_EDH = w_in_E2ID.reshape(num_experts, 2 * d_expert, d_model).swapaxes(1, 2)
  groups = group_by_expert(expert_TK, num_experts)
  token_A = groups.order_A // expert_TK.shape[1]
  computed_A1 = (jnp.arange(expert_TK.size, dtype=jnp.int32) < groups.count_E.sum())[:, None]

  def known(a):
    """ragged_dot promises nothing in the rows past the last group, which are nobody's. A select on
    each side of it keeps what lies there out of the results and, transposed, the gradients."""
    return jnp.where(computed_A1, a, 0)

  h_AH = known(lax.ragged_dot(known(x_TD[token_A]), w_in_EDH, groups.count_E))
  gate_AI, up_AI = jnp.split(h_AH.astype(jnp.float32), 2, axis=-1)
  weight_A1 = known(gate_TK.reshape(-1)[groups.order_A][:, None])
  s_AI = (jax.nn.silu(gate_AI) * up_AI * weight_A1).astype(x_TD.dtype)
  y_AD = known(lax.ragged_dot(s_AI, w_down_EID, groups.count_E))
  total_TD = jnp.zeros(x_TD.shape, jnp.float32).at[token_A].add(y_AD.astype(jnp.float32))
  return total_TD.astype(x_TD.dtype)
