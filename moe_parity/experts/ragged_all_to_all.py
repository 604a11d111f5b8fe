"""The ragged exchange: `lax.ragged_all_to_all` of exactly the rows there are. For TPU and GPU.

A row is one assignment. A device sorts its own by expert, which is by device too, and every device
knows how many each has for each expert: one all-gather of E counts. So a sender knows where its
rows for an expert belong among all rows of that expert, and writes them there: G * L slices a
device. What arrives lies by expert, each expert's from a whole tile on, and goes into the grouped
product as it is; so does what comes back. A receiver numbers what it is to get by expert, then by
source; a round takes a window of these numbers.

A token that chose several experts of one device is sent there as often. To send it once, as the
merged exchange does (`exchange_padded.py`), costs a TPU more than it saves: merged rows have to be
gathered and summed once more on the experts' side. For K 6, E 80 and 16 devices that took about 80
ms of the 7B's step on v5p and saved 13 of links; with 8 devices of v6e, whose links are slow, it
saved the 2B 40 of 185 ms of links and took 139 more (compiler-estimated; docs/log/0027).

Buffers are not filled: filling them with zeros cost more than the exchange (5.3 ms for 98,304 rows
of 2,048 on v5p, compiler-estimated). Rows travel as pieces of 128 numbers, the layout that gathers
leave them in and the product takes. Routing weights go in all-gathers: narrow rows would be padded
to 512 bytes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import IN_BOUNDS, Groups, group_by_expert, moved
from moe_parity.experts.deduplicate import giving_back
from moe_parity.experts.expert_ffn import expert_ffn, implementation_for, slots_for
from moe_parity.experts.overflow_rounds import in_rounds, with_gradients_together
from moe_parity.experts.permute import as_lanes, barrier, rows_at, sum_of_rows
from moe_parity.kernels.tile_layout import row_expert_ids, tile_aligned_starts
from moe_parity.planning.expert_parallel import Shape, room_for
from moe_parity.sharding.ragged_collective import Slices, exchanged


class Seats(NamedTuple):
  """What a round carries. A assignments sorted by expert here, R rows in a receiver's buffer.

  token_A: whose vector lies in each place.
  place_TK: where each assignment lies among them; A if it is not in this round.
  count_L: rows received for each expert; where they lie in the buffer, `grouped_ffn` says.
  weight_R: where each received row's weight lies in those of all devices, [G * A].
  dweight_TK: where the gradient of each assignment's weight lies in those of all devices, [G * R].
  there, back: what goes where on the way there and on the way back.
  """

  token_A: Int[Array, " A"]
  place_TK: Int[Array, "T K"]
  count_L: Int[Array, " L"]
  weight_R: Int[Array, " R"]
  dweight_TK: Int[Array, "T K"]
  there: Slices
  back: Slices


def ragged(
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
  beside: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"] | None]:
  """`dispatch.expert_ffn_local` without drops, the sum in float32; and `beside`'s result.

  Args:
    beside: of x_TD; computed while the first round's results travel back.
  """
  num_experts = shape.num_devices * shape.experts_per_device  # phantoms too, which nobody chose
  groups = group_by_expert(
    jnp.where(expert_TK < shape.num_experts, expert_TK, num_experts), num_experts
  )
  counts_GE = lax.all_gather(groups.count_E, axis_name)
  implementation = implementation or implementation_for(jax.default_backend())
  first_size, more_size = (
    n * shape.num_devices for n in (shape.first_choices, shape.replay_choices)
  )
  fair = -(-expert_TK.size * num_experts // shape.num_experts)  # for a device full of experts

  def one_round(start, size, num_slots, operands, beside, routing):
    x_TD, gate_TK, *weights = operands
    x_TD, weights = with_gradients_together(x_TD, weights)
    seats = _seat(*routing, start, size, shape, gate_TK.shape, axis_name)
    x_RD, weight_R = send(x_TD, gate_TK, routing[0].order_A, seats, axis_name)
    if implementation == "ragged":
      from moe_parity.kernels.grouped_swiglu import (
        grouped_swiglu,  # a quarter second, for TPUs only
      )

      y_RD = grouped_swiglu(x_RD, weight_R, *weights, seats.count_L, min(fair, size))
    else:
      expert_R = row_expert_ids(seats.count_L, weight_R.size)
      known_R1 = (expert_R < shape.experts_per_device)[:, None]
      y_RD = expert_ffn(
        jnp.where(known_R1, x_RD.reshape(weight_R.size, -1), 0),
        expert_R[:, None], weight_R[:, None], *weights,
        implementation=implementation, num_slots=num_slots,
      )  # fmt: skip
      y_RD = jnp.where(known_R1, y_RD, 0).reshape(x_RD.shape)  # for the gradient, which is known so
    if beside is not None:  # begun when the results are on their way, and no earlier
      y_RD, x_TD = barrier((y_RD, x_TD))
    return give_back(y_RD, seats, axis_name), beside and beside(x_TD)

  def first(operands, beside, routing):
    return one_round(0, first_size, num_slots, operands, beside, routing)

  def replay(index, operands, routing):
    few_slots = slots_for(more_size, 1, shape.experts_per_device)
    start = first_size + index * more_size
    return one_round(start, more_size, few_slots, operands, None, routing)[0]

  operands, routing = (x_TD, gate_TK, w_in_L2ID, w_down_LID), (groups, counts_GE)
  if not more_size:
    return first(operands, beside, routing)
  most = jnp.max(counts_GE.reshape(shape.num_devices, shape.num_devices, -1).sum((0, 2)))
  num_replays = -(-jnp.maximum(most - first_size, 0) // more_size)
  return in_rounds(first, replay, operands, beside, routing, num_replays)


def _seat(groups: Groups, counts_GE, start, size: int, shape: Shape, shape_TK, axis_name) -> Seats:
  """The round of the assignments numbered start ... start + size - 1 of every receiver."""
  G, L, me = shape.num_devices, shape.experts_per_device, lax.axis_index(axis_name)
  num, num_received = groups.order_A.size, room_for(size, L)
  # By receiver, its expert, source: a segment's rows, its first one's number, how many of its rows
  # went before this round, how many go in it, and where to in the receiver's buffer.
  rows_GLG = counts_GE.reshape(G, G, L).transpose(1, 2, 0)
  number_GLG = (jnp.cumsum(rows_GLG.reshape(G, -1), axis=1) - rows_GLG.reshape(G, -1)).reshape(
    rows_GLG.shape
  )
  before_GLG = jnp.clip(start - number_GLG, 0, rows_GLG)
  size_GLG = jnp.clip(start + size - number_GLG, 0, rows_GLG) - before_GLG
  write_at_GLG = (
    jnp.cumsum(size_GLG, axis=2) - size_GLG + tile_aligned_starts(size_GLG.sum(2))[:, :, None]
  )
  # The same segments where they come from: by source, then by expert.
  first_GE = jnp.cumsum(counts_GE, axis=1) - counts_GE
  from_GLG = first_GE.reshape(G, G, L).transpose(1, 2, 0) + before_GLG

  def to_me(a_GLG):  # by source, then by expert
    return a_GLG[me].T.reshape(-1)

  def of_mine(a_GLG):  # by receiver, then by expert
    return a_GLG[:, :, me].reshape(-1)

  device_G = jnp.arange(G, dtype=jnp.int32)
  weight_R, _ = moved(
    jnp.arange(num_received, dtype=jnp.int32),
    to_me(write_at_GLG), to_me(size_GLG), to_me(from_GLG + num * device_G[None, None, :]),
  )  # fmt: skip
  dweight_A, inside_A = moved(
    groups.place_A, of_mine(from_GLG), of_mine(size_GLG),
    of_mine(write_at_GLG + num_received * device_G[:, None, None]),
  )  # fmt: skip
  return barrier(
    Seats(
      groups.order_A // shape_TK[1],
      jnp.where(inside_A, groups.place_A, num).reshape(shape_TK),
      size_GLG[me].sum(1),
      weight_R,
      jnp.where(inside_A, dweight_A, G * num_received).reshape(shape_TK),
      Slices(of_mine(from_GLG), of_mine(size_GLG), of_mine(write_at_GLG), to_me(size_GLG)),
      Slices(to_me(write_at_GLG), to_me(size_GLG), to_me(from_GLG), of_mine(size_GLG)),
    )
  )


def _sent(a_TD, seats: Seats, axis_name: str):
  """Tokens' vectors to the experts, as lanes; anything may lie in rows that nobody fills."""
  packed = as_lanes(rows_at(a_TD, seats.token_A))
  return exchanged(packed, seats.weight_R.size, seats.there, axis_name)


