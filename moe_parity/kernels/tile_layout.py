"""The layout of rows sorted by expert: every expert's rows start at a multiple of the tile size.

A tile of rows then belongs to one expert. The last tile of an expert may be partly filled, and so
may the buffer, since row counts are known only at run time (`planning.expert_parallel.
tile_padded_rows` gives the buffer's size). Unused rows are padding of any content.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_parity.planning import tpu_slices


class TileMap(NamedTuple):
  """The expert and row count of each of N tiles. N is even: two cores of a chip share them.

  Attributes:
    expert_N: each tile's expert; ascending, and every expert has at least one tile.
    num_valid_N: rows in use, from the start of the tile.
    num_used: [1], tiles before the first without any expert's rows.
  """

  expert_N: Int[Array, " N"]
  num_valid_N: Int[Array, " N"]
  num_used: Int[Array, "1"]


def tile_aligned_starts(count_L: Int[Array, "*G L"]) -> Int[Array, "*G L"]:
  """The row at which each expert starts, on one device or on several."""
  rows_L = tpu_slices.ROW_TILE * _num_tiles(count_L)
  return jnp.cumsum(rows_L, axis=-1, dtype=jnp.int32) - rows_L


def _num_tiles(count_L: Int[Array, "*G L"]) -> Int[Array, "*G L"]:
  return jnp.maximum(-(-count_L // tpu_slices.ROW_TILE), 1)


def row_expert_ids(count_L: Int[Array, " L"], num_buffer_rows: int) -> Int[Array, " R"]:
  """The expert of each row of a buffer; L for padding."""
  tiles = tile_map(count_L, num_buffer_rows)
  row_T = jnp.arange(tpu_slices.ROW_TILE, dtype=jnp.int32)
  is_valid_NT = row_T[None, :] < tiles.num_valid_N[:, None]
  return jnp.where(is_valid_NT, tiles.expert_N[:, None], count_L.size).reshape(-1)


def tile_map(count_L: Int[Array, " L"], num_buffer_rows: int) -> TileMap:
  """The tiles of a buffer that holds `count_L` rows of each expert."""
  tile = tpu_slices.ROW_TILE
  end_L = jnp.cumsum(_num_tiles(count_L), dtype=jnp.int32)
  number_N = jnp.arange(num_buffer_rows // tile, dtype=jnp.int32)
  expert_N = (end_L[None, :] <= number_N[:, None]).sum(1, dtype=jnp.int32)
  is_own_LN = expert_N[None, :] == jnp.arange(count_L.size, dtype=jnp.int32)[:, None]
  remaining_LN = (tile_aligned_starts(count_L) + count_L)[:, None] - tile * number_N[None, :]
  num_valid_N = jnp.clip(jnp.where(is_own_LN, remaining_LN, 0).sum(0), 0, tile)
  return TileMap(jnp.minimum(expert_N, count_L.size - 1), num_valid_N, end_L[-1:])
