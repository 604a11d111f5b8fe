"""What every arm of a study costs compared with dense: FLOPs, parameters, bytes and seconds."""

import pathlib

import pytest

from moe_parity.planning.plan import make_plan
from moe_parity.report import tables
from moe_parity.study import reading
from moe_parity.study.analysis import compare
from moe_parity.study.analysis.resources import resources
from tests.helpers import fake_study

A = {"platform": "cpu", "device": "cpu", "num_devices": 1, "cpu": "Kind A", "num_cores": 2}
B = A | {"cpu": "Kind B"}
GPU = {"platform": "gpu", "device": "H100", "num_devices": 2, "cpu": "Kind A", "num_cores": 8}
ARMS = {
  "dense": dict(kind="dense", num_layers=3, d_model=80, d_head=16, multiple_of=1, seeds=(0, 1)),
  "moe_15": dict(
    kind="moe", num_layers=2, d_model=48, d_head=16, d_ffn=44, d_expert=8, multiple_of=2,
    activation_rate=0.15,
  ),
}  # fmt: skip


def study(results, convention="paper"):
  """A study with these results of (arm, seed); others are pending."""
  budget = dict(num_params=200_000, dense_tokens=1_200_000, seq_len=128, convention=convention)
  plan = make_plan({"budget": budget, "arms": ARMS, "data": {"tokenizer": "bytes"}}).to_dict()
  runs = []
  for arm in plan["arms"]:
    result = results.get((arm["name"], arm["seed"]), {})
    status = "done" if result else "pending"
    runs.append(
      reading.RunRecord(arm["name"], arm["seed"], status, "", pathlib.Path(), arm, result, {})
    )
  return reading.StudyRecord(pathlib.Path(), "s", {}, plan, {}, tuple(runs), ())


def result(step_seconds, machine=A, **fields):
  return {"step_seconds": step_seconds, "finished_step": 10, "machine": machine} | fields


def by_name(found):
  return {row["name"]: row for row in found["rows"]}


def test_compute_that_the_convention_hides_is_in_rows_and_words():
  found = resources(study({}), "dense")
  row = by_name(found)["moe_15"]
  assert row["train_flops_ratio"] == pytest.approx(1, abs=0.005)
  assert row["executed_flops_ratio"] == pytest.approx(1.27, abs=0.005)
  assert "this many times the FLOPs of dense: moe_15 1.27." in found["hidden"][0]
  assert row["seconds"] is None and row["seconds_ratio"] is None and found["notes"] == []
  executed = resources(study({}, "executed"), "dense")
  assert not any("matrix product" in line for line in executed["hidden"])


def test_seconds_are_the_median_over_seeds_of_all_steady_steps():
  results = {("dense", 0): result(2.0), ("dense", 1): result(3.0), ("moe_15", 0): result(1.0)}
  found = resources(study(results), "dense")
  rows = by_name(found)
  assert rows["dense"]["seconds"] == 25 and rows["moe_15"]["seconds"] == 10
  assert rows["moe_15"]["seconds_ratio"] == pytest.approx(0.4)
  assert found["notes"] == ["Seconds were measured on Kind A, 2 cores."]


def test_seconds_of_different_machines_are_not_compared():
  results = {("dense", 0): result(2.0), ("moe_15", 0): result(1.0, B)}
  found = resources(study(results), "dense")
  assert by_name(found)["moe_15"]["seconds_ratio"] is None
  (note,) = found["notes"]
  assert "dense on Kind A, 2 cores; moe_15 on Kind B, 2 cores" in note
  mixed = {("dense", 0): result(2.0), ("dense", 1): result(2.0, GPU), ("moe_15", 0): result(1.0)}
  found = resources(study(mixed), "dense")
  assert by_name(found)["moe_15"]["seconds_ratio"] is None
  assert "2 x H100 (Kind A, 8 cores)" in found["notes"][0]


def test_runs_of_earlier_versions_have_seconds_and_no_machine():
  old = {"seconds": 61.5, "finished_step": 10}
  found = resources(study({("dense", 0): old, ("moe_15", 0): old | {"seconds": 82}}), "dense")
  assert by_name(found)["moe_15"]["seconds_ratio"] == pytest.approx(82 / 61.5)
  assert "did not write down their machine" in found["notes"][0]


def test_the_verdict_says_itself_what_the_convention_hides(tmp_path):
  report = compare.analyze(fake_study.write_study(tmp_path / "study"))
  hidden = report["resources"]["hidden"]
  assert hidden and set(hidden) <= set(report["verdict"]["sentences"])
  shown = tables.resources(report).markdown()
  assert "executed FLOPs" in shown and "moe_17" in shown
  assert "N with router, norms" in shown and any("leaves out router" in line for line in hidden)


def test_energy_is_power_times_seconds_or_not_measured():
  measured = {"watts": 50.0, "how": "RAPL of 1 CPU package(s)"}
  stated = {"watts": 65.0, "how": "stated: 1 x 65 W (train.device_watts)"}
  silent = {"watts": None, "how": "not measured: this CPU shows no energy counter"}
  rows = lambda dense, moe: resources(  # noqa: E731
    study({("dense", 0): result(2.0, power=dense), ("moe_15", 0): result(1.0, power=moe)}), "dense"
  )
  found = rows(measured, measured | {"watts": 30.0})
  assert by_name(found)["dense"]["joules"] == 1000 and by_name(found)["moe_15"]["joules"] == 300
  assert by_name(found)["moe_15"]["joules_ratio"] == pytest.approx(0.3)
  assert found["energy_notes"] == [
    "Energy is the seconds times the mean power in training (RAPL of 1 CPU package(s))."
  ]
  mixed = rows(measured, stated)  # two ways of knowing are not compared
  assert by_name(mixed)["moe_15"]["joules_ratio"] is None
  unknown = rows(silent, silent)
  assert by_name(unknown)["dense"]["joules"] is None
  assert "this CPU shows no energy counter" in unknown["energy_notes"][0]
  shown = tables.resources({"resources": unknown}).markdown()
  assert shown.count("not measured") == 2
