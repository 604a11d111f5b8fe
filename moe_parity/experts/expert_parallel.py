"""Routed experts that live on several devices: tokens go to them and their results come back.

Pure functions for use inside `jax.shard_map`; they know no model.
`moe_parity.planning.expert_parallel` says which exchange suits which platform and what each sends.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.experts.all_gather import gathered
from moe_parity.experts.all_to_all import padded
from moe_parity.experts.assignments import drop_beyond_capacity
from moe_parity.experts.expert_ffn import expert_ffn, slots_for
from moe_parity.experts.ragged_all_to_all import ragged
from moe_parity.planning.expert_parallel import EXCHANGES, Shape, check_exchange, default_exchange
from moe_parity.sharding.varying import equally_varying

__all__ = ["check_exchange", "default_exchange", "expert_ffn_local"]


def expert_ffn_local(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_L2ID: Float[Array, "L 2 I D"],
  w_down_LID: Float[Array, "L I D"],
  *,
  num_experts: int,
  axis_name: str = "expert",
  exchange: str = "padded",
  capacity_factor: int | float = 0.0,
  implementation: str | None = None,
  num_slots: int | None = None,
  beside: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
  """`experts.expert_ffn` with the experts spread over `axis_name`, G devices with L experts each.

  Call inside shard_map; T counts this device's tokens. Device g owns experts [g L, (g+1) L), L =
  ceil(num_experts / G); ids from num_experts on are phantoms, to which no row ever goes. Sends per
  layer what `planning.expert_parallel.wire_bytes` says; nothing when G is 1. Differentiable in x,
  gates and weights; works under jit, scan and remat, and with check_vma on, but for kernels, or
  off.

  Dropless (capacity_factor 0) it is exact for any routing: what does not fit the first round's
  buffers is sent in further rounds. With a capacity an expert takes at most
  ceil(capacity_factor * T K / num_experts) assignments from each device, in token order.

  Args:
    x_TD: finite.
    expert_TK: int32, distinct within a row; num_experts means nobody.
    gate_TK: float32 routing weights, normalised or not.
    exchange: "padded", "merged", "ragged" or "gathered"; the same on every device.
    implementation: as for `expert_ffn`, on the rows that arrive.
    num_slots: slots per expert of the slotted formulation, for the tokens of all G devices; only
      speed depends on it.
    beside: of x_TD, added to the result; a pytree of the arrays it knows
      (`jax.tree_util.Partial`). But for "gathered" it is computed while results travel back.
  Returns:
    y_TD in the dtype of x, and how many of this device's assignments were dropped (int32).
  Raises:
    UserError: an exchange that does not exist; weights of another number of experts than L.
  """
  num_tokens, experts_per_token = expert_TK.shape
  shape = Shape(
    num_tokens, experts_per_token, num_experts, lax.axis_size(axis_name), capacity_factor
  )
  if w_in_L2ID.shape[0] != shape.experts_per_device:
    raise UserError(
      f"{w_in_L2ID.shape[0]} experts lie on this device where {num_experts} over"
      f" {shape.num_devices} devices make {shape.experts_per_device}; pad the last with phantoms"
    )
  if exchange not in EXCHANGES:
    raise UserError(f"exchange={exchange!r} is not one of {', '.join(EXCHANGES)}")
  if num_slots is None:
    num_slots = slots_for(num_tokens * shape.num_devices, experts_per_token, num_experts)
  x_TD, gate_TK, w_in_L2ID, w_down_LID = equally_varying(x_TD, gate_TK, w_in_L2ID, w_down_LID)
  num_dropped = jnp.zeros((), jnp.int32)
  if capacity_factor:
    expert_TK, num_dropped = drop_beyond_capacity(expert_TK, num_experts, shape.capacity)
  how: dict = dict(implementation=implementation, num_slots=num_slots)
  if shape.num_devices == 1:
    y_TD = expert_ffn(x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID, **how)
    besides_TD = beside and beside(x_TD)
  else:
    merged = functools.partial(padded, is_merged=True)
    exchanged = dict(padded=padded, merged=merged, ragged=ragged, gathered=gathered)[exchange]
    operands = x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID
    y_TD, besides_TD = exchanged(*operands, shape, axis_name, **how, beside=beside)
  if besides_TD is not None:
    y_TD += besides_TD.astype(y_TD.dtype)
  return y_TD.astype(x_TD.dtype), num_dropped
