"""The MoE layer benchmark, on a shape that takes no time."""

import numpy as np
import pytest

from moe_parity.benchmarks import moe_layer
from moe_parity.benchmarks.timing import interleaved, ratio


def test_a_row_holds_both_sides_and_their_ratio():
  (row,) = moe_layer.run([(5, 2, 8, 4)], repeats=3, num_tokens=48, skews=(0.0,), dtype="bfloat16")
  assert row["shape"] == "E 5 K 2 D 8 I 4" and row["tokens"] == 48 and row["dtype"] == "bfloat16"
  assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
  flops = 18 * 48 * 2 * 8 * 4
  for side in ("dense", "moe"):
    rate = row[f"{side}_gflops_per_second"]
    assert rate == pytest.approx(flops / (row[f"{side}_ms"] / 1e3) / 1e9)


def test_routing_draws_distinct_experts_and_skew_raises_max_load():
  rng = np.random.default_rng(0)
  shape = moe_layer.Shape(24, 3, 8, 4)
  largest = []
  for skew in (0.0, 1.0):
    expert, gate = moe_layer.draw_routing(shape, 4000, skew, rng)
    assert all(len(set(row)) == 3 for row in expert.tolist())
    np.testing.assert_allclose(gate.sum(axis=1), 1, rtol=1e-5)
    largest.append(np.bincount(expert.reshape(-1)).max())
  assert largest[0] < 600 < largest[1]  # the mean is 500


def test_competitors_take_turns():
  order = []
  samples = interleaved(
    {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 4, seconds_per_sample=0.0
  )
  # Two warm-ups and one timed call each, then turns.
  assert "".join(order) == "aaabbb" + "ab" * 4
  assert len(samples["a"]) == len(samples["b"]) == 4


def test_a_ratio_compares_neighbors():
  samples = {"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 1.0]}
  assert ratio(samples, "slow", "fast") == {"ratio": 3.0, "ratio_min": 2.0, "ratio_max": 4.0}
