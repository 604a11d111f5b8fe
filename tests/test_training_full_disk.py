"""A disk that is really full: a 2 MiB file system of the test's own, where that is permitted."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]


def may_mount(folder) -> bool:
  if shutil.which("unshare") is None:
    return False
  command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
  return subprocess.run(command, capture_output=True).returncode == 0


def test_a_run_that_filled_the_disk_resumes_with_space(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  if not may_mount(disk):
    pytest.skip("no file system of one's own without more rights (unshare, mount)")
  train = [
    sys.executable, "-m", "moe_parity.cli", "train", f"--config={ROOT}/configs/demo.py:tiny",
    "--arm=dense", f"--workdir={disk}/run", "--config.budget.dense_tokens=5120",
    "--config.evaluation.max_tokens=2000", "--config.train.save_every=10",
  ]  # fmt: skip
  # The mount lives as long as the shell, so what has to outlive it is copied out.
  script = """
    mount -t tmpfs -o size=2m tmpfs "$0"
    "$@" > /dev/null 2> "$OUT/first.err"; echo $? > "$OUT/first.status"
    ls "$0/run/checkpoints" > "$OUT/kept"
    mount -o remount,size=64m "$0"
    "$@" > /dev/null 2> "$OUT/second.err"; echo $? > "$OUT/second.status"
    cp "$0/run/result.json" "$0/run/metrics.jsonl" "$OUT"
  """
  environment = os.environ | {
    "OUT": str(tmp_path), "MOE_PARITY_CACHE": str(tmp_path / "cache"), "JAX_NUM_CPU_DEVICES": "1",
  }  # fmt: skip
  subprocess.run([*OWN_MOUNTS, "sh", "-c", script, str(disk), *train], check=True, env=environment)
  said = (tmp_path / "first.err").read_text()
  assert (tmp_path / "first.status").read_text().strip() == "2"
  assert said.startswith("error: the disk is full") and said.count("\n") == 1
  steps = sorted(int(name) for name in (tmp_path / "kept").read_text().split() if name.isdigit())
  assert steps and steps[0] == 10
  assert (tmp_path / "second.status").read_text().strip() == "0"
  result = json.loads((tmp_path / "result.json").read_text())
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  logged = [line["step"] for line in lines if line["kind"] == "train"]
  assert logged == sorted(set(logged)) and logged[-1] == result["finished_step"]
