"""Few tokens, as in decoding: one step of a loop an assignment, which reads its expert's weights.

The padded formulation reads the weights of all E experts however few were chosen; this one reads
those that were. Steps go in the order of experts, so that the second assignment of an expert finds
its weights in a processor's cache. Unassigned ones are not computed at all.

Forward only: the number of steps is known only at run time.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import IN_BOUNDS, sort_by_expert
from moe_parity.experts.permute import gather_and_sum

# Up to so many assignments an expert the loop is at least as fast as the padded formulation.
# Measured on two cores, float32, (E, D, I) = (64, 256, 128), (16, 512, 512), (88, 512, 128): of the
# padded time it took 0.01 to 0.1 at a tenth of an assignment an expert, 0.2 to 0.4 at one, 0.5 to
# 0.9 at two, 0.8 to 1.1 at four. In bfloat16 alike. Gathering the weights of all assignments into
# one batched product took 2 to 60 times as long as the loop.
FEW_ASSIGNMENTS = 2


def looped_ffn(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_E2ID: Float[Array, "E 2 I D"],
  w_down_EID: Float[Array, "E I D"],
) -> Float[Array, "T D"]:
  """`expert_ffn` for few tokens, without a gradient."""
  (num_experts, _, d_expert, d_model), dtype = w_in_E2ID.shape, x_TD.dtype
  num_assignments, experts_per_token = expert_TK.size, expert_TK.shape[1]
  by_expert = sort_by_expert(expert_TK, num_experts)
  w_in_EHD = w_in_E2ID.reshape(num_experts, 2 * d_expert, d_model)

  def step(position, y_AD):
    assignment = by_expert.sort_index_A[position]
    expert = expert_TK.reshape(-1)[assignment]
    x_D = x_TD.at[assignment // experts_per_token].get(mode=IN_BOUNDS)
    w_in_HD, w_down_ID = (
      lax.dynamic_index_in_dim(w, expert, keepdims=False) for w in (w_in_EHD, w_down_EID)
    )
    h_H = jnp.matmul(w_in_HD, x_D, preferred_element_type=jnp.float32)
    s_I = jax.nn.silu(h_H[:d_expert]) * h_H[d_expert:] * gate_TK.reshape(-1)[assignment]
    y_D = jnp.matmul(s_I.astype(dtype), w_down_ID, preferred_element_type=jnp.float32)
    return lax.dynamic_update_index_in_dim(y_AD, y_D, position, 0)

  start = jnp.zeros((num_assignments, d_model), jnp.float32)
  y_AD = lax.fori_loop(0, jnp.sum(by_expert.count_E), step, start)
  # Unassigned ones come last in expert order, where y_AD is still zero.
  return gather_and_sum(y_AD, by_expert.inverse_A.reshape(expert_TK.shape)).astype(dtype)
