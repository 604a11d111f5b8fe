"""Dispatch and combine of packed rows (`deduplicate.py`) through slots of fixed number.

Every pair of devices has C slots a round. A plan has both the slot of every row and the row in
every slot, so both directions permute rows by gathers, and combine is the transpose of dispatch.
All slots are sent by one `lax.all_to_all`; or only those in use, by a ragged all-to-all at the same
positions, and other slots of the receiver's buffer are undefined.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_parity.experts.assignments import IN_BOUNDS
from moe_parity.experts.deduplicate import DedupRows, make_combine
from moe_parity.experts.permute import barrier, gather_and_sum, take_rows, to_lane_tiles
from moe_parity.planning.expert_parallel import ExpertParallelShape
from moe_parity.sharding.ragged_collective import RaggedOffsets, ragged_send


class DispatchPlan(NamedTuple):
  """The rows of one round. G devices, C slots for each.

  Attributes:
    slot_TP: g * C + c of each row, G * C if it is not in this round.
    row_GC: the row in each slot (t * P + p); any row in an unused slot.
    is_used_GC: whether a slot is used.
    dispatch_offsets, combine_offsets: of ragged all-to-alls; None where all slots are sent.
  """

  slot_TP: Int[Array, "T P"]
  row_GC: Int[Array, "G C"]
  is_used_GC: Bool[Array, "G C"]
  dispatch_offsets: RaggedOffsets | None
  combine_offsets: RaggedOffsets | None


def plan_dispatch(rows: DedupRows, start, num_slots: int, ragged_axis: str | None) -> DispatchPlan:
  """Slots of the rows numbered start ... start + num_slots - 1 of every pair of devices.

  Args:
    ragged_axis: the mesh axis, where only used slots are sent; None where all are.
  """
  num_devices, num_rows = rows.by_device.count_E.shape[0], rows.device_TP.size
  number_C = start + jnp.arange(num_slots, dtype=jnp.int32)[None, :]
  position_GC = jnp.minimum(rows.by_device.start_E[:, None] + number_C, num_rows - 1)
  row_GC = rows.by_device.sort_index_A.at[position_GC].get(mode=IN_BOUNDS)
  slot_TP = rows.rank_TP - start
  is_in_round_TP = (slot_TP >= 0) & (slot_TP < num_slots) & (rows.device_TP < num_devices)
  slot_TP = jnp.where(is_in_round_TP, rows.device_TP * num_slots + slot_TP, num_devices * num_slots)
  offsets = (None, None)
  if ragged_axis is not None:
    offsets = _ragged_offsets(rows, start, num_slots, ragged_axis)
  is_used_GC = number_C < rows.by_device.count_E[:, None]
  return barrier(DispatchPlan(slot_TP, row_GC, is_used_GC, *offsets))


def _ragged_offsets(rows: DedupRows, start, num_slots: int, axis_name: str):
  """Offsets and sizes of dispatch and of combine, in rows: used slots stay where they are."""
  send_size_G = jnp.clip(rows.by_device.count_E - start, 0, num_slots)
  own_index = lax.axis_index(axis_name)
  recv_size_G = lax.all_gather(send_size_G, axis_name)[:, own_index]
  input_offset_G = num_slots * jnp.arange(rows.by_device.count_E.shape[0], dtype=jnp.int32)
  output_offset_G = jnp.full_like(input_offset_G, num_slots * own_index)
  return (
    RaggedOffsets(input_offset_G, send_size_G, output_offset_G, recv_size_G),
    RaggedOffsets(input_offset_G, recv_size_G, output_offset_G, send_size_G),
  )


def _all_to_all(a: Array, axis_name: str) -> Array:
  """[G, ...] by destination to [G, ...] by source, and back: it is its own inverse."""
  return lax.all_to_all(a, axis_name, 0, 0)


def _exchange_rows(
  a_RD: Float[Array, "R D"], plan: DispatchPlan, offsets: RaggedOffsets | None, axis_name: str
) -> Float[Array, "R D"]:
  """The same of vectors, R = G * C."""
  if offsets is None:
    return _flatten(_all_to_all(_by_pair(a_RD, plan), axis_name))
  return ragged_send(to_lane_tiles(a_RD), a_RD.shape[0], offsets, axis_name).reshape(a_RD.shape)


def _by_pair(a_RD: Float[Array, "R D"], plan: DispatchPlan) -> Float[Array, "G C D"]:
  return a_RD.reshape(*plan.row_GC.shape, a_RD.shape[1])


def _flatten(a_GCD: Shaped[Array, "G C D"]) -> Shaped[Array, "R D"]:
  return a_GCD.reshape(-1, a_GCD.shape[2])


def _dispatch_rows(
  x_TD: Float[Array, "T D"], plan: DispatchPlan, axis_name: str
) -> Float[Array, "R D"]:
  token_GC = plan.row_GC // plan.slot_TP.shape[1]
  rows = take_rows(x_TD, token_GC.reshape(-1))
  return _exchange_rows(rows, plan, plan.dispatch_offsets, axis_name)


def _combine_rows(
  y_RD: Float[Array, "R D"], plan: DispatchPlan, axis_name: str
) -> Float[Array, "T D"]:
  returned = _exchange_rows(y_RD, plan, plan.combine_offsets, axis_name)
  return gather_and_sum(returned, plan.slot_TP)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def dispatch(
  x_TD: Float[Array, "T D"],
  gate_TPJ: Float[Array, "T P J"],
  expert_TPJ: Int[Array, "T P J"],
  plan: DispatchPlan,
  shape: ExpertParallelShape,
  axis_name: str,
):
  """Sends rows to the devices of their experts: one all-to-all of vectors, one of metadata.

  Returns:
    x_RD, gate_RJ and expert_RJ, R = G * C by source; an unused slot has any or undefined vectors,
    weight 0 and the sentinel id L (unassigned).
  """
  return _dispatch_forward(x_TD, gate_TPJ, expert_TPJ, plan, shape, axis_name)[0]


def _dispatch_forward(x_TD, gate_TPJ, expert_TPJ, plan, shape, axis_name):
  def in_slots(a_TPJ, unused):
    a_AJ = a_TPJ.reshape(-1, a_TPJ.shape[2])
    is_used_GC1 = plan.is_used_GC[:, :, None]
    return jnp.where(is_used_GC1, a_AJ.at[plan.row_GC].get(mode=IN_BOUNDS), unused)

  bits_GCJ = lax.bitcast_convert_type(in_slots(gate_TPJ, 0), jnp.int32)
  ids_GCJ = in_slots(expert_TPJ, shape.experts_per_device)
  metadata_GCJ = jnp.concatenate([ids_GCJ, bits_GCJ], axis=2)
  metadata_RJ = _flatten(_all_to_all(metadata_GCJ, axis_name))
  expert_RJ, bits_RJ = jnp.split(metadata_RJ, 2, axis=1)
  gate_RJ = lax.bitcast_convert_type(bits_RJ, jnp.float32)
  return (_dispatch_rows(x_TD, plan, axis_name), gate_RJ, expert_RJ), plan


def _dispatch_backward(shape, axis_name, plan, gradients):
  dx_RD, dgate_RJ, _ = gradients
  dx_TD = _combine_rows(dx_RD, plan, axis_name).astype(dx_RD.dtype)
  dgate_NJ = _flatten(_all_to_all(_by_pair(dgate_RJ, plan), axis_name))
  return dx_TD, dgate_NJ.at[plan.slot_TP].get(mode="fill", fill_value=0), None, None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)

# Sends the experts' results back and sums each token's: one all-to-all.
combine = make_combine(_combine_rows, _dispatch_rows)
