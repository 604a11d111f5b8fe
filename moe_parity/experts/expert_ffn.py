"""Routed experts on one device: one function, whatever the platform computes it with."""

import math

import jax
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.experts.assignments import expert_loads
from moe_parity.experts.looped_ffn import looped_ffn
from moe_parity.experts.padded_ffn import slotted_ffn

__all__ = ["expert_ffn", "expert_loads", "implementation_for"]

IMPLEMENTATIONS = ("slotted", "ragged", "looped")


def implementation_for(platform: str) -> str:
  """The default formulation of a platform ("cpu", "gpu", "tpu").

  `ragged` on TPUs, for which its kernels are written. `slotted` elsewhere: batched products that
  every platform runs well.
  """
  return "ragged" if platform == "tpu" else "slotted"


def expert_ffn(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_E2ID: Float[Array, "E 2 I D"],
  w_down_EID: Float[Array, "E I D"],
  *,
  implementation: str | None = None,
  num_slots: int | None = None,
) -> Float[Array, "T D"]:
  """y_t = sum_k gate_tk * down_e(silu(gate_e(x_t)) * up_e(x_t)), e = expert_tk. Nothing dropped.

  Communicates nothing: T counts this device's tokens and E its experts. Differentiable in x, gates
  and weights; sums over tokens are kept in float32.

  Args:
    x_TD: finite, also in rows that nobody computes (such a row may fill a slot at weight 0).
    expert_TK: int32 in [0, E]; E itself means nobody and adds zero.
    gate_TK: float32 routing weights.
    w_in_E2ID: each expert's gate matrix, then its up matrix, both by output; dtype of x.
    implementation: "slotted", "ragged", or, for few tokens and without a gradient, "looped"; None
      takes `implementation_for(jax.default_backend())`, so a program compiled for a platform it
      does not run on has to name it.
    num_slots: slots per expert of the slotted formulation, or rows computed at once, in all as
      many, of the ragged one. Only speed depends on it.
  Returns:
    [T, D] in the dtype of x.
  Raises:
    UserError: an implementation that does not exist.
  """
  implementation = implementation or implementation_for(jax.default_backend())
  num_experts = w_in_E2ID.shape[0]
  if num_slots is None:
    num_slots = slots_for(*expert_TK.shape, num_experts)
  if implementation == "ragged":
    from moe_parity.experts.grouped_ffn import ragged_ffn  # a quarter second, for TPUs only

    num_rows = num_slots * num_experts
    return ragged_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID, num_rows)
  if implementation == "looped":
    return looped_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID)
  if implementation == "slotted":
    return slotted_ffn(x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID, num_slots)
  raise UserError(
    f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}; leave it out"
    " for the platform's own"
  )


def slots_for(num_tokens: int, experts_per_token: int, num_experts: int) -> int:
  """Slots per expert: mean load and 1.75 standard deviations of a fair draw, in whole 16s.

  Fewer would make the overflow loop work on well-balanced routing, more is padding for everyone;
  skewed routing is cheaper in the loop than in slots (factors 1.1, 1.25, 1.5 and 2 of the mean
  measured at MaxVio 0.5 to 1.6). 88 experts of mean load 93: 112 slots reach 0.59 of a dense FFN's
  speed, 96, 120 and 128 reach 0.49 to 0.51.
  """
  share = experts_per_token / num_experts
  mean = num_tokens * share
  slots = math.ceil(mean + 1.75 * math.sqrt(mean * (1 - min(share, 1))))
  return min(16 * math.ceil(slots / 16), num_tokens * experts_per_token)
