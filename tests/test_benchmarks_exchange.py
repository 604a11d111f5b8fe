"""The exchange benchmark, on a shape that takes no time."""

import jax

from moe_parity.benchmarks import exchange


def test_a_row_holds_one_device_and_all_and_their_ratio():
  rows = exchange.run((16, 2, 8, 4), repeats=2, num_tokens=64, skews=(0.5,))
  assert [row["token_dispatch"] for row in rows] == ["all_to_all", "all_gather"]
  for row in rows:
    assert row["devices"] == len(jax.devices()) == 8 and row["tokens"] == 64
    assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert row["one_device_ms"] > 0 and row["all_devices_ms"] > 0
