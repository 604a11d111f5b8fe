"""Padded implementation of routed experts: one batched product over slots, exact for any routing.

Every expert gets C slots, C a little over the mean load, so the products of all experts are one
batched einsum. Assignments beyond an expert's C slots go through `padded_overflow.py`, a loop that
takes no step when there are none. Nothing is dropped.

Rows are permuted by gathers in both directions: the gradient of a gather is another gather, through
the inverse permutation, never a scatter. An unused slot holds another token's row with weight 0, so
nothing is masked or zeroed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_parity.experts import padded_overflow, padded_swiglu
from moe_parity.experts.assignments import (
  IN_BOUNDS,
  SortedAssignments,
  rank_in_group,
  sort_by_expert,
)
from moe_parity.experts.permute import barrier, gather_and_sum, take_rows


class Slots(NamedTuple):
  """The assignments in the slots of each expert.

  Attributes:
    slot_TK: e * C + c of each assignment, at least E * C if it overflowed or is unassigned.
    token_EC: the token whose row is in the slot.
    weight_EC: its routing weight, 0 in an unused slot.
  """

  slot_TK: Int[Array, "T K"]
  token_EC: Int[Array, "E C"]
  weight_EC: Float[Array, "E C"]


def assign_slots(
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  by_expert: SortedAssignments,
  num_slots: int,
) -> Slots:
  """Gives the first `num_slots` assignments of every expert a slot."""
  num, num_experts = expert_TK.size, by_expert.count_E.shape[0]
  rank_C = jnp.arange(num_slots, dtype=jnp.int32)[None, :]
  position_EC = jnp.minimum(by_expert.start_E[:, None] + rank_C, num - 1)
  assignment_EC = by_expert.sort_index_A.at[position_EC].get(mode=IN_BOUNDS)
  weight_EC = jnp.where(
    rank_C < by_expert.count_E[:, None],
    gate_TK.reshape(-1).at[assignment_EC].get(mode=IN_BOUNDS),
    0,
  )
  rank_TK = rank_in_group(expert_TK, by_expert)
  slot_TK = jnp.where(rank_TK < num_slots, expert_TK * num_slots + rank_TK, num_experts * num_slots)
  token_EC = assignment_EC // expert_TK.shape[1]
  return barrier(Slots(slot_TK, token_EC, weight_EC))


def _flatten(a_ECD):
  return a_ECD.reshape(-1, a_ECD.shape[2])


def padded_ffn(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_E2ID: Float[Array, "E 2 I D"],
  w_down_EID: Float[Array, "E I D"],
  num_slots: int,
) -> Float[Array, "T D"]:
  """`expert_ffn` with `num_slots` slots per expert; any positive number gives the same result."""
  num_experts, _, d_expert, d_model = w_in_E2ID.shape
  # One axis for both: XLA transposes an operand that is contracted over two axes.
  w_in_EHD = w_in_E2ID.reshape(num_experts, 2 * d_expert, d_model)
  return _padded_ffn(x_TD, expert_TK, gate_TK, w_in_EHD, w_down_EID, num_slots)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _padded_ffn(x_TD, expert_TK, gate_TK, w_in_EHD, w_down_EID, num_slots):
  return _forward(x_TD, expert_TK, gate_TK, w_in_EHD, w_down_EID, num_slots)[0]


def _forward(x_TD, expert_TK, gate_TK, w_in_EHD, w_down_EID, num_slots):
  by_expert = sort_by_expert(expert_TK, w_in_EHD.shape[0])
  slots = assign_slots(expert_TK, gate_TK, by_expert, num_slots)
  x_ECD = take_rows(x_TD, slots.token_EC)
  y_ECD, h_EHC = padded_swiglu.forward(x_ECD, slots.weight_EC, w_in_EHD, w_down_EID)
  y_TD = gather_and_sum(_flatten(y_ECD), slots.slot_TK)
  y_TD = padded_overflow.forward(y_TD, x_TD, gate_TK, w_in_EHD, w_down_EID, by_expert, num_slots)
  residuals = x_TD, gate_TK, w_in_EHD, w_down_EID, by_expert, slots, h_EHC
  return y_TD.astype(x_TD.dtype), residuals


def _backward(num_slots, residuals, dy_TD):
  x_TD, gate_TK, w_in_EHD, w_down_EID, by_expert, slots, h_EHC = residuals
  # Gathered again, which is cheaper than to save E * C rows for every layer.
  x_ECD, dy_ECD = take_rows(x_TD, slots.token_EC), take_rows(dy_TD, slots.token_EC)
  dx_ECD, dweight_EC, dw_in_EHD, dw_down_EID = padded_swiglu.backward(
    dy_ECD, x_ECD, slots.weight_EC, w_in_EHD, w_down_EID, h_EHC
  )
  dx_TD = gather_and_sum(_flatten(dx_ECD), slots.slot_TK)
  dgate_TK = dweight_EC.reshape(-1).at[slots.slot_TK].get(mode="fill", fill_value=0)
  dx_TD, dgate_TK, dw_in_EHD, dw_down_EID = padded_overflow.backward(
    (dx_TD, dgate_TK, dw_in_EHD, dw_down_EID),
    dy_TD, x_TD, gate_TK, w_in_EHD, w_down_EID, by_expert, num_slots,
  )  # fmt: skip
  dw_in_EHD, dw_down_EID = (dw.astype(w_in_EHD.dtype) for dw in (dw_in_EHD, dw_down_EID))
  return dx_TD.astype(x_TD.dtype), None, dgate_TK, dw_in_EHD, dw_down_EID


_padded_ffn.defvjp(_forward, _backward)
