"""The decode benchmark at a size of milliseconds, and its figure."""

import json

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.benchmarks import decode
from moe_parity.benchmarks.decode_figure import figure
from tests.helpers import small_model


@pytest.fixture(scope="module")
def result():
  shapes = {"dense": small_model.dense(num_layers=2), "moe_30": small_model.moe(num_layers=2)}
  return decode.run(
    shapes, batches=(1, 9), prefill_batches=(9,), seconds=0.01, context=5, bandwidth_bytes=2**20
  )


def test_every_arm_is_timed_at_every_batch(result):
  json.dumps(result)
  assert [(r["arm"], r["batch"]) for r in result["decode"]] == [
    ("dense", 1), ("moe_30", 1), ("dense", 9), ("moe_30", 9),
  ]  # fmt: skip
  assert [(r["arm"], r["batch"]) for r in result["prefill"]] == [("dense", 9), ("moe_30", 9)]
  for row in result["decode"] + result["prefill"]:
    dense = next(
      r for r in result["decode" if row in result["decode"] else "prefill"]
      if r["arm"] == "dense" and r["batch"] == row["batch"]
    )  # fmt: skip
    assert row["speed_up"] == pytest.approx(dense["seconds"] / row["seconds"])
    assert row["num_calls"] >= 3
  for row in result["decode"]:
    assert row["tokens_per_s"] == pytest.approx(row["batch"] / row["seconds"])
    read = row["weight_bytes"] + row["cache_bytes"]
    share = read / row["seconds"] / result["bandwidth"]
    assert row["share_of_bandwidth"] == pytest.approx(share)
  moe = [r for r in result["decode"] if r["arm"] == "moe_30"]
  np.testing.assert_allclose([r["distinct_experts"] for r in moe], [2, 7 * (1 - (5 / 7) ** 9)])
  assert len(decode.table(result)) == 6


def test_the_arms_have_equal_parameters():
  shapes = decode.arms(decode.NUM_PARAMS["cpu"])
  numbers = [decode._described(shape) for shape in shapes.values()]
  assert next(iter(shapes)) == "dense" and len(shapes) > 2
  sizes = [n["num_params"] for n in numbers]
  assert max(sizes) < 1.003 * min(sizes)


def test_the_computed_curve_falls_with_the_experts_that_are_read(result):
  """At one sequence the lead is the activation rate's; where all experts are read and the cache is
  short, it is gone until arithmetic is what counts."""

  def speed_up(chip, context, batch):
    (row,) = [
      r for r in result["computed"]
      if (r["chip"], r["context"], r["batch"], r["arm"]) == (chip, context, batch, "moe_20")
    ]  # fmt: skip
    return row

  for chip in ("H100", "v5p"):
    one, middle, most = (speed_up(chip, 128, batch) for batch in (1, 32, 4096))
    assert 4 < one["speed_up"] < 5.5 and one["bound"] == "bytes" and one["fits"]
    assert middle["speed_up"] < 1.6
    assert middle["speed_up"] < most["speed_up"]
  assert not speed_up("H100", 2048, 4096)["fits"]


def test_bench_writes_the_numbers_and_the_figure(result, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(decode, "run", lambda: result)
  assert cli.main(["bench", "--only=decode", f"--results={tmp_path}/new"]) == 0
  printed = capsys.readouterr().out
  assert "prefill" in printed and "moe_30" in printed
  written = (tmp_path / "new" / "decode.json").read_text()
  assert json.loads(written) == json.loads(json.dumps(result))
  assert (tmp_path / "new" / "decode.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figure_shows_every_arm_and_chip(result):
  drawing = figure(result)
  for width in (6.6, 3.75):
    left, right = drawing.draw(width).axes
    (measured,) = left.get_legend_handles_labels()[1]
    assert measured.startswith("r_a = ") and measured.endswith("%, measured")
    assert (
      "$" not in right.get_title(loc="left") + right.get_title()
    )  # it would stand there as such
    assert len(right.get_legend_handles_labels()[1]) == 4
  assert drawing.png(3.75)[:4] == b"\x89PNG"
