"""Assignments beyond an expert's slots: a loop over tiles of one expert each, as long as needed.

`lax.fori_loop` with a trip count known only at run time has no reverse-mode derivative, so forward
and backward are two functions that `slotted_ffn.py` calls from its own derivative rule. Both add to
what the slots have given already; with no overflow they run zero iterations.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe_parity.parallel.grouping import Groups

TILE = 64
IN_BOUNDS = "promise_in_bounds"


def hidden(h):
  gate, up = jnp.split(h, 2, axis=-1)
  return jax.nn.silu(gate) * up


def tiles_of(groups: Groups, num_slots: int):
  """Tiles of each expert's overflow, and their running total: the trip count is its last entry."""
  tiles_E = (jnp.maximum(groups.count_E - num_slots, 0) + TILE - 1) // TILE
  return tiles_E, jnp.cumsum(tiles_E)


def _tile(index, tiles_E, end_E, groups, num_slots):
  """The expert of a tile, its assignments and which of them are real."""
  expert = jnp.searchsorted(end_E, index, side="right").astype(jnp.int32)
  first = (index - (end_E[expert] - tiles_E[expert])) * TILE + num_slots
  rank = first + jnp.arange(TILE, dtype=jnp.int32)
  place = jnp.minimum(groups.start_E[expert] + rank, groups.order_A.shape[0] - 1)
  return expert, groups.order_A.at[place].get(mode=IN_BOUNDS), rank < groups.count_E[expert]


def _dot(a, b, contract):
  return lax.dot_general(a, b, ((contract[0], contract[1]), ((), ())),
                         preferred_element_type=jnp.float32)  # fmt: skip


def forward(y_TD, x_TD, gate_TK, w_in_EDH, w_down_EID, groups, num_slots):
  """y_TD (float32) plus the overflowed assignments' outputs."""
  experts_per_token, dtype = gate_TK.shape[1], x_TD.dtype
  tiles_E, end_E = tiles_of(groups, num_slots)
  gate_A = gate_TK.reshape(-1)

  def body(index, y_TD):
    expert, assignment, real = _tile(index, tiles_E, end_E, groups, num_slots)
    token = assignment // experts_per_token
    x = x_TD.at[token].get(mode=IN_BOUNDS)
    h = _dot(x, w_in_EDH[expert], ((1,), (0,)))
    weight = jnp.where(real, gate_A.at[assignment].get(mode=IN_BOUNDS), 0)[:, None]
    s = (hidden(h) * weight).astype(dtype)
    return y_TD.at[token].add(_dot(s, w_down_EID[expert], ((1,), (0,))), mode=IN_BOUNDS)

  return lax.fori_loop(0, end_E[-1], body, y_TD)


def backward(gradients, dy_TD, x_TD, gate_TK, w_in_EDH, w_down_EID, groups, num_slots):
  """The gradients (x, gate, w_in, w_down; all float32) plus those of the overflow."""
  experts_per_token, dtype = gate_TK.shape[1], x_TD.dtype
  tiles_E, end_E = tiles_of(groups, num_slots)
  gate_A = gate_TK.reshape(-1)

  def body(index, carry):
    dx_TD, dgate_A, dw_in_EDH, dw_down_EID = carry
    expert, assignment, real = _tile(index, tiles_E, end_E, groups, num_slots)
    token = assignment // experts_per_token
    x, dy = (a.at[token].get(mode=IN_BOUNDS) for a in (x_TD, dy_TD))
    weight = jnp.where(real, gate_A.at[assignment].get(mode=IN_BOUNDS), 0)[:, None]
    w_in, w_down = w_in_EDH[expert], w_down_EID[expert]
    a, hidden_vjp = jax.vjp(hidden, _dot(x, w_in, ((1,), (0,))))
    ds = _dot(dy, w_down, ((1,), (1,)))
    dweight = jnp.where(real, (ds * a).sum(-1), 0)
    (dh,) = hidden_vjp(ds * weight)
    dh, s = dh.astype(dtype), (a * weight).astype(dtype)
    return (
      dx_TD.at[token].add(_dot(dh, w_in, ((1,), (1,))), mode=IN_BOUNDS),
      dgate_A.at[assignment].add(dweight, mode=IN_BOUNDS),
      dw_in_EDH.at[expert].add(_dot(x, dh, ((0,), (0,)))),
      dw_down_EID.at[expert].add(_dot(s, dy, ((0,), (0,)))),
    )

  dx_TD, dgate_TK, dw_in_EDH, dw_down_EID = gradients
  carry = dx_TD, dgate_TK.reshape(-1), dw_in_EDH, dw_down_EID
  dx_TD, dgate_A, dw_in_EDH, dw_down_EID = lax.fori_loop(0, end_E[-1], body, carry)
  return dx_TD, dgate_A.reshape(gate_TK.shape), dw_in_EDH, dw_down_EID
