"""Routed experts on one device: one function, whatever the platform computes it with."""

import jax
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.parallel.grouping import expert_loads
from moe_parity.parallel.ragged_ffn import ragged_ffn
from moe_parity.parallel.slotted_ffn import slotted_ffn

__all__ = ["expert_ffn", "expert_loads", "implementation_for"]

IMPLEMENTATIONS = ("slotted", "ragged")
SLOT_FACTOR = 1.25


def implementation_for(platform: str) -> str:
  """The default formulation of a platform ("cpu", "gpu", "tpu").

  `ragged` where `lax.ragged_dot` is a grouped kernel (TPU). `slotted` elsewhere: batched products
  that every platform runs well.
  """
  return "ragged" if platform == "tpu" else "slotted"


def expert_ffn(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_ED2I: Float[Array, "E D 2 I"],
  w_down_EID: Float[Array, "E I D"],
  *,
  implementation: str | None = None,
  num_slots: int | None = None,
) -> Float[Array, "T D"]:
  """y_t = sum_k gate_tk * down_e(silu(gate_e(x_t)) * up_e(x_t)), e = expert_tk. Nothing dropped.

  Communicates nothing: T counts this device's tokens and E its experts. Differentiable in x, gates
  and weights; sums over tokens are kept in float32.

  Args:
    expert_TK: int32 in [0, E]; E itself means nobody and adds zero.
    gate_TK: float32 routing weights.
    w_in_ED2I: the gate matrix at [:, :, 0], the up matrix at [:, :, 1]; dtype of x.
    implementation: "slotted" or "ragged"; None takes `implementation_for(jax.default_backend())`,
      so a program compiled for a platform it does not run on has to name it.
    num_slots: slots per expert of the slotted formulation. Only speed depends on it.
  Returns:
    [T, D] in the dtype of x.
  Raises:
    UserError: an implementation that does not exist.
  """
  num_experts, d_model, _, d_expert = w_in_ED2I.shape
  w_in_EDH = w_in_ED2I.reshape(num_experts, d_model, 2 * d_expert)
  implementation = implementation or implementation_for(jax.default_backend())
  if implementation == "ragged":
    return ragged_ffn(x_TD, expert_TK, gate_TK, w_in_EDH, w_down_EID)
  if implementation == "slotted":
    if num_slots is None:
      num_slots = slots_for(expert_TK.size, num_experts)
    return slotted_ffn(x_TD, expert_TK, gate_TK, w_in_EDH, w_down_EID, num_slots)
  raise UserError(
    f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}; leave it out"
    " for the platform's own"
  )


def slots_for(num_assignments: int, num_experts: int) -> int:
  """Slots per expert: a little over the mean load, in whole vectors of 16."""
  mean = num_assignments / num_experts
  return 16 * -(-int(SLOT_FACTOR * mean) // 16)
