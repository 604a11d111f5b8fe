"""kill -9 while chats are trained on, start again: the run is the one that was never killed."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import chats
from tests.test_training_crash import what_must_agree

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 5  # between checkpoints


def started(*arguments, environment):
  command = [sys.executable, "-m", "moe_parity.cli", *arguments]
  return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def finished(*arguments, environment):
  assert started(*arguments, environment=environment).wait() == 0


def lines(run):
  path = run / "candidates" / "lr0p3_e6" / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  cache = str(tmp_path_factory.mktemp("cache"))
  return os.environ | {"MOE_PARITY_CACHE": cache, "JAX_NUM_CPU_DEVICES": "1"}


@pytest.fixture(scope="module")
def base(environment, tmp_path_factory):
  """A pretrained run that saves and logs often; so do the runs that are made from it."""
  folder = tmp_path_factory.mktemp("base") / "run"
  few = ["--config.budget.dense_tokens=5120", "--config.evaluation.max_tokens=2000"]
  often = [f"--config.train.save_every={STEPS}", "--config.train.log_every=1"]
  config = f"--config={ROOT}/configs/demo.py:tiny"
  arm = ["--arm=moe_20", f"--workdir={folder}", "--config.model.bias_update_rate=0.001"]
  finished("train", config, *arm, *few, *often, environment=environment)
  return folder


def test_a_killed_run_ends_bit_equal_to_one_never_killed(base, environment, tmp_path):
  data = chats.write(tmp_path / "chats.jsonl", chats.chats(60))
  command = ["sft", str(base), "--data", data, "--too-long=leave-out", "--batch-sequences=4"]
  command += ["--learning-rates=0.3", "--epochs=6"]
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  finished(*command, f"--out={whole}", environment=environment)
  last = lines(whole)
  assert last > 3 * STEPS
  process = started(*command, f"--out={killed}", environment=environment)
  while lines(killed) <= random.Random(0).randrange(STEPS + 1, last - 1) and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert lines(killed) < last and not (killed / "result.json").exists()
  before = (killed / "candidates" / "lr0p3_e6" / "before.json").read_bytes()
  finished(*command, f"--out={killed}", environment=environment)
  expected, found = what_must_agree(whole), what_must_agree(killed)
  assert found["metrics"] == expected["metrics"]
  assert found == expected
  assert (killed / "before.json").read_bytes() == before
  assert json.loads((killed / "certificate.json").read_text())["passed"]
  taking_over_is_mended(killed, command, environment)


def taking_over_is_mended(out, command, environment):
  """A kill while the candidate that was kept is made the run's own folder."""
  result = (out / "result.json").read_bytes()
  for name in ("result.json", "plan.json"):
    (out / name).unlink()
  shutil.rmtree(out / "checkpoints")
  finished(*command, f"--out={out}", environment=environment)
  assert (out / "result.json").read_bytes() == result
  assert json.loads((out / "certificate.json").read_text())["passed"]
