"""The GPU benchmark with small shapes on a CPU: all parts run, and what goes wrong is a row."""

import importlib.util
import json
import subprocess

import numpy as np
import pytest

from moe_parity.benchmarks import gpu, gpu_layers, gpu_study, torch_reference
from moe_parity.errors import UserError


def test_the_tiny_run_has_every_part_and_no_error(tmp_path):
  rows = gpu.run(tmp_path / "gpu.json", seconds=10_000)
  assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows
  assert [row for row in rows if "error" in row or "skipped" in row] == []
  assert {row["part"] for row in rows} == set(gpu.UNTIL)
  torch = [row for row in rows if row["part"] == "torch"]
  assert ("absent" in torch[0]) == (importlib.util.find_spec("torch") is None)
  numerics = [row for row in rows if row["part"] == "numerics"]
  assert len(numerics) == 8 and all(row["ok"] for row in numerics)
  steps = [row for row in rows if row["part"] == "step"]
  assert all(np.isfinite(row["loss"]) and row["share_of_peak"] > 0 for row in steps)
  assert {row["attention"] for row in steps} == {"blocks"}
  (study,) = [row for row in rows if row["part"] == "study"]
  assert study["exit_code"] == 0
  assert all(np.isfinite(study[f"{arm} bpc"]) for arm in ("dense", "moe_20"))
  assert len(gpu.table(rows)) == len(rows)


def test_steps_take_the_configs_that_came_with_the_package(monkeypatch, tmp_path):
  """A wheel puts them elsewhere than next to its modules."""
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/paper_2b.py").write_text("def get_config(arg):\n  raise UserWarning(arg)\n")
  monkeypatch.setattr(gpu.configs, "shipped", lambda name: tmp_path / name)
  with pytest.raises(UserError, match="UserWarning: tiny"):
    gpu.step("paper_2b", "moe_20", {}, 16, peak=1.0, tiny=True)


def test_a_figure_that_fails_or_comes_too_late_is_a_row(tmp_path):
  recorder = gpu.Recorder(tmp_path / "gpu.json", seconds=100)
  row = recorder.measure("step", "bad", lambda: 1 / 0)
  assert row["error"] == "ZeroDivisionError: division by zero"
  recorder._begin -= 30  # half a minute passes: over for the numerics, not for steps
  assert "skipped" in recorder.measure("numerics", "late", lambda: {"x": 1})
  assert recorder.measure("step", "good", lambda: {"x": 1})["x"] == 1
  stored = json.loads((tmp_path / "gpu.json").read_text())["rows"]
  assert [row["name"] for row in stored] == ["bad", "late", "good"]


def test_a_study_that_fails_or_is_late_says_so(monkeypatch):
  def late(command, timeout, **options):
    raise subprocess.TimeoutExpired(command, timeout)

  def failed(command, **options):
    assert options["env"]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"  # the parent has the memory
    return subprocess.CompletedProcess(command, 2, "", "error: no text")

  monkeypatch.setattr(gpu_study.subprocess, "run", late)
  assert gpu_study.trained(1, tiny=True) == {"exit_code": "stopped"}
  monkeypatch.setattr(gpu_study.subprocess, "run", failed)
  assert gpu_study.trained(1, tiny=True) == {"exit_code": 2, "error": "error: no text"}


def test_a_wrong_attention_is_not_ok():
  """No mask at all, which is what a kernel silently without one would give."""

  def unmasked(q, k, v, slope_H, document_BS):
    k, v = (x.repeat(2, axis=2) for x in (k, v))
    scores = np.float32(q.shape[3] ** -0.5) * (q[:, :, None] * k[:, None]).sum(-1)
    weight = gpu_layers.jax.nn.softmax(scores, axis=2)
    return (weight[..., None].astype(v.dtype) * v[:, None]).sum(2)

  errors = gpu_layers.attention_errors(unmasked, (1, 16, 4, 2, 8), "none", 0)
  assert not errors["ok"] and errors["y"] > 0.1


@pytest.mark.parametrize(
  "found, done, expected",
  [
    (False, None, {"absent": "PyTorch is not installed here"}),
    (True, (1, "", "no kernel image is available"), {"error": "no kernel image is available"}),
    (True, subprocess.TimeoutExpired("python", 7), {"absent": "PyTorch took more than 7 s"}),
  ],
)
def test_a_missing_torch_reference_says_why(monkeypatch, found, done, expected):
  def run(command, **options):
    if isinstance(done, Exception):
      raise done
    return subprocess.CompletedProcess(command, *done)

  monkeypatch.setattr(torch_reference.importlib.util, "find_spec", lambda name: found or None)
  monkeypatch.setattr(torch_reference.subprocess, "run", run)
  assert torch_reference.reference(7) == {"reference": expected}


@pytest.mark.parametrize("ending", ["late", "failed"])
def test_torch_figures_that_were_printed_are_rows(monkeypatch, tmp_path, ending):
  """A process that is stopped or fails halfway, within a line: what is whole is in the file."""
  printed = '{"versions": {"torch": "2"}}\n{"dense FFN": {"ms": 3.0}}\n{"matrix pro'

  def run(command, timeout, **options):
    if ending == "late":
      raise subprocess.TimeoutExpired(command, timeout, output=printed.encode())
    return subprocess.CompletedProcess(command, 1, printed, "no memory")

  monkeypatch.setattr(torch_reference.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(torch_reference.subprocess, "run", run)
  monkeypatch.setattr(gpu, "device", lambda *args: 1.0)
  rows = gpu.run(tmp_path / "gpu.json", seconds=1e-9)  # all time is over, also that of torch
  names = {row["name"]: row for row in rows if row["part"] == "torch"}
  assert names["dense FFN"]["ms"] == 3.0 and len(names) == 3
  assert ("absent" if ending == "late" else "error") in names["reference"]


def test_torch_measures_what_the_benchmark_measures():
  torch = pytest.importorskip("torch")
  figures = dict(torch_reference.measure())
  assert figures["versions"]["torch"] == torch.__version__
  names = [name for name in figures if name.startswith(("scaled_dot", "dense FFN"))]
  assert len(names) >= 2 and all(figures[name]["tflops"] > 0 for name in names)
