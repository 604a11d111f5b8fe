"""Real workers as processes, for tests: started, watched by what they write, and signalled."""

import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = [
  f"--config={ROOT}/configs/demo.py:tiny", "--config.budget.dense_tokens=20000",
  "--config.train.log_every=1", "--config.train.save_every=1000", "--config.train.eval_every=0",
  "--config.evaluation.max_tokens=500",
]  # fmt: skip


def start(cache, *words, devices=1, **variables) -> subprocess.Popen:
  """A started command of moe-parity; TINY is a run of some seconds."""
  environment = os.environ | {
    "MOE_PARITY_CACHE": str(cache),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
  }
  return subprocess.Popen(
    [sys.executable, "-m", "moe_parity.cli", *words], env=environment | variables, cwd=ROOT,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def world(number) -> list[list[str]]:
  """The arguments of each of several processes as one run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  given = [f"--coordinator={address}", f"--num-processes={number}"]
  return [[*given, f"--process-id={i}"] for i in range(number)]


def steps(folder) -> list[int]:
  """The steps that a run logged, in the order of its lines."""
  path = pathlib.Path(folder) / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def cpu_seconds(process) -> float:
  """What a process has computed so far, also after its end: no load of the machine changes it."""
  if process.returncode is not None:
    return process.cpu_seconds
  ticks = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
  return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def wait_until(fact, *processes, seconds=300):
  """Returns when `fact()` holds; fails where a process ended first."""
  until = time.monotonic() + seconds
  while not fact():
    for process in processes:
      assert process.poll() is None, process.communicate()[0]
    if time.monotonic() > until:
      for process in processes:
        process.kill()
      raise AssertionError("\n---\n".join(process.communicate()[0] for process in processes))
    time.sleep(0.01)


def end(process, seconds=300) -> tuple[int, str]:
  """(exit code, output) of a process that ends by itself."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  try:
    output = process.communicate(timeout=seconds)[0]
  finally:
    process.kill()
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  process.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return process.returncode, output
