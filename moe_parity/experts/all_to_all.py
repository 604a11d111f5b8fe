"""The padded exchange: `lax.all_to_all` with the same number of slots for every pair of devices.

Runs on every platform. Both directions move rows by gathers: the slot of a row and the row in a
slot are both known, and sending is the transpose of giving back.

The merged exchange has the same rows in the same slots and sends those there are, by
`lax.ragged_all_to_all`: nothing is padded, and a token crosses once for all it chose on a device.
What lies in other slots of its buffers is anything.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moe_parity.experts.assignments import IN_BOUNDS
from moe_parity.experts.deduplicate import Rows, gates_of_rows, gather_into_rows, giving_back
from moe_parity.experts.expert_ffn import expert_ffn, slots_for
from moe_parity.experts.overflow_rounds import in_rounds, with_gradients_together
from moe_parity.experts.permute import as_lanes, barrier, rows_at, sum_of_rows
from moe_parity.planning.expert_parallel import Shape
from moe_parity.sharding.ragged_collective import Slices, exchanged


class Seats(NamedTuple):
  """Which rows a round carries. G devices, C slots for each.

  slot_TP: g * C + c of each row, G * C if it is not in this round.
  row_GC: the row in each slot (t * P + p); somebody's, where nobody needs the slot.
  taken_GC: whether somebody does.
  there, back: what a merged exchange sends; None where all slots are sent.
  """

  slot_TP: Int[Array, "T P"]
  row_GC: Int[Array, "G C"]
  taken_GC: Bool[Array, "G C"]
  there: Slices | None
  back: Slices | None


def padded(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_L2ID: Float[Array, "L 2 I D"],
  w_down_LID: Float[Array, "L I D"],
  shape: Shape,
  axis_name: str,
  *,
  implementation: str | None,
  num_slots: int,
  is_merged: bool = False,
  beside: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"] | None]:
  """`dispatch.expert_ffn_local` without drops, the sum in float32; and `beside`'s result.

  Args:
    is_merged: send the rows there are instead of all slots.
    beside: of x_TD; computed while the first round's results travel back.
  """

  def one_round(start, num_rows, num_slots, operands, beside, rows: Rows):
    x_TD, gate_TPJ, *weights = operands
    x_TD, weights = with_gradients_together(x_TD, weights)
    seats = _seat(rows, start, num_rows, axis_name if is_merged else None)
    x_RD, gate_RJ, expert_RJ = send(x_TD, gate_TPJ, rows.expert_TPJ, seats, shape, axis_name)
    known_R1 = (expert_RJ[:, 0] < shape.experts_per_device)[:, None]
    is_anything = is_merged and implementation != "ragged"  # which reads known rows alone
    y_RD = expert_ffn(
      jnp.where(known_R1, x_RD, 0) if is_anything else x_RD, expert_RJ, gate_RJ, *weights,
      implementation=implementation, num_slots=num_slots,
    )  # fmt: skip
    if is_anything:
      y_RD = jnp.where(known_R1, y_RD, 0)  # for the gradient, which is known so
    if beside is not None:  # begun when the results are on their way, and no earlier
      y_RD, x_TD = barrier((y_RD, x_TD))
    return give_back(y_RD, seats, axis_name), beside and beside(x_TD)

  def first(operands, beside, rows: Rows):
    return one_round(0, shape.first_rows, num_slots, operands, beside, rows)

  def replay(index, operands, rows: Rows):
    start = shape.first_rows + index * shape.replay_rows
    few_slots = slots_for(shape.replay_rows * shape.num_devices, 1, shape.experts_per_device)
    return one_round(start, shape.replay_rows, few_slots, operands, None, rows)[0]

  rows = gather_into_rows(expert_TK, shape)
  operands = x_TD, gates_of_rows(gate_TK, rows), w_in_L2ID, w_down_LID
  if not shape.replay_rows:
    return first(operands, beside, rows)
  most = lax.pmax(jnp.max(rows.groups.count_E), axis_name)  # rows a device has for another
  num_replays = -(-jnp.maximum(most - shape.first_rows, 0) // shape.replay_rows)
  return in_rounds(first, replay, operands, beside, rows, num_replays)


def _seat(rows: Rows, start, num_slots: int, axis_name: str | None) -> Seats:
  """Slots of the rows numbered start ... start + num_slots - 1 of every pair. `axis_name` where
  only those are sent that are taken."""
  num_devices, num = rows.groups.count_E.shape[0], rows.device_TP.size
  at_C = start + jnp.arange(num_slots, dtype=jnp.int32)[None, :]
  place_GC = jnp.minimum(rows.groups.start_E[:, None] + at_C, num - 1)
  row_GC = rows.groups.order_A.at[place_GC].get(mode=IN_BOUNDS)
  slot_TP = rows.rank_TP - start
  inside_TP = (slot_TP >= 0) & (slot_TP < num_slots) & (rows.device_TP < num_devices)
  slot_TP = jnp.where(inside_TP, rows.device_TP * num_slots + slot_TP, num_devices * num_slots)
  there = back = None
  if axis_name is not None:
    sent_G = jnp.clip(rows.groups.count_E - start, 0, num_slots)
    me = lax.axis_index(axis_name)
    received_G = lax.all_gather(sent_G, axis_name)[:, me]
    block_G = num_slots * jnp.arange(num_devices, dtype=jnp.int32)
    mine_G = jnp.full_like(block_G, num_slots * me)
    there = Slices(block_G, sent_G, mine_G, received_G)
    back = Slices(block_G, received_G, mine_G, sent_G)
  return barrier(Seats(slot_TP, row_GC, at_C < rows.groups.count_E[:, None], there, back))


def _swap(a, axis_name: str):
  """[G, ...] by destination to [G, ...] by source, or back: it is its own inverse."""
  return lax.all_to_all(a, axis_name, 0, 0)


def _swap_rows(a_RD, seats: Seats, slices: Slices | None, axis_name: str):
  """The same of vectors, R = G * C."""
  if slices is None:
    return _flat(_swap(_split(a_RD, seats), axis_name))
  return exchanged(as_lanes(a_RD), a_RD.shape[0], slices, axis_name).reshape(a_RD.shape)


def _split(a_RD, seats: Seats):
  return a_RD.reshape(*seats.row_GC.shape, a_RD.shape[1])


def _flat(a_GCD):
  return a_GCD.reshape(-1, a_GCD.shape[2])


def _sent(x_TD, seats: Seats, axis_name: str):
  token_GC = seats.row_GC // seats.slot_TP.shape[1]
  return _swap_rows(rows_at(x_TD, token_GC.reshape(-1)), seats, seats.there, axis_name)


def _returned(y_RD, seats: Seats, axis_name: str):
  return sum_of_rows(_swap_rows(y_RD, seats, seats.back, axis_name), seats.slot_TP)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def send(
  x_TD: Float[Array, "T D"],
  gate_TPJ: Float[Array, "T P J"],
  expert_TPJ: Int[Array, "T P J"],
  seats: Seats,
  shape: Shape,
  axis_name: str,
):
  """Rows to the devices of their experts: two all-to-alls, of vectors and of what goes with them.

  Returns:
    x_RD, gate_RJ and expert_RJ, R = G * C by source; a slot nobody needs holds somebody's vector,
    weight 0 and the id L, nobody.
  """
  return _send_forward(x_TD, gate_TPJ, expert_TPJ, seats, shape, axis_name)[0]


def _send_forward(x_TD, gate_TPJ, expert_TPJ, seats, shape, axis_name):
  def tags(a_TPJ, unused):
    a_AJ = a_TPJ.reshape(-1, a_TPJ.shape[2])
    return jnp.where(seats.taken_GC[:, :, None], a_AJ.at[seats.row_GC].get(mode=IN_BOUNDS), unused)

  bits_GCJ = lax.bitcast_convert_type(tags(gate_TPJ, 0), jnp.int32)
  tags_GCJ = jnp.concatenate([tags(expert_TPJ, shape.experts_per_device), bits_GCJ], axis=2)
  tags_RJ = _flat(_swap(tags_GCJ, axis_name))
  expert_RJ, bits_RJ = jnp.split(tags_RJ, 2, axis=1)
  gate_RJ = lax.bitcast_convert_type(bits_RJ, jnp.float32)
  return (_sent(x_TD, seats, axis_name), gate_RJ, expert_RJ), seats


def _send_backward(shape, axis_name, seats, gradients):
  dx_RD, dgate_RJ, _ = gradients
  dx_TD = _returned(dx_RD, seats, axis_name).astype(dx_RD.dtype)
  dgate_NJ = _flat(_swap(_split(dgate_RJ, seats), axis_name))
  return dx_TD, dgate_NJ.at[seats.slot_TP].get(mode="fill", fill_value=0), None, None


send.defvjp(_send_forward, _send_backward)


# Every token's rows back from the devices they went to: one all-to-all.
give_back = giving_back(_returned, _sent)
