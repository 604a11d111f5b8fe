"""Token dispatch by a ragged all-to-all of exactly the rows in use: for TPU and GPU.

A row is one assignment. Devices all-gather how many assignments each has for each expert. A device
sorts its own by expert, and so by device; from the counts it knows at which rows of the receiver's
buffer they belong, and writes them there: G * L slices a device. Rows arrive sorted by expert, each
expert's from a whole tile on, and enter the grouped product as they are; so do rows in combine. A
receiver numbers its rows by expert, then by source; a round takes a window of these numbers.

A token that chose several experts of one device is sent there as often. Sending it once
(`ragged_all_to_all_dedup.py`) costs a TPU more than it saves: packed rows have to be gathered and
summed once more on the experts' side.

Buffers are not initialized: filling them with zeros would cost more than the exchange. Rows travel
as lane tiles of 128 numbers, the layout in which gathers leave them and the product reads them.
Routing weights go in all-gathers: narrow rows would be padded to 512 bytes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import (
  IN_BOUNDS,
  SortedAssignments,
  map_segments,
  sort_by_expert,
)
from moe_parity.experts.deduplicate import make_combine
from moe_parity.experts.expert_ffn import (
  Operands,
  expert_ffn,
  implementation_for,
  slots_per_expert,
)
from moe_parity.experts.overflow_rounds import tie_gradients, with_overflow_rounds
from moe_parity.experts.permute import barrier, gather_and_sum, take_rows, to_lane_tiles
from moe_parity.kernels.common import platform
from moe_parity.kernels.grouped_swiglu import grouped_swiglu
from moe_parity.kernels.tile_layout import row_expert_ids, tile_aligned_starts
from moe_parity.planning.expert_parallel import ExpertParallelShape, tile_padded_rows
from moe_parity.sharding.ragged_collective import RaggedOffsets, ragged_send


class RaggedPlan(NamedTuple):
  """The rows of one round. A assignments sorted by expert here, R rows in a receiver's buffer.

  Attributes:
    token_A: the token of each sorted assignment.
    row_TK: the position of each assignment among them; A if it is not in this round.
    count_L: rows received for each expert, laid out as in `kernels/tile_layout.py`.
    weight_R: the position of each received row's weight among those of all devices, [G * A].
    dweight_TK: the position of the gradient of each assignment's weight among those, [G * R].
    dispatch_offsets, combine_offsets: of the two ragged all-to-alls.
  """

  token_A: Int[Array, " A"]
  row_TK: Int[Array, "T K"]
  count_L: Int[Array, " L"]
  weight_R: Int[Array, " R"]
  dweight_TK: Int[Array, "T K"]
  dispatch_offsets: RaggedOffsets
  combine_offsets: RaggedOffsets


class _Routing(NamedTuple):
  """This device's assignments by expert, and every device's counts."""

  by_expert: SortedAssignments
  counts_GE: Int[Array, "G E"]


def ragged_all_to_all_ffn(
  operands: Operands,
  shape: ExpertParallelShape,
  axis_name: str,
  *,
  implementation: str | None,
  num_slots: int,
  overlap_fn: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"] | None]:
  """`expert_parallel_ffn` without drops, summed in float32; and overlap_fn(x_TD).

  Args:
    overlap_fn: computed while the first round's results are combined.
  """
  x_TD, expert_TK, gate_TK, *weights = operands
  num_experts = shape.num_devices * shape.experts_per_device  # with padding experts
  by_expert = sort_by_expert(
    jnp.where(expert_TK < shape.num_experts, expert_TK, num_experts), num_experts
  )
  counts_GE = lax.all_gather(by_expert.count_E, axis_name)
  implementation = implementation or implementation_for(platform())
  first_size = shape.first_choices * shape.num_devices
  overflow_size = shape.overflow_choices * shape.num_devices
  balanced = -(-expert_TK.size * num_experts // shape.num_experts)  # rows of L experts

  def one_round(start, size, num_slots, operands, overlap_fn, routing: _Routing):
    x_TD, gate_TK, *weights = operands
    x_TD, weights = tie_gradients(x_TD, weights)
    plan = _plan_dispatch(routing, start, size, shape, gate_TK.shape, axis_name)
    x_RD, weight_R = dispatch(x_TD, gate_TK, routing.by_expert.sort_index_A, plan, axis_name)
    if implementation == "grouped":
      y_RD = grouped_swiglu(x_RD, weight_R, *weights, plan.count_L, min(balanced, size))
    else:
      y_RD = _received_ffn(x_RD, weight_R, weights, plan.count_L, implementation, num_slots)
    if overlap_fn is not None:  # not started before combine is
      y_RD, x_TD = barrier((y_RD, x_TD))
    return combine(y_RD, plan, axis_name), overlap_fn and overlap_fn(x_TD)

  def first_round(operands, overlap_fn, routing):
    return one_round(0, first_size, num_slots, operands, overlap_fn, routing)

  def overflow_round(index, operands, routing):
    num_slots = slots_per_expert(overflow_size, 1, shape.experts_per_device)
    start = first_size + index * overflow_size
    return one_round(start, overflow_size, num_slots, operands, None, routing)[0]

  differentiable, routing = (x_TD, gate_TK, *weights), _Routing(by_expert, counts_GE)
  if not overflow_size:
    return first_round(differentiable, overlap_fn, routing)
  rows_GGL = counts_GE.reshape(shape.num_devices, shape.num_devices, -1)
  max_rows = jnp.max(rows_GGL.sum((0, 2)))  # of any receiver
  num_rounds = -(-jnp.maximum(max_rows - first_size, 0) // overflow_size)
  return with_overflow_rounds(
    first_round, overflow_round, differentiable, overlap_fn, routing, num_rounds
  )


def _received_ffn(x_RD, weight_R, weights, count_L, implementation, num_slots):
  """`expert_ffn` of received rows, with padding masked: it is undefined, and so is its gradient."""
  expert_R = row_expert_ids(count_L, weight_R.size)
  is_valid_R1 = (expert_R < count_L.size)[:, None]
  y_RD = expert_ffn(
    jnp.where(is_valid_R1, x_RD.reshape(weight_R.size, -1), 0),
    expert_R[:, None], weight_R[:, None], *weights,
    implementation=implementation, num_slots=num_slots,
  )  # fmt: skip
  return jnp.where(is_valid_R1, y_RD, 0).reshape(x_RD.shape)


class _Segments(NamedTuple):
  """What one round moves, by receiver, its expert and source: where a segment starts among the
  source's sorted assignments, its size, and its first row in the receiver's buffer."""

  input_offset_GLG: Int[Array, "G L G"]
  size_GLG: Int[Array, "G L G"]
  output_offset_GLG: Int[Array, "G L G"]


def _segments(counts_GE: Int[Array, "G E"], start, size: int, num_local: int) -> _Segments:
  G = counts_GE.shape[0]
  rows_GLG = counts_GE.reshape(G, G, num_local).transpose(1, 2, 0)
  # A receiver's numbers: the first of each segment, and the rows of it before this round.
  number_GLG = (jnp.cumsum(rows_GLG.reshape(G, -1), axis=1) - rows_GLG.reshape(G, -1)).reshape(
    rows_GLG.shape
  )
  earlier_GLG = jnp.clip(start - number_GLG, 0, rows_GLG)
  size_GLG = jnp.clip(start + size - number_GLG, 0, rows_GLG) - earlier_GLG
  output_offset_GLG = (
    jnp.cumsum(size_GLG, axis=2) - size_GLG + tile_aligned_starts(size_GLG.sum(2))[:, :, None]
  )
  first_GE = jnp.cumsum(counts_GE, axis=1) - counts_GE
  input_offset_GLG = first_GE.reshape(G, G, num_local).transpose(1, 2, 0) + earlier_GLG
  return _Segments(input_offset_GLG, size_GLG, output_offset_GLG)


def _plan_dispatch(
  routing: _Routing, start, size: int, shape: ExpertParallelShape, shape_TK, axis_name: str
) -> RaggedPlan:
  """The round of the assignments numbered start ... start + size - 1 of every receiver."""
  by_expert, counts_GE = routing
  G, own_index = shape.num_devices, lax.axis_index(axis_name)
  num, num_received = by_expert.sort_index_A.size, tile_padded_rows(size, shape.experts_per_device)
  input_GLG, size_GLG, output_GLG = _segments(counts_GE, start, size, shape.experts_per_device)

  def received(a_GLG):  # by source, then by expert
    return a_GLG[own_index].T.reshape(-1)

  def sent(a_GLG):  # by receiver, then by expert
    return a_GLG[:, :, own_index].reshape(-1)

  device_G = jnp.arange(G, dtype=jnp.int32)
  weight_R, _ = map_segments(
    jnp.arange(num_received, dtype=jnp.int32),
    received(output_GLG), received(size_GLG), received(input_GLG + num * device_G[None, None, :]),
  )  # fmt: skip
  dweight_A, is_in_round_A = map_segments(
    by_expert.inverse_A, sent(input_GLG), sent(size_GLG),
    sent(output_GLG + num_received * device_G[:, None, None]),
  )  # fmt: skip
  return barrier(
    RaggedPlan(
      by_expert.sort_index_A // shape_TK[1],
      jnp.where(is_in_round_A, by_expert.inverse_A, num).reshape(shape_TK),
      size_GLG[own_index].sum(1),
      weight_R,
      jnp.where(is_in_round_A, dweight_A, G * num_received).reshape(shape_TK),
      RaggedOffsets(sent(input_GLG), sent(size_GLG), sent(output_GLG), received(size_GLG)),
      RaggedOffsets(received(output_GLG), received(size_GLG), received(input_GLG), sent(size_GLG)),
    )
  )


def _dispatch_rows(a_TD, plan: RaggedPlan, axis_name: str):
  """Sends tokens' vectors to the experts, as lane tiles; padding rows are undefined."""
  lane_tiles = to_lane_tiles(take_rows(a_TD, plan.token_A))
  return ragged_send(lane_tiles, plan.weight_R.size, plan.dispatch_offsets, axis_name)


