"""Assignments beyond an expert's slots: a loop over batches of tiles, as many as needed.

A tile is up to B assignments of one expert; a step computes G tiles, of any experts, so that its
products are batched and occupy every core. The number of steps is known only at run time, and zero
when nothing overflows. Such a loop has no reverse-mode derivative, so forward and backward are two
functions that `padded_ffn.py` calls from its own derivative rule; both add to what the slots gave.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_parity.experts import padded_swiglu
from moe_parity.experts.assignments import IN_BOUNDS, SortedAssignments
from moe_parity.experts.overflow_rounds import overflow_loop
from moe_parity.experts.padded_sizes import padded_sizes
from moe_parity.experts.permute import barrier


class OverflowTiles(NamedTuple):
  """G tiles of B assignments. `is_valid_GB` is False in the padding of an expert's last tile."""

  expert_G: Int[Array, " G"]
  assignment_GB: Int[Array, "G B"]
  is_valid_GB: Bool[Array, "G B"]


class OverflowPlan(NamedTuple):
  """The number of tiles of each expert, their cumulative sum, and the number of steps."""

  tiles_E: Int[Array, " E"]
  end_E: Int[Array, " E"]
  num_steps: Int[Array, ""]


def plan_overflow(by_expert: SortedAssignments, num_slots: int) -> OverflowPlan:
  """The tiles of what overflows `num_slots` slots per expert."""
  size, num_tiles = _tile_sizes(by_expert, num_slots)
  tiles_E = -(-jnp.maximum(by_expert.count_E - num_slots, 0) // size)
  end_E = jnp.cumsum(tiles_E, dtype=jnp.int32)
  return OverflowPlan(tiles_E, end_E, -(-end_E[-1] // num_tiles))


def _tile_sizes(by_expert: SortedAssignments, num_slots: int) -> tuple[int, int]:
  """Assignments of a tile, and tiles of a step."""
  sizes = padded_sizes()
  num_tiles = sizes.tiles_per_step(num_slots, by_expert.sort_index_A.size)
  return sizes.tile(num_slots), num_tiles


def _tiles(step, plan: OverflowPlan, by_expert: SortedAssignments, num_slots: int) -> OverflowTiles:
  (size, num_tiles), num_experts = _tile_sizes(by_expert, num_slots), plan.end_E.size
  index_G = step * num_tiles + jnp.arange(num_tiles, dtype=jnp.int32)
  # The last step may run past the last tile: the last expert's, beyond all it has, so not real.
  expert_G = (plan.end_E[None, :] <= index_G[:, None]).sum(1, dtype=jnp.int32)
  expert_G = jnp.minimum(expert_G, num_experts - 1)
  first_G = num_slots + (index_G - (plan.end_E - plan.tiles_E)[expert_G]) * size
  rank_GB = first_G[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
  is_valid_GB = rank_GB < by_expert.count_E[expert_G][:, None]
  position_GB = jnp.where(is_valid_GB, by_expert.start_E[expert_G][:, None] + rank_GB, 0)
  return OverflowTiles(
    expert_G, by_expert.sort_index_A.at[position_GB].get(mode=IN_BOUNDS), is_valid_GB
  )


def _weights(gate_A: Float[Array, " A"], tiles: OverflowTiles) -> Float[Array, "G B"]:
  """Routing weights of a batch of tiles, zero in the padding: padding then changes no sum."""
  return jnp.where(tiles.is_valid_GB, gate_A.at[tiles.assignment_GB].get(mode=IN_BOUNDS), 0)


def forward(
  y_TD: Float[Array, "T D"],
  x_TD: Float[Array, "T D"],
  gate_TK: Float[Array, "T K"],
  w_in_EHD: Float[Array, "E H D"],
  w_down_EID: Float[Array, "E I D"],
  by_expert: SortedAssignments,
  num_slots: int,
) -> Float[Array, "T D"]:
  """Adds the outputs of overflowing assignments to y_TD (float32)."""
  experts_per_token, gate_A = gate_TK.shape[1], gate_TK.reshape(-1)
  plan = plan_overflow(by_expert, num_slots)

  def step(index, y_TD):
    tiles = _tiles(index, plan, by_expert, num_slots)
    token_GB = tiles.assignment_GB // experts_per_token
    x_GBD = barrier(x_TD.at[token_GB].get(mode=IN_BOUNDS))
    w_in, w_down = w_in_EHD[tiles.expert_G], w_down_EID[tiles.expert_G]
    y_GBD, _ = padded_swiglu.forward(x_GBD, _weights(gate_A, tiles), w_in, w_down)
    return y_TD.at[token_GB].add(y_GBD.astype(jnp.float32), mode=IN_BOUNDS)

  return overflow_loop(plan.num_steps, step, y_TD)


def backward(
  gradients: tuple[Array, ...],
  dy_TD: Float[Array, "T D"],
  x_TD: Float[Array, "T D"],
  gate_TK: Float[Array, "T K"],
  w_in_EHD: Float[Array, "E H D"],
  w_down_EID: Float[Array, "E I D"],
  by_expert: SortedAssignments,
  num_slots: int,
) -> tuple[Array, ...]:
  """Adds the gradients of overflowing assignments to those of x, gate, w_in, w_down (float32)."""
  experts_per_token, gate_A = gate_TK.shape[1], gate_TK.reshape(-1)
  plan = plan_overflow(by_expert, num_slots)

  def step(index, carry):
    dx_TD, dgate_A, dw_in_EHD, dw_down_EID = carry
    tiles = _tiles(index, plan, by_expert, num_slots)
    token_GB = tiles.assignment_GB // experts_per_token
    x_GBD, dy_GBD = barrier(tuple(a.at[token_GB].get(mode=IN_BOUNDS) for a in (x_TD, dy_TD)))
    weight_GB = _weights(gate_A, tiles)
    w_in, w_down = barrier((w_in_EHD[tiles.expert_G], w_down_EID[tiles.expert_G]))
    _, h_GHB = padded_swiglu.forward(x_GBD, weight_GB, w_in, w_down)
    dx_GBD, dweight_GB, dw_in, dw_down = padded_swiglu.backward(
      dy_GBD, x_GBD, weight_GB, w_in, w_down, h_GHB
    )
    return (
      dx_TD.at[token_GB].add(dx_GBD.astype(jnp.float32), mode=IN_BOUNDS),
      dgate_A.at[tiles.assignment_GB].add(
        jnp.where(tiles.is_valid_GB, dweight_GB, 0), mode=IN_BOUNDS
      ),
      dw_in_EHD.at[tiles.expert_G].add(dw_in, mode=IN_BOUNDS),
      dw_down_EID.at[tiles.expert_G].add(dw_down, mode=IN_BOUNDS),
    )

  dx_TD, dgate_TK, dw_in_EHD, dw_down_EID = gradients
  carry = dx_TD, dgate_TK.reshape(-1), dw_in_EHD, dw_down_EID
  dx_TD, dgate_A, dw_in_EHD, dw_down_EID = overflow_loop(plan.num_steps, step, carry)
  return dx_TD, dgate_A.reshape(gate_TK.shape), dw_in_EHD, dw_down_EID
