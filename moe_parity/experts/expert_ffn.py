"""The routed experts of one device: one function with an implementation for each platform."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.experts.assignments import expert_loads
from moe_parity.experts.grouped_ffn import grouped_ffn
from moe_parity.experts.looped_ffn import looped_ffn
from moe_parity.experts.padded_ffn import padded_ffn
from moe_parity.experts.padded_sizes import padded_sizes
from moe_parity.kernels.common import platform

__all__ = ["Operands", "expert_ffn", "expert_loads", "implementation_for"]

IMPLEMENTATIONS = ("padded", "grouped", "looped")
OLD_IMPLEMENTATIONS = {"slotted": "padded", "ragged": "grouped"}


class Operands(NamedTuple):
  """What an expert layer computes with: tokens, their routing, and the local experts' weights."""

  x_TD: Float[Array, "T D"]
  expert_TK: Int[Array, "T K"]
  gate_TK: Float[Array, "T K"]
  w_in_L2ID: Float[Array, "L 2 I D"]
  w_down_LID: Float[Array, "L I D"]


def implementation_for(name: str) -> str:
  """The default implementation of a platform ("cpu", "gpu", "tpu").

  `grouped` on TPUs, for which its kernels are written. `padded` elsewhere: batched products that
  every platform runs well.
  """
  return "grouped" if name == "tpu" else "padded"


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
  """y_t = sum_k gate_tk * down_e(silu(gate_e(x_t)) * up_e(x_t)), e = expert_tk. Nothing is dropped.

  Communicates nothing: T counts this device's tokens and E its experts. Differentiable in x, gates
  and weights; sums over tokens are in float32.

  Args:
    x_TD: finite, also in unassigned rows (such a row may fill a slot at weight 0).
    expert_TK: int32 in [0, E]; the sentinel id E is unassigned and adds zero.
    gate_TK: float32 routing weights.
    w_in_E2ID: each expert's gate matrix, then its up matrix, both by output; dtype of x.
    implementation: "padded", "grouped", or, for few tokens and without a gradient, "looped"; None
      takes that of the platform the program is traced for.
    num_slots: slots per expert of the padded implementation; the grouped one computes as many rows
      in its first window. Only speed depends on it.
  Returns:
    [T, D] in the dtype of x.
  Raises:
    UserError: an implementation that does not exist.
  """
  implementation = implementation or implementation_for(platform())
  num_experts = w_in_E2ID.shape[0]
  if num_slots is None:
    num_slots = slots_per_expert(*expert_TK.shape, num_experts)
  operands = x_TD, expert_TK, gate_TK, w_in_E2ID, w_down_EID
  if implementation == "grouped":
    return grouped_ffn(*operands, num_slots * num_experts)
  if implementation == "looped":
    return looped_ffn(*operands)
  if implementation == "padded":
    return padded_ffn(*operands, num_slots)
  new = OLD_IMPLEMENTATIONS.get(implementation)
  raise UserError(
    f"implementation={implementation!r} is "
    + (f"now called {new!r}" if new else f"not one of {', '.join(IMPLEMENTATIONS)}")
    + "; leave it out for the platform's own"
  )


def slots_per_expert(num_tokens: int, experts_per_token: int, num_experts: int) -> int:
  """Slots of an expert on the platform that the program is traced for (`padded_sizes.py`)."""
  return padded_sizes().slots(num_tokens, experts_per_token, num_experts)
