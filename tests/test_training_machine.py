"""Seconds of a steady step, and the machine they were measured on."""

import json

import pytest

from moe_parity.training import machine
from moe_parity.training.metrics import steady_step_seconds


def logged(folder, rates):
  lines = [
    {"kind": "train", "step": step, "tokens_per_second": rate}
    for step, rate in zip((1, *range(10, 10 * len(rates), 10)), rates, strict=True)
  ]
  lines.insert(1, {"kind": "validation", "step": 1})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def test_a_slow_first_step_or_a_disturbance_changes_nothing(tmp_path):
  folder = logged(tmp_path, [1.0, 50.0, 64.0, 64.0, 3.0, 64.0])
  assert steady_step_seconds(folder, 128) == pytest.approx(2.0)


def test_a_run_of_one_logged_step_is_timed_by_it(tmp_path):
  assert steady_step_seconds(logged(tmp_path, [16.0]), 128) == 8.0


def test_a_machine_is_named_by_its_processor_and_devices(tmp_path):
  found = machine.machine(4)
  assert (found["platform"], found["num_devices"]) == ("cpu", 4)
  assert found["device"] and found["num_cores"] > 0
  info = tmp_path / "cpuinfo"
  info.write_text("processor\t: 0\nmodel name\t: Kind A @ 2.0GHz\n")
  assert machine.cpu_name(info) == "Kind A @ 2.0GHz"
  assert isinstance(machine.cpu_name(tmp_path / "none"), str)
