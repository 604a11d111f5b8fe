"""Packs a token's chosen experts into rows by device, so that its vector is sent once a device.

A row is a token's vector for one device with up to J of the experts it chose there; a token that
chose more of that device sends another row. No row goes to a device without one of its experts.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_parity.experts.assignments import SortedAssignments, rank_in_group, sort_by_expert
from moe_parity.planning.expert_parallel import ExpertParallelShape


class DedupRows(NamedTuple):
  """The rows of this device's tokens. T tokens, P rows a token at most, J choices a row.

  Attributes:
    device_TP: the destination of each row; G where a token has fewer rows.
    expert_TPJ: the expert's number on that device; L where there is none.
    slot_TK: the position of each choice among the token's P * J; P * J if unassigned.
    rank_TP: the row's number among this device's rows for that destination, in token order.
    by_device: rows (numbered t * P + p) sorted by destination.
  """

  device_TP: Int[Array, "T P"]
  expert_TPJ: Int[Array, "T P J"]
  slot_TK: Int[Array, "T K"]
  rank_TP: Int[Array, "T P"]
  by_device: SortedAssignments


def pack_choices_by_device(expert_TK: Int[Array, "T K"], shape: ExpertParallelShape) -> DedupRows:
  """Rows of tokens that chose `expert_TK`, ids in [0, E), or at least E if unassigned.

  Only comparisons among the K choices of a token and one sort: it scatters nothing but integers.
  """
  num_devices, num_local = shape.num_devices, shape.experts_per_device
  per_row, num_rows = shape.choices_per_row, shape.rows_per_token
  is_valid_TK = expert_TK < shape.num_experts
  device_TK = jnp.where(is_valid_TK, expert_TK // num_local, num_devices)
  is_same_TKK = device_TK[:, :, None] == device_TK[:, None, :]
  number_K = jnp.arange(expert_TK.shape[1], dtype=jnp.int32)
  is_earlier_KK = number_K[None, :] < number_K[:, None]
  # The rank of a choice among its token's for the same device; the first of each J opens a row.
  rank_TK = (is_same_TKK & is_earlier_KK[None]).sum(2, dtype=jnp.int32)
  is_first_TK = is_valid_TK & (rank_TK % per_row == 0)
  row_TK = jnp.cumsum(is_first_TK, axis=1, dtype=jnp.int32) - 1
  is_row_TKK = is_same_TKK & (rank_TK[:, None, :] == (rank_TK - rank_TK % per_row)[:, :, None])
  row_TK = jnp.where(is_row_TKK, row_TK[:, None, :], 0).sum(2, dtype=jnp.int32)
  slot_TK = jnp.where(is_valid_TK, row_TK * per_row + rank_TK % per_row, num_rows * per_row)

  row_P = jnp.arange(num_rows, dtype=jnp.int32)
  is_first_TPK = (row_TK[:, None, :] == row_P[None, :, None]) & is_first_TK[:, None, :]
  device_TP = num_devices + jnp.where(is_first_TPK, device_TK[:, None, :] - num_devices, 0).sum(2)
  is_at_TPJK = _is_at(slot_TK, num_rows, per_row)
  local_TK = jnp.where(is_valid_TK, expert_TK % num_local, num_local)
  local_TPJK = jnp.where(is_at_TPJK, local_TK[:, None, None, :] - num_local, 0)
  expert_TPJ = num_local + local_TPJK.sum(3)
  device_TP, expert_TPJ = (a.astype(jnp.int32) for a in (device_TP, expert_TPJ))
  by_device = sort_by_expert(device_TP, num_devices)
  return DedupRows(device_TP, expert_TPJ, slot_TK, rank_in_group(device_TP, by_device), by_device)


def _is_at(slot_TK: Int[Array, "T K"], num_rows: int, per_row: int) -> Bool[Array, "T P J K"]:
  """Whether choice k is at position (p, j)."""
  slot_PJ = jnp.arange(num_rows * per_row, dtype=jnp.int32).reshape(num_rows, per_row)
  return slot_TK[:, None, None, :] == slot_PJ[None, :, :, None]


def pack_gates(gate_TK: Float[Array, "T K"], rows: DedupRows) -> Float[Array, "T P J"]:
  """Routing weights at the positions of `rows.expert_TPJ`, 0 elsewhere. Linear; its gradient is a
  comparison and a sum like itself, never a scatter."""
  is_at_TPJK = _is_at(rows.slot_TK, *rows.expert_TPJ.shape[1:])
  return jnp.where(is_at_TPJK, gate_TK[:, None, None, :], 0).sum(3)


def make_combine(combine_rows: Callable, dispatch_rows: Callable) -> Callable:
  """`combine(y_RD, plan, axis_name)` of a token dispatcher, with its derivative.

  Args:
    combine_rows: sends rows [R, D] (or lane tiles) back and sums each token's in float32, [T, D].
    dispatch_rows: its transpose: sends tokens' vectors [T, D] to the devices of their rows.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
  def combine(y_RD: Float[Array, " R *D"], plan, axis_name: str) -> Float[Array, "T D"]:
    return combine_rows(y_RD, plan, axis_name)

  def forward(y_RD, plan, axis_name):
    return combine_rows(y_RD, plan, axis_name), (plan, jnp.zeros((), y_RD.dtype))

  def backward(axis_name, residuals, dy_TD):
    plan, like = residuals
    return dispatch_rows(dy_TD.astype(like.dtype), plan, axis_name), None

  combine.defvjp(forward, backward)
  return combine
