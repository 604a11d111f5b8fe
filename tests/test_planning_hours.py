"""A device by its name: hours at a stated share of its peak, and memory with its attention."""

import json
import pathlib

import pytest

from moe_parity.cli import main
from moe_parity.config import load
from moe_parity.errors import UserError
from moe_parity.planning.hours import hours_rows, peak_flops
from moe_parity.planning.plan import make_plan


def test_hours_are_executed_flops_over_the_stated_rate():
  plan = make_plan(load("configs/demo.py", ["--config.model.dtype=bfloat16"]))
  rows = hours_rows(plan, "h100-8", 0.5, "bfloat16")
  dense = next(row for row in rows if row["arm"] == "dense")
  arm = next(arm for arm in plan.arms if arm.name == "dense")
  assert dense["runs"] == 2  # seeds
  # The demo's budget is executed FLOPs, so C is what a run executes.
  assert dense["hours a run"] == pytest.approx(arm.train_flops / (4 * 989.4e12) / 3600, rel=1e-3)
  assert dense["hours"] == 2 * dense["hours a run"]


def test_slices_and_cards_have_a_peak():
  assert peak_flops("v5p-128", "bfloat16") == 64 * 459e12
  assert peak_flops("t4-2", "float32") == 2 * 8.1e12


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1])
def test_a_share_of_the_peak_is_above_0_and_at_most_1(share):
  plan = make_plan(load("configs/demo.py", []))
  with pytest.raises(UserError, match="at most 1"):
    hours_rows(plan, "h100", share, "float32")


def test_plan_prints_hours_where_a_device_is_named(capsys):
  assert main(["plan", "--config=configs/demo.py", "--topology=l4", "--share=0.25"]) == 0
  assert "hours in all on l4 at 25 % of its peak" in capsys.readouterr().out


@pytest.mark.parametrize("card, gib", [("a100_40gb", 40), ("l4", 24)])
def test_a_plan_for_a_card_is_near_what_was_compiled(capsys, card, gib):
  """Scores of attention in blocks, which cuDNN does not store, would make it twice as much."""
  assert main(["plan", f"--config=configs/single_gpu.py:gib={gib}", f"--topology={card}"]) == 0
  table = capsys.readouterr().out.split("\n\n")[0]
  planned = {line.split()[0]: line.split()[-1] for line in table.splitlines()}
  paths = sorted(pathlib.Path("results/gpu_compiled").glob(f"single_gpu_*_{card}.json"))
  assert paths
  for report in map(json.loads, map(pathlib.Path.read_text, paths)):
    assert float(planned[report["arm"]]) == pytest.approx(
      report["memory"]["total"] / 2**30, rel=0.1
    )


def test_a_device_without_a_table_is_refused(capsys):
  """JSON states no hours: a name there would be ignored."""
  assert main(["plan", "--config=configs/demo.py", "--topology=l4", "--json"]) == 2
  assert "--topology=l4 with --json" in capsys.readouterr().err
