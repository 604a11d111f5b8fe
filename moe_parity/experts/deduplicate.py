"""What a padded exchange sends: chosen experts gathered into rows, by the device they go to.

A row is a token's vector for one device with up to J of the experts it chose there; a token that
chose more of that device sends another. A row never goes to a device without one of its experts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_parity.experts.assignments import Groups, group_by_expert, rank_in_group
from moe_parity.planning.expert_parallel import Shape


class Rows(NamedTuple):
  """The rows of this device's tokens. T tokens, P rows a token at most, J choices a row.

  Attributes:
    device_TP: where each row goes; G where a token has no such row.
    expert_TPJ: the expert's number on that device; L where there is none.
    slot_TK: in which of the token's P * J places each choice lies; P * J for nobody's.
    rank_TP: which of this device's rows for that device it is, in token order.
    groups: rows (numbered t * P + p) by device.
  """

  device_TP: Int[Array, "T P"]
  expert_TPJ: Int[Array, "T P J"]
  slot_TK: Int[Array, "T K"]
  rank_TP: Int[Array, "T P"]
  groups: Groups


def gather_into_rows(expert_TK: Int[Array, "T K"], shape: Shape) -> Rows:
  """Rows of tokens that chose `expert_TK`, ids in [0, E) or, for nobody, at least E.

  Only comparisons among the K choices of a token and one sort: no scatter but of integers.
  """
  num_devices, here, per_row = (
    shape.num_devices, shape.experts_per_device, shape.choices_per_row,
  )  # fmt: skip
  num_rows = shape.rows_per_token
  real_TK = expert_TK < shape.num_experts
  device_TK = jnp.where(real_TK, expert_TK // here, num_devices)
  same_TKK = device_TK[:, :, None] == device_TK[:, None, :]
  number_K = jnp.arange(expert_TK.shape[1], dtype=jnp.int32)
  before_KK = number_K[None, :] < number_K[:, None]
  rank_TK = (same_TKK & before_KK[None]).sum(2, dtype=jnp.int32)  # among its token's, same device
  leads_TK = real_TK & (rank_TK % per_row == 0)
  row_TK = jnp.cumsum(leads_TK, axis=1, dtype=jnp.int32) - 1
  leader_TKK = same_TKK & (rank_TK[:, None, :] == (rank_TK - rank_TK % per_row)[:, :, None])
  row_TK = jnp.where(leader_TKK, row_TK[:, None, :], 0).sum(2, dtype=jnp.int32)
  slot_TK = jnp.where(real_TK, row_TK * per_row + rank_TK % per_row, num_rows * per_row)

  row_P = jnp.arange(num_rows, dtype=jnp.int32)
  leads_TPK = (row_TK[:, None, :] == row_P[None, :, None]) & leads_TK[:, None, :]
  device_TP = num_devices + jnp.where(leads_TPK, device_TK[:, None, :] - num_devices, 0).sum(2)
  at_TPJK = _at(slot_TK, num_rows, per_row)
  local_TK = jnp.where(real_TK, expert_TK % here, here)
  expert_TPJ = here + jnp.where(at_TPJK, local_TK[:, None, None, :] - here, 0).sum(3)
  device_TP, expert_TPJ = (a.astype(jnp.int32) for a in (device_TP, expert_TPJ))
  groups = group_by_expert(device_TP, num_devices)
  return Rows(device_TP, expert_TPJ, slot_TK, rank_in_group(device_TP, groups), groups)


def _at(slot_TK, num_rows: int, per_row: int) -> Bool[Array, "T P J K"]:
  """Whether choice k lies in place (p, j)."""
  slot_PJ = jnp.arange(num_rows * per_row, dtype=jnp.int32).reshape(num_rows, per_row)
  return slot_TK[:, None, None, :] == slot_PJ[None, :, :, None]


def gates_of_rows(gate_TK: Float[Array, "T K"], rows: Rows) -> Float[Array, "T P J"]:
  """Routing weights where `rows.expert_TPJ` has the experts, 0 elsewhere. Linear; its gradient is
  a comparison and a sum like itself, never a scatter."""
  at_TPJK = _at(rows.slot_TK, *rows.expert_TPJ.shape[1:])
  return jnp.where(at_TPJK, gate_TK[:, None, None, :], 0).sum(3)


def giving_back(summed, sent):
  """`give_back(y_RD, seats, axis_name)` of an exchange: what came of the rows to their tokens.

  Args:
    summed: rows [R, D] or as lanes back over the wire, a token's summed in float32, [T, D].
    sent: its transpose: a token's vector [T, D] to every device where it has rows, like those.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
  def give_back(y_RD: Float[Array, " R *D"], seats, axis_name: str) -> Float[Array, "T D"]:
    return summed(y_RD, seats, axis_name)

  def forward(y_RD, seats, axis_name):
    return summed(y_RD, seats, axis_name), (seats, jnp.zeros((), y_RD.dtype))

  def backward(axis_name, residuals, dy_TD):
    seats, like = residuals
    return sent(dy_TD.astype(like.dtype), seats, axis_name), None

  give_back.defvjp(forward, backward)
  return give_back
