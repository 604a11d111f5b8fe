"""SwiGLU experts on sorted rows through `lax.ragged_dot`: the formulation for TPUs.

There it compiles to one grouped-matmul kernel whose FLOPs are the useful ones. Elsewhere it is a
trap: on CPU, and on GPU without an experimental flag, XLA lowers it to a dense product over all
experts with masked rows (E times the work). It is exact everywhere, so tests run it on a CPU.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe_parity.parallel.grouping import group_by_expert


def ragged_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID):
  experts_per_token = expert_TK.shape[1]
  num_experts, _, d_expert, d_model = w_in_E2ID.shape
  groups = group_by_expert(expert_TK, num_experts)
  token_A = groups.order_A // experts_per_token
  # Rows past the last group belong to nobody and what ragged_dot leaves there is not promised.
  real_A1 = (jnp.arange(expert_TK.size, dtype=jnp.int32) < groups.count_E.sum())[:, None]
  gate_A1 = gate_TK.reshape(-1)[groups.order_A][:, None]
  w_in_EDH = w_in_E2ID.reshape(num_experts, 2 * d_expert, d_model).swapaxes(1, 2)
  h_AH = lax.ragged_dot(x_TD[token_A], w_in_EDH, groups.count_E)
  gate_AI, up_AI = jnp.split(h_AH, 2, axis=-1)
  s_AI = (jax.nn.silu(gate_AI) * up_AI).astype(jnp.float32) * gate_A1
  s_AI = jnp.where(real_A1, s_AI, 0).astype(x_TD.dtype)
  y_AD = jnp.where(real_A1, lax.ragged_dot(s_AI, w_down_EID, groups.count_E), 0)
  total_TD = jnp.zeros(x_TD.shape, jnp.float32).at[token_A].add(y_AD.astype(jnp.float32))
  return total_TD.astype(x_TD.dtype)
