"""Routed experts that live on several devices: tokens go to them and their results come back.

Pure functions for use inside `jax.shard_map`; they know no model. `moe_parity.resources.exchange`
says which exchange suits which platform and what each sends.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.parallel import exchange_padded
from moe_parity.parallel.capacity import drop_beyond_capacity
from moe_parity.parallel.exchange_gathered import gathered
from moe_parity.parallel.experts import expert_ffn, slots_for
from moe_parity.parallel.rounds import in_rounds
from moe_parity.parallel.rows import Rows, gates_of_rows, gather_into_rows
from moe_parity.resources.exchange import Shape, check_exchange, default_exchange

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
    exchange: "padded" or "gathered"; the same on every device.
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
  if exchange not in ("padded", "gathered"):
    raise UserError(f"exchange={exchange!r} is not one of padded, gathered")
  if num_slots is None:
    num_slots = slots_for(num_tokens * shape.num_devices, experts_per_token, num_experts)
  x_TD, gate_TK, w_in_L2ID, w_down_LID = _equally_varying(x_TD, gate_TK, w_in_L2ID, w_down_LID)
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
    y_TD = padded(operands, rows, shape, axis_name, **how).astype(x_TD.dtype)
  return y_TD, num_dropped


def _varying(a) -> frozenset[str]:
  """Mesh axes over which a varies; none where check_vma is off."""
  kind = jax.typeof(a)
  return kind.mat.varying if hasattr(kind, "mat") else kind.vma  # jax 0.12, jax 0.11


def _equally_varying(*arrays):
  """The arrays as varying over every mesh axis that one of them varies over, so that what derives
  from them agrees in type; transposed, a weight's gradient is summed over the data axes."""
  axes = frozenset().union(*map(_varying, arrays))

  def vary(a):
    missing = tuple(sorted(axes - _varying(a)))
    return lax.pcast(a, missing, to="varying") if missing else a

  return tuple(map(vary, arrays))


def padded(operands, rows: Rows, shape: Shape, axis_name: str, *, implementation, num_slots):
  """Rounds of the padded exchange; operands are x_TD, gate_TPJ, w_in_L2ID and w_down_LID."""

  def one_round(start, rows_per_pair, slots, operands, rows: Rows):
    x_TD, gate_TPJ, w_in_L2ID, w_down_LID = operands
    seats = exchange_padded.seat(rows, start, rows_per_pair)
    x_GCD, gate_GCJ, expert_GCJ = exchange_padded.send(
      x_TD, gate_TPJ, rows.expert_TPJ, seats, shape.experts_per_device, axis_name
    )
    x_RD, gate_RJ, expert_RJ = (a.reshape(-1, a.shape[2]) for a in (x_GCD, gate_GCJ, expert_GCJ))
    y_RD = expert_ffn(
      x_RD, expert_RJ, gate_RJ, w_in_L2ID, w_down_LID,
      implementation=implementation, num_slots=slots,
    )  # fmt: skip
    return exchange_padded.give_back(y_RD.reshape(x_GCD.shape), seats, axis_name)

  first_rows, replay_rows = shape.first_rows, shape.replay_rows
  first = functools.partial(one_round, 0, first_rows, num_slots)
  if not replay_rows:
    return first(operands, rows)
  slots = slots_for(replay_rows * shape.num_devices, 1, shape.experts_per_device)

  def replay(index, operands, rows):
    return one_round(first_rows + index * replay_rows, replay_rows, slots, operands, rows)

  num_replays = exchange_padded.most_replays(rows, first_rows, replay_rows, axis_name)
  return in_rounds(first, replay, operands, rows, num_replays)