def _summed(lanes, seats: Seats, axis_name: str):
  back = exchanged(lanes, seats.token_A.size, seats.back, axis_name)
  return sum_of_rows(back.reshape(back.shape[0], -1), seats.place_TK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def send(
  x_TD: Float[Array, "T D"],
  gate_TK: Float[Array, "T K"],
  order_A: Int[Array, " A"],
  seats: Seats,
  axis_name: str,
):
  """Vectors and weights to the experts: one ragged all-to-all and one all-gather.

  Returns:
    x_RD as lanes, and weight_R.
  """
  return _send_forward(x_TD, gate_TK, order_A, seats, axis_name)[0]


def _send_forward(x_TD, gate_TK, order_A, seats, axis_name):
  weight_A = gate_TK.reshape(-1).at[order_A].get(mode=IN_BOUNDS)
  weight_R = lax.all_gather(weight_A, axis_name, tiled=True).at[seats.weight_R].get(mode=IN_BOUNDS)
  return (_sent(x_TD, seats, axis_name), weight_R), seats


def _send_backward(axis_name, seats, gradients):
  dx_RD, dweight_R = gradients
  dweight_GR = lax.all_gather(dweight_R, axis_name, tiled=True)
  dgate_TK = dweight_GR.at[seats.dweight_TK].get(mode="fill", fill_value=0)
  return _summed(dx_RD, seats, axis_name).astype(dx_RD.dtype), dgate_TK, None, None


send.defvjp(_send_forward, _send_backward)

# Every token's rows back from where they went, summed: one ragged all-to-all.
give_back = giving_back(_summed, _sent)
