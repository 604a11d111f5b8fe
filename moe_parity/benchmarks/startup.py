"""Seconds from a command to its answer, in processes of their own."""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from moe_parity.config import shipped

ARMS = ("dense", "moe_20")  # of the demo


def run(repeats: int = 5) -> list[dict]:
  """Seconds from a command to its answer: 250 arms planned; the first loss of a demo arm."""
  many = """
from moe_parity.defaults import base, dense_arm, moe_arm
def get_config(arg=None):
  config = base()
  config.budget.num_params, config.budget.dense_tokens = 2_150_000_000, 65_000_000_000
  config.budget.seq_len, config.budget.batch_multiple = 2048, 8
  config.arms.dense = dense_arm()
  for i in range(249):
    config.arms[f"moe_{i}"] = moe_arm(0.10 + 0.002 * i)
  return config
"""
  rows = []
  # Python caches its bytecode unless this is set, as images of containers often do.
  no_cache = "PYTHONDONTWRITEBYTECODE"
  environment = {name: value for name, value in os.environ.items() if name != no_cache}
  with tempfile.TemporaryDirectory() as folder:
    config = pathlib.Path(folder) / "many.py"
    config.write_text(many)
    command = [sys.executable, "-m", "moe_parity.cli", "plan", f"--config={config}", "--json"]
    seconds = []
    for _ in range(repeats):
      start = time.perf_counter()
      subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
      seconds.append(time.perf_counter() - start)
    rows.append(_seconds("plan of 250 arms", seconds))
    environment["MOE_PARITY_CACHE"] = f"{folder}/cache"
    prepare = [sys.executable, "-m", "moe_parity.cli", "prepare"]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL, env=environment)
    for arm in ARMS:
      for kind, count in (("cold", 3), ("warm", repeats)):
        seconds = []
        for number in range(count):
          if kind == "cold":
            shutil.rmtree(f"{folder}/cache/compiled", ignore_errors=True)
          seconds.append(_first_loss(folder, arm, f"{kind}{number}", environment))
        rows.append(_seconds(f"first loss of demo arm {arm}, {kind} compile cache", seconds))
  return rows


def _seconds(what: str, seconds: list[float]) -> dict:
  median = statistics.median(seconds)
  return {"what": what, "median_s": median, "min_s": min(seconds), "max_s": max(seconds)}


def train_arguments(arm: str, workdir: pathlib.Path) -> list[str]:
  """What starts one run of the demo: an arm of it has several seeds."""
  config = shipped("configs/demo.py")
  return ["train", f"--arm={arm}", "--seed=0", f"--config={config}", f"--workdir={workdir}"]


def _first_loss(folder: str, arm: str, name: str, environment: dict) -> float:
  workdir = pathlib.Path(folder) / f"{arm}-{name}"
  command = [sys.executable, "-m", "moe_parity.cli", *train_arguments(arm, workdir)]
  start = time.perf_counter()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
  metrics = workdir / "metrics.jsonl"
  try:
    while not (metrics.exists() and metrics.stat().st_size):
      if process.poll() is not None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
      time.sleep(0.02)
    return time.perf_counter() - start
  finally:
    process.kill()
    process.wait()
