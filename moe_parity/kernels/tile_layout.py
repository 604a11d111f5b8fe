"""Where rows lie that are sorted by expert: each expert's begin at a whole tile.

So a tile of rows is one expert's; its last may have room left, and so has the buffer, since how
many rows come is known only when they do (`planning.expert_parallel.room_for`). What lies there is
nobody's and may be anything.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_parity.planning.expert_parallel import TILE


class Tiles(NamedTuple):
  """What lies in each of N tiles, an even number: a chip may have two cores, which share them.

  Attributes:
    expert_N: whose rows; ascending, and every expert has a tile at least.
    filled_N: how many of them there are, from the tile's beginning.
    num_used: [1], tiles after which there are no rows.
  """

  expert_N: Int[Array, " N"]
  filled_N: Int[Array, " N"]
  num_used: Int[Array, "1"]


def first_rows(count_L: Int[Array, "*G L"]) -> Int[Array, "*G L"]:
  """Where each expert's rows begin, for one device or several."""
  rows_L = TILE * _num_tiles(count_L)
  return jnp.cumsum(rows_L, axis=-1, dtype=jnp.int32) - rows_L


def _num_tiles(count_L):
  return jnp.maximum(-(-count_L // TILE), 1)


def expert_of_rows(count_L: Int[Array, " L"], room: int) -> Int[Array, " R"]:
  """Whose each row of a buffer is; L where it is nobody's."""
  tiles = tiles_of(count_L, room)
  is_filled_NT = jnp.arange(TILE, dtype=jnp.int32)[None, :] < tiles.filled_N[:, None]
  return jnp.where(is_filled_NT, tiles.expert_N[:, None], count_L.size).reshape(-1)


def tiles_of(count_L: Int[Array, " L"], room: int) -> Tiles:
  """The tiles of a buffer of `room` rows with `count_L` of each expert."""
  end_L = jnp.cumsum(_num_tiles(count_L), dtype=jnp.int32)
  number_N = jnp.arange(room // TILE, dtype=jnp.int32)
  expert_N = (end_L[None, :] <= number_N[:, None]).sum(1, dtype=jnp.int32)
  is_its_LN = expert_N[None, :] == jnp.arange(count_L.size, dtype=jnp.int32)[:, None]
  left_LN = (first_rows(count_L) + count_L)[:, None] - TILE * number_N[None, :]
  filled_N = jnp.clip(jnp.where(is_its_LN, left_LN, 0).sum(0), 0, TILE)
  return Tiles(jnp.minimum(expert_N, count_L.size - 1), filled_N, end_L[-1:])