def _combine_rows(lane_tiles, plan: RaggedPlan, axis_name: str):
  rows = ragged_send(lane_tiles, plan.token_A.size, plan.combine_offsets, axis_name)
  return gather_and_sum(rows.reshape(rows.shape[0], -1), plan.row_TK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dispatch(
  x_TD: Float[Array, "T D"],
  gate_TK: Float[Array, "T K"],
  sort_index_A: Int[Array, " A"],
  plan: RaggedPlan,
  axis_name: str,
):
  """Sends vectors and weights to the experts: one ragged all-to-all and one all-gather.

  Returns:
    x_RD as lane tiles, and weight_R.
  """
  return _dispatch_forward(x_TD, gate_TK, sort_index_A, plan, axis_name)[0]


def _dispatch_forward(x_TD, gate_TK, sort_index_A, plan, axis_name):
  weight_A = gate_TK.reshape(-1).at[sort_index_A].get(mode=IN_BOUNDS)
  weight_R = lax.all_gather(weight_A, axis_name, tiled=True).at[plan.weight_R].get(mode=IN_BOUNDS)
  return (_dispatch_rows(x_TD, plan, axis_name), weight_R), plan


def _dispatch_backward(axis_name, plan, gradients):
  dx_RD, dweight_R = gradients
  dweight_GR = lax.all_gather(dweight_R, axis_name, tiled=True)
  dgate_TK = dweight_GR.at[plan.dweight_TK].get(mode="fill", fill_value=0)
  return _combine_rows(dx_RD, plan, axis_name).astype(dx_RD.dtype), dgate_TK, None, None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)

# Sends the experts' results back and sums each token's: one ragged all-to-all.
combine = make_combine(_combine_rows, _dispatch_rows)
