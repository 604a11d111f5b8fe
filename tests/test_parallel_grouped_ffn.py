"""The kernels of sorted rows, run step by step on a CPU, against a loop over rows in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.parallel import grouped_ffn as kernels
from moe_parity.parallel import tiles
from moe_parity.resources import exchange
from tests import reference


@pytest.fixture
def small_tiles(monkeypatch):
  for module in (exchange, tiles, kernels):
    monkeypatch.setattr(module, "TILE", 16)


def whose(counts, room):
  """Expert of each row, by a loop; -1 for nobody's."""
  expert_R, start = np.full(room, -1), 0
  for expert, count in enumerate(counts):
    expert_R[start : start + count] = expert
    start += max(1, -(-count // tiles.TILE)) * tiles.TILE
  return expert_R


@pytest.mark.parametrize(
  ("counts", "spare"), [([0], 0), ([16, 0, 17, 90], 3), ([1] * 7, 0), ([33, 32, 31], 50)]
)
def test_rows_of_any_counts_lie_in_whole_tiles_of_one_expert(small_tiles, counts, spare):
  room = exchange.room_for(sum(counts) + spare, len(counts))
  expected = whose(counts, room)  # fails where there is not room enough
  counts = jnp.array(counts, jnp.int32)
  actual = np.asarray(tiles.expert_of_rows(counts, room))
  np.testing.assert_array_equal(np.where(actual == counts.size, -1, actual), expected)
  used = tiles.tiles_of(counts, room)
  assert set(used.expert_N[: used.num_used[0]].tolist()) == set(range(counts.size))
  assert room // tiles.TILE % 2 == 0


@pytest.mark.parametrize("num_used", [1, 2, 5, 8])
def test_two_cores_compute_every_tile_once_and_write_nothing_of_each_other(num_used):
  computed, written = [], []
  for core in range(2):
    shares = [kernels._share(core, step, np.array([num_used])) for step in range(4)]
    computed += [int(tile) for tile, is_mine in shares if is_mine]
    written.append({int(tile) for tile, _ in shares})
  assert computed == list(range(num_used))
  assert not written[0] & written[1]


# counts, I, D, lanes, bytes of memory
CASES = {
  "a matrix": ([5, 50, 0], 40, 24, False, 2**20),
  "lanes": ([16, 0, 0, 33], 40, 256, True, 2**22),
  "chunks of a wide hidden layer": ([20, 0, 70, 3], 300, 128, True, 700_000),
  "nobody": ([0, 0], 24, 128, False, 2**20),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_loop_whatever_lies_in_empty_room(
  case, small_tiles, monkeypatch
):
  counts, i, d, as_lanes, memory = CASES[case]
  monkeypatch.setattr(kernels, "VMEM", memory)
  rng, room = np.random.default_rng(0), exchange.room_for(sum(counts), len(counts))
  expert_R = whose(counts, room)
  known = expert_R >= 0
  x, dy = (np.where(known[:, None], rng.normal(size=(room, d)), np.nan) for _ in range(2))
  weight = rng.normal(size=room)
  w_in = rng.normal(size=(len(counts), 2, i, d)) / d**0.5
  w_down = rng.normal(size=(len(counts), i, d)) / i**0.5
  assert (kernels.Sizes.of(jnp.asarray(w_in, jnp.float32)).num_chunks > 1) == ("chunks" in case)

  @jax.jit
  def both(x, weight, w_in, w_down, dy):
    counted = jnp.array(counts, jnp.int32)
    ffn = lambda *operands: kernels.grouped_ffn(*operands, counted, room)  # noqa: E731
    y, vjp = jax.vjp(ffn, x, weight, w_in, w_down)
    return y, *vjp(dy)

  shape = (room, d // 128, 128) if as_lanes else (room, d)
  operands = x.reshape(shape), weight, w_in, w_down, dy.reshape(shape)
  y, dx, dweight, *dweights = both(*(jnp.asarray(a, jnp.float32) for a in operands))
  y, dx = (np.asarray(a).reshape(room, d) for a in (y, dx))
  rows = x[known], expert_R[known][:, None], weight[known][:, None], w_in, w_down
  expected = reference.expert_ffn(*rows), *reference.expert_ffn_gradients(*rows, dy[known])
  actual = y[known], dx[known], np.asarray(dweight)[known][:, None], *dweights
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max(initial=0)))
