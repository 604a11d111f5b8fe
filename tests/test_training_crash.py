"""kill -9 at any moment, start again: the run that comes out is the run that was never killed.

MOE_PARITY_CRASH_RUNS sets how many runs are killed and finished (default 1).
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
KILLS = 2


def command(workdir):
  return [
    sys.executable, "-m", "moe_parity.cli", "train", f"--config={ROOT}/configs/demo.py:tiny",
    "--arm=moe_40", f"--workdir={workdir}", "--config.train.save_every=15",
    "--config.budget.dense_tokens=5120", "--config.evaluation.max_tokens=2000",
    "--config.train.log_every=1", "--config.train.eval_every=40",
    "--config.model.bias_update_rate=0.001",
  ]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  return os.environ | {
    "MOE_PARITY_CACHE": str(tmp_path_factory.mktemp("cache")),
    "JAX_NUM_CPU_DEVICES": "1",
  }


@pytest.fixture(scope="module")
def never_killed(environment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  subprocess.run(command(workdir), check=True, env=environment, stdout=subprocess.DEVNULL)
  return workdir


def lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def what_must_agree(workdir):
  """Everything a run leaves but the times it took."""
  timed = {"seconds", "compile_seconds", "step_seconds", "power", "content_sha256"}
  timed |= {"tokens_per_second", "flops_per_second", "peak_share"}
  metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  result = json.loads((workdir / "result.json").read_text())
  arrays = {}
  for name in ("routing.npz", "ledger.npz", "specialization.npz"):
    with np.load(workdir / name) as file:
      arrays |= {f"{name}:{key}": file[key].tolist() for key in file.files}
  return {
    "metrics": [{k: v for k, v in line.items() if k not in timed} for line in metrics],
    "result": {k: v for k, v in result.items() if k not in timed},
    "arrays": arrays,
  }


@pytest.mark.parametrize("seed", range(int(os.environ.get("MOE_PARITY_CRASH_RUNS", "1"))))
def test_a_killed_run_ends_bit_equal_to_one_never_killed(seed, environment, never_killed, tmp_path):
  rng = random.Random(seed)
  workdir = tmp_path / "run"
  last = lines(never_killed)
  for kill in range(KILLS):
    # Somewhere in the next part of the run; the pause lands it between, in or after a save.
    wait_for = rng.randrange(last * kill // KILLS, last * (kill + 1) // KILLS)
    process = subprocess.Popen(command(workdir), env=environment, stdout=subprocess.DEVNULL)
    while lines(workdir) <= wait_for and process.poll() is None:
      time.sleep(0.002)
    time.sleep(rng.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
  subprocess.run(command(workdir), check=True, env=environment, stdout=subprocess.DEVNULL)
  expected, found = what_must_agree(never_killed), what_must_agree(workdir)
  assert found["metrics"] == expected["metrics"]
  assert found == expected
  certificate = json.loads((workdir / "certificate.json").read_text())
  assert certificate["passed"]
