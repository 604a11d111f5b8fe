"""The ragged exchange: `lax.ragged_all_to_all` of exactly the rows there are. For TPU and GPU.

Every device knows how many assignments every other has for every third: one all-gather of G counts.
A device numbers the assignments it is to receive by source, then by token; a round takes the rows
whose first assignment has a number in a window, so what arrives fits both the buffer and the
experts. A second all-gather tells how many rows that is for each pair. Buffers are `lax.empty`:
filling them with zeros cost more than the exchange (5.3 ms for 98,304 rows of 2,048 on v5p,
compiler-estimated). Rows travel as pieces of 128 numbers, the layout that gathers leave them in.

Ids and routing weights travel as rows of 128 numbers, the least a TPU sends, each of them the
*tags* of several rows. So the rows for a device begin at a whole number of such groups, here and
there; what that leaves free between devices is not sent.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moe_parity.parallel.gathers import as_lanes, barrier, rows_at, sum_of_rows
from moe_parity.parallel.grouping import IN_BOUNDS
from moe_parity.parallel.ragged_all_to_all import ragged_all_to_all
from moe_parity.parallel.rows import Rows, giving_back
from moe_parity.resources.exchange import LANES, Shape


class Slices(NamedTuple):
  """One direction of an exchange, as `ragged_all_to_all` takes it."""

  send_start_G: Int[Array, " G"]
  send_size_G: Int[Array, " G"]
  write_at_G: Int[Array, " G"]
  receive_size_G: Int[Array, " G"]


class Seats(NamedTuple):
  """Which rows a round carries. A packed places here, R in the buffer of a receiving device.

  place_TP: where a row lies among the packed; A if it is not in this round.
  row_A: the row (t * P + p) in each place: by device, in token order; somebody's between devices.
  taken_R: which rows of this device's buffer are received into.
  there, back: what goes where on the way there and on the way back.
  """

  place_TP: Int[Array, "T P"]
  row_A: Int[Array, " A"]
  taken_R: Bool[Array, " R"]
  there: Slices
  back: Slices


def survey(rows: Rows, shape: Shape, axis_name: str) -> Int[Array, "G G"]:
  """Assignments of each device (first axis) for each (second). One all-gather of G integers."""
  choices_TP1 = _choices(rows, shape)[:, :, None]
  for_TPG = _for_each(rows, shape)
  return lax.all_gather(
    jnp.where(for_TPG, choices_TP1, 0).sum((0, 1), dtype=jnp.int32), axis_name
  )  # fmt: skip


def _choices(rows: Rows, shape: Shape) -> Int[Array, "T P"]:
  """Assignments in each row."""
  return (rows.expert_TPJ < shape.experts_per_device).sum(2, dtype=jnp.int32)


def _for_each(rows: Rows, shape: Shape) -> Bool[Array, "T P G"]:
  """Whether a row goes to a device."""
  device_G = jnp.arange(shape.num_devices, dtype=jnp.int32)
  return rows.device_TP[:, :, None] == device_G[None, None, :]


def _whole(count, group: int):
  """`count` rounded up to whole groups of rows that share their tags."""
  return -(-count // group) * group


def num_replays(counts_GG, shape: Shape) -> Int[Array, ""]:
  """Further rounds that the device with the most assignments to receive needs."""
  most = jnp.max(counts_GG.sum(0))
  first, more = (shape.num_devices * choices for choices in per_pair(shape))
  return -(-jnp.maximum(most - first, 0) // more)


def per_pair(shape: Shape) -> tuple[int, int]:
  """Assignments a pair of devices that the first and a further round carry."""
  return shape.first_choices, shape.replay_choices


def most_arriving(shape: Shape, per_pair: int) -> int:
  """The most assignments that a round brings: a row may begin in its window and end beyond."""
  return shape.num_devices * per_pair + shape.choices_per_row - 1


def first_round(rows: Rows, counts_GG, shape: Shape, axis_name: str) -> Seats:
  return _seat(rows, counts_GG, 0, shape.first_choices, shape, axis_name)


def replay(rows: Rows, counts_GG, index, shape: Shape, axis_name: str) -> Seats:
  first, more = shape.first_choices, shape.replay_choices
  return _seat(rows, counts_GG, first + index * more, more, shape, axis_name)


def _seat(rows: Rows, counts_GG, start, choices_per_pair: int, shape: Shape, axis_name) -> Seats:
  """A round for the G * choices_per_pair assignments numbered from G * start of each receiver."""
  num_devices, num, me = shape.num_devices, rows.device_TP.size, lax.axis_index(axis_name)
  window, start, group = num_devices * choices_per_pair, num_devices * start, shape.rows_per_tag
  device_TP = jnp.minimum(rows.device_TP, num_devices - 1)
  # The number of each row's first assignment among all that its device is to receive.
  number_GG = jnp.cumsum(counts_GG, axis=0, dtype=jnp.int32) - counts_GG
  choices_A = _choices(rows, shape).reshape(-1).at[rows.groups.order_A].get(mode=IN_BOUNDS)
  before_A = jnp.cumsum(choices_A, dtype=jnp.int32) - choices_A
  mine_G = jnp.cumsum(counts_GG[me], dtype=jnp.int32) - counts_GG[me]
  before_TP = before_A.at[rows.groups.place_A].get(mode=IN_BOUNDS).reshape(device_TP.shape)
  first_TP = before_TP + (number_GG[me] - mine_G)[device_TP] - start

  real_TP = rows.device_TP < num_devices
  inside_TP = real_TP & (first_TP >= 0) & (first_TP < window)
  for_TPG = _for_each(rows, shape)

  def rows_of_each(condition_TP):
    return (for_TPG & condition_TP[:, :, None]).sum((0, 1), dtype=jnp.int32)

  low_G = rows_of_each(first_TP < 0)
  size_GG = lax.all_gather(rows_of_each(inside_TP), axis_name)
  room_GG = _whole(size_GG, group)
  write_at_GG = jnp.cumsum(room_GG, axis=0, dtype=jnp.int32) - room_GG
  packed_GG = jnp.cumsum(room_GG, axis=1, dtype=jnp.int32) - room_GG

  num_places = _whole(num, group) + num_devices * group
  num_received = _whole(window, group) + num_devices * group
  place_A = jnp.arange(num_places, dtype=jnp.int32)
  end_G = packed_GG[me] + room_GG[me]
  device_A = (end_G[None, :-1] <= place_A[:, None]).sum(1, dtype=jnp.int32)
  order_A = (rows.groups.start_E + low_G - packed_GG[me])[device_A] + place_A
  received_R = jnp.arange(num_received, dtype=jnp.int32)[:, None] - write_at_GG[:, me][None, :]
  return barrier(
    Seats(
      jnp.where(inside_TP, (packed_GG[me] - low_G)[device_TP] + rows.rank_TP, num_places),
      rows.groups.order_A.at[jnp.clip(order_A, 0, num - 1)].get(mode=IN_BOUNDS),
      ((received_R >= 0) & (received_R < size_GG[:, me][None, :])).any(1),
      Slices(packed_GG[me], size_GG[me], write_at_GG[me], size_GG[:, me]),
      Slices(write_at_GG[:, me], size_GG[:, me], packed_GG[:, me], size_GG[me]),
    )
  )


def _exchanged(a_ND, num_rows: int, slices: Slices, axis_name: str):
  lanes = as_lanes(a_ND)
  # Tied to what is sent, or XLA makes one buffer outside the loop over layers and copies it there.
  empty, lanes = barrier((lax.empty((num_rows, *lanes.shape[1:]), a_ND.dtype), lanes))
  return ragged_all_to_all(lanes, empty, *slices, axis_name).reshape(num_rows, a_ND.shape[1])


def _tags_exchanged(tags_NW, num_rows: int, slices: Slices, axis_name: str):
  """Tags of rows, W 32-bit numbers each, as rows of 128 numbers."""
  width = tags_NW.shape[1]
  group = LANES // width
  start, size, write_at, receive = slices
  in_groups = Slices(start // group, -(-size // group), write_at // group, -(-receive // group))
  lanes = _exchanged(tags_NW.reshape(-1, LANES), num_rows // group, in_groups, axis_name)
  return lanes.reshape(num_rows, width)


def _sent(a_TD, seats: Seats, axis_name: str):
  """The rows of `a_TD` to where they go; rows that nobody fills hold whatever lay there."""
  packed_AD = rows_at(a_TD, seats.row_A // seats.place_TP.shape[1])
  return _exchanged(packed_AD, seats.taken_R.size, seats.there, axis_name)


def _summed(a_RD, seats: Seats, axis_name: str):
  return sum_of_rows(_exchanged(a_RD, seats.row_A.size, seats.back, axis_name), seats.place_TP)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def send(
  x_TD: Float[Array, "T D"],
  gate_TPJ: Float[Array, "T P J"],
  expert_TPJ: Int[Array, "T P J"],
  seats: Seats,
  shape: Shape,
  axis_name: str,
):
  """Rows to the devices of their experts: two ragged all-to-alls, of vectors and of tags.

  Returns:
    x_RD, gate_RJ and expert_RJ; a row nobody fills has weight 0, the id L, nobody, and whatever
    numbers lay there, NaN perhaps. So has dy_RD of `give_back`.
  """
  return _send_forward(x_TD, gate_TPJ, expert_TPJ, seats, shape, axis_name)[0]


def _send_forward(x_TD, gate_TPJ, expert_TPJ, seats, shape, axis_name):
  choices = expert_TPJ.shape[2]
  bits_TPJ = lax.bitcast_convert_type(gate_TPJ, jnp.int32)
  half = shape.tag_width // 2
  tags_AW = (
    jnp.concatenate([_padded(a.reshape(-1, choices), half) for a in (expert_TPJ, bits_TPJ)], axis=1)
    .at[seats.row_A]
    .get(mode=IN_BOUNDS)
  )
  tags_RW = _tags_exchanged(tags_AW, seats.taken_R.size, seats.there, axis_name)
  taken_R1 = seats.taken_R[:, None]
  expert_RJ = jnp.where(taken_R1, tags_RW[:, :choices], shape.experts_per_device)
  gate_RJ = lax.bitcast_convert_type(tags_RW[:, half : half + choices], jnp.float32)
  return (_sent(x_TD, seats, axis_name), jnp.where(taken_R1, gate_RJ, 0), expert_RJ), seats


def _padded(a_NJ, width: int):
  return jnp.pad(a_NJ, ((0, 0), (0, width - a_NJ.shape[1])))


def _send_backward(shape, axis_name, seats, gradients):
  dx_RD, dgate_RJ, _ = gradients
  dx_TD = _summed(dx_RD, seats, axis_name).astype(dx_RD.dtype)
  dgate_RW = _padded(dgate_RJ, shape.tag_width)
  dgate_AW = _tags_exchanged(dgate_RW, seats.row_A.size, seats.back, axis_name)
  dgate_TPW = dgate_AW.at[seats.place_TP].get(mode="fill", fill_value=0)
  return dx_TD, dgate_TPW[:, :, : dgate_RJ.shape[1]], None, None


send.defvjp(_send_forward, _send_backward)


# Every token's rows back from where they went: one ragged all-to-all.
give_back = giving_back(_summed, _sent)
