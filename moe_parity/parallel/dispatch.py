"""Routed experts that live on several devices: tokens go to them and their results come back.

Pure functions for use inside `jax.shard_map`; they know no model. `moe_parity.resources.exchange`
says which exchange suits which platform and what each sends.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.parallel import exchange_padded, exchange_ragged
from moe_parity.parallel.capacity import drop_beyond_capacity
from moe_parity.parallel.exchange_gathered import gathered
from moe_parity.parallel.experts import expert_ffn, implementation_for, slots_for
from moe_parity.parallel.rounds import in_rounds
from moe_parity.parallel.rows import Rows, gates_of_rows, gather_into_rows
from moe_parity.parallel.varying import equally_varying
from moe_parity.resources.exchange import EXCHANGES, Shape, check_exchange, default_exchange

__all__ = ["check_exchange", "default_exchange", "expert_ffn_local"]

BY_ROWS = {"padded": exchange_padded, "ragged": exchange_ragged}


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
) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
  """`experts.expert_ffn` with the experts spread over `axis_name`, G devices with L experts each.

  Call inside shard_map; T counts this device's tokens. Device g owns experts [g L, (g+1) L), L =
  ceil(num_experts / G); ids from num_experts on are phantoms, to which no row ever goes. Sends per
  layer what `resources.exchange.wire_bytes` says; nothing when G is 1. Differentiable in x, gates
  and weights; works under jit, scan and remat, and with check_vma on or off.

  Dropless (capacity_factor 0) it is exact for any routing: what does not fit the first round's
  buffers is sent in further rounds. With a capacity an expert takes at most
  ceil(capacity_factor * T K / num_experts) assignments from each device, in token order.

  Args:
    x_TD: finite.
    expert_TK: int32, distinct within a row; num_experts means nobody.
    gate_TK: float32 routing weights, normalised or not.
    exchange: "padded", "ragged" or "gathered"; the same on every device.
    implementation: as for `expert_ffn`, on the rows that arrive.
    num_slots: slots per expert of the slotted formulation, for the tokens of all G devices; only
      speed depends on it.
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
  how = dict(implementation=implementation, num_slots=num_slots)
  if shape.num_devices == 1:
    y_TD = expert_ffn(x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID, **how)
  elif exchange == "gathered":
    y_TD = gathered(
      x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID, shape, axis_name, **how
    )  # fmt: skip
  else:
    rows = gather_into_rows(expert_TK, shape)
    operands = x_TD, gates_of_rows(gate_TK, rows), w_in_L2ID, w_down_LID
    y_TD = by_rows(BY_ROWS[exchange], operands, rows, shape, axis_name, how).astype(x_TD.dtype)
  return y_TD, num_dropped


def by_rows(exchange, operands, rows: Rows, shape: Shape, axis_name: str, how: dict):
  """Rounds of an exchange that sends rows; operands are x_TD, gate_TPJ, w_in_L2ID, w_down_LID."""

  first_size, more_size = exchange.per_pair(shape)
  implementation = how["implementation"] or implementation_for(jax.default_backend())

  def one_round(seats, rows: Rows, operands, num_slots, per_pair):
    x_TD, gate_TPJ, *weights = operands
    x_RD, gate_RJ, expert_RJ = exchange.send(
      x_TD, gate_TPJ, rows.expert_TPJ, seats, shape, axis_name
    )
    arrived_R1 = (expert_RJ < shape.experts_per_device).any(1)[:, None]

    def finite(a_RD):
      """And, transposed, the gradients of these rows, where uninitialised memory may hold NaN:
      a slot that nobody needs computes with any row at weight 0. Sorted rows are never such."""
      clean = exchange is exchange_padded or implementation == "ragged"
      return a_RD if clean else jnp.where(arrived_R1, a_RD, 0)

    y_RD = expert_ffn(
      finite(x_RD), expert_RJ, gate_RJ, *weights, implementation=implementation,
      num_slots=num_slots, most_assignments=exchange.most_arriving(shape, per_pair),
    )  # fmt: skip
    return exchange.give_back(finite(y_RD), seats, axis_name)

  def first(operands, routing):
    seats = exchange.first_round(*routing, shape, axis_name)
    return one_round(seats, routing[0], operands, how["num_slots"], first_size)

  def replay(index, operands, routing):
    seats = exchange.replay(*routing, index, shape, axis_name)
    few_slots = slots_for(more_size * shape.num_devices, 1, shape.experts_per_device)
    return one_round(seats, routing[0], operands, few_slots, more_size)

  routing = rows, exchange.survey(rows, shape, axis_name)
  if not more_size:
    return first(operands, routing)
  return in_rounds(first, replay, operands, routing, exchange.num_replays(routing[1], shape))
