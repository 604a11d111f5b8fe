"""SwiGLU experts as one batched product over slots, exact for any routing. The CPU formulation.

Every expert gets C slots, C a little over the mean load, so the products of all experts are one
batched einsum. Assignments beyond an expert's C slots go through `overflow.py`, a loop whose trip
count is the overflow, zero when the routing is balanced. Nothing is dropped.

Three things make it fast on XLA:CPU (measured by `moe-parity bench`):
- rows move by gathers in both directions; the backward pass of a gather is another gather, through
  the inverse permutation, never a scatter;
- the routing weight multiplies the narrow hidden layer, not the wide output. Combining is then a
  plain sum, and the gate's gradient falls out of the hidden layer;
- an unused slot holds somebody else's row with weight 0, so nothing is masked or zeroed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.parallel import overflow
from moe_parity.parallel.grouping import Groups, group_by_expert

IN_BOUNDS = "promise_in_bounds"
barrier = lax.optimization_barrier


class Slots(NamedTuple):
  """Who sits where. `slot_TK` and (`assignment_EC`, `weight_EC`) are inverse to each other.

  slot_TK: e * C + c of each assignment, or E * C where it overflowed or belongs to nobody.
  token_EC: the token whose row fills the slot.
  assignment_EC: the assignment in the slot; any, where the slot is unused.
  used_EC: whether the slot holds an assignment of its expert.
  """

  slot_TK: Int[Array, "T K"]
  token_EC: Int[Array, "E C"]
  assignment_EC: Int[Array, "E C"]
  used_EC: Array


def seat(expert_TK: Int[Array, "T K"], groups: Groups, num_slots: int) -> Slots:
  """Gives the first `num_slots` assignments of every expert a slot."""
  num_tokens, experts_per_token = expert_TK.shape
  num, num_experts = num_tokens * experts_per_token, groups.count_E.shape[0]
  rank_E = jnp.arange(num_slots, dtype=jnp.int32)[None, :]
  index_EC = jnp.minimum(groups.start_E[:, None] + rank_E, num - 1)
  assignment_EC = groups.order_A.at[index_EC].get(mode=IN_BOUNDS)
  place_A = (
    jnp.zeros(num, jnp.int32)
    .at[groups.order_A]
    .set(jnp.arange(num, dtype=jnp.int32), mode=IN_BOUNDS, unique_indices=True)
  )
  expert_A = expert_TK.reshape(-1)
  start_A = groups.start_E.at[expert_A].get(mode="fill", fill_value=-num - num_slots)
  rank_A = place_A - start_A
  slot_A = jnp.where(rank_A < num_slots, expert_A * num_slots + rank_A, num_experts * num_slots)
  return barrier(
    Slots(
      slot_A.reshape(num_tokens, experts_per_token),
      assignment_EC // experts_per_token,
      assignment_EC,
      rank_E < groups.count_E[:, None],
    )
  )


def _rows(x_TD, token_EC):
  """Every slot's row: [T, D] -> [E, C, D]."""
  return barrier(x_TD.at[token_EC].get(mode=IN_BOUNDS))


def _sum_of_slots(y_ECD, slot_TK):
  """Every token's sum over its slots, in float32: [E, C, D] -> [T, D]."""
  y_ND = barrier(y_ECD.reshape(-1, y_ECD.shape[-1]))
  total = 0.0
  for slot_T in slot_TK.T:
    row_TD = y_ND.at[jnp.minimum(slot_T, y_ND.shape[0] - 1)].get(mode=IN_BOUNDS)
    total += jnp.where((slot_T < y_ND.shape[0])[:, None], row_TD, 0).astype(jnp.float32)
  return total


def _einsum(axes, a, b):
  return jnp.einsum(axes, a, b, preferred_element_type=a.dtype)


def hidden(h_EC2I: Float[Array, "*N 2I"]) -> Float[Array, "*N I"]:
  """SwiGLU: silu(gate) * up."""
  gate, up = jnp.split(h_EC2I, 2, axis=-1)
  return jax.nn.silu(gate) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def slotted_ffn(x_TD, expert_TK, gate_TK, w_in_EDH, w_down_EID, num_slots):
  return _forward(x_TD, expert_TK, gate_TK, w_in_EDH, w_down_EID, num_slots)[0]


def _forward(x_TD, expert_TK, gate_TK, w_in_EDH, w_down_EID, num_slots):
  groups = group_by_expert(expert_TK, w_in_EDH.shape[0])
  slots = seat(expert_TK, groups, num_slots)
  x_ECD = _rows(x_TD, slots.token_EC)
  weight_EC = jnp.where(
    slots.used_EC, gate_TK.reshape(-1).at[slots.assignment_EC].get(mode=IN_BOUNDS), 0
  )
  h_ECH = barrier(_einsum("ECD,EDH->ECH", x_ECD, w_in_EDH))
  s_ECI = (hidden(h_ECH).astype(jnp.float32) * weight_EC[:, :, None]).astype(x_TD.dtype)
  y_TD = _sum_of_slots(_einsum("ECI,EID->ECD", s_ECI, w_down_EID), slots.slot_TK)
  y_TD = overflow.forward(y_TD, x_TD, gate_TK, w_in_EDH, w_down_EID, groups, num_slots)
  residuals = x_TD, gate_TK, w_in_EDH, w_down_EID, groups, slots, x_ECD, weight_EC, h_ECH
  return y_TD.astype(x_TD.dtype), residuals


def _backward(num_slots, residuals, dy_TD):
  x_TD, gate_TK, w_in_EDH, w_down_EID, groups, slots, x_ECD, weight_EC, h_ECH = residuals
  dtype = x_TD.dtype
  dy_ECD = _rows(dy_TD, slots.token_EC)
  ds_ECI = barrier(_einsum("ECD,EID->ECI", dy_ECD, w_down_EID)).astype(jnp.float32)
  a_ECI, hidden_vjp = jax.vjp(hidden, h_ECH.astype(jnp.float32))
  weight_EC1 = weight_EC[:, :, None]
  dweight_EC = (ds_ECI * a_ECI).sum(-1)
  (dh_ECH,) = hidden_vjp(ds_ECI * weight_EC1)
  dh_ECH, s_ECI = barrier((dh_ECH.astype(dtype), (a_ECI * weight_EC1).astype(dtype)))
  dw_down_EID = jnp.einsum("ECI,ECD->EID", s_ECI, dy_ECD, preferred_element_type=jnp.float32)
  dw_in_EDH = jnp.einsum("ECD,ECH->EDH", x_ECD, dh_ECH, preferred_element_type=jnp.float32)
  dx_TD = _sum_of_slots(_einsum("ECH,EDH->ECD", dh_ECH, w_in_EDH), slots.slot_TK)
  dgate_TK = dweight_EC.reshape(-1).at[slots.slot_TK].get(mode="fill", fill_value=0)
  dx_TD, dgate_TK, dw_in_EDH, dw_down_EID = overflow.backward(
    (dx_TD, dgate_TK, dw_in_EDH, dw_down_EID),
    dy_TD, x_TD, gate_TK, w_in_EDH, w_down_EID, groups, num_slots,
  )  # fmt: skip
  return (
    dx_TD.astype(dtype),
    None,
    dgate_TK,
    dw_in_EDH.astype(w_in_EDH.dtype),
    dw_down_EID.astype(w_down_EID.dtype),
  )


slotted_ffn.defvjp(_forward, _backward)
