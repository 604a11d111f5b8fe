"""Real workers as processes, for tests: started, watched by what they write, and signalled.

How long a test waits depends on what its processes compute, not on a clock: other work on the same
machine makes a worker many times slower, and a worker that hangs computes next to nothing.
"""

import contextlib
import json
import math
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time

MOST_CPU_SECONDS = 600  # of a process and its children; the runs of these tests take about 20
MOST_IDLE_SECONDS = 240  # in which all processes together compute less than ...
LEAST_CPU_SECONDS = 0.5
ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = [
  f"--config={ROOT}/configs/demo.py:tiny", "--config.budget.dense_tokens=20000",
  "--config.train.log_every=1", "--config.train.save_every=1000", "--config.train.eval_every=0",
  "--config.evaluation.max_tokens=500",
]  # fmt: skip


def start(cache, *words, devices=1, **variables) -> subprocess.Popen:
  """A started command of moe-parity; TINY is a run of some seconds.

  Where MOE_PARITY_TEST_CACHE is set it stands in for `cache`: for tests that run many times.
  """
  environment = os.environ | {
    "MOE_PARITY_CACHE": os.environ.get("MOE_PARITY_TEST_CACHE", str(cache)),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
  }
  return subprocess.Popen(
    [sys.executable, "-m", "moe_parity.cli", *words], env=environment | variables, cwd=ROOT,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def without_jax(*words) -> str:
  """What a command of moe-parity prints; fails if it loads JAX or what builds on it."""
  code = (
    f"import sys; from moe_parity import cli; cli.main({list(words)!r});"
    "assert not [m for m in sys.modules if m.split('.')[0] in ('jax', 'flax', 'orbax', 'grain')]"
  )
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  ).stdout


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
  return sum(_ticks(process.pid)[:2]) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> list[int]:
  """utime, stime, and those of its children that it has waited for; zeros where it is gone."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return [0, 0, 0, 0]
  return [int(word) for word in stat.rpartition(")")[2].split()[11:15]]


def _ticks_of_tree(pid: int) -> int:
  """What a process and all below it have computed."""
  below = []
  for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):  # each thread has its own
    with contextlib.suppress(OSError):
      below += path.read_text().split()
  return sum(_ticks(pid)) + sum(_ticks_of_tree(int(child)) for child in below)


class Patience:
  """Says when processes have had enough: too much computed, or next to nothing for minutes.

  A worker that waits for another one is given MOST_IDLE_SECONDS, which is more than any wait of the
  package; where a machine is so busy that a process gets less than a five-hundredth of a core, that
  is taken for hanging.
  """

  def __init__(self, processes):
    self._processes = processes
    self._since, self._computed = time.monotonic(), -1.0

  def is_over(self) -> bool:
    """To be asked at least once in MOST_IDLE_SECONDS."""
    ticks = [_ticks_of_tree(process.pid) for process in self._processes]
    each = [count / os.sysconf("SC_CLK_TCK") for count in ticks]
    if abs(sum(each) - self._computed) > LEAST_CPU_SECONDS:
      self._since, self._computed = time.monotonic(), sum(each)
    return (
      max(each, default=0) > MOST_CPU_SECONDS or time.monotonic() - self._since > MOST_IDLE_SECONDS
    )


def wait_until(fact, *processes):
  """Returns when `fact()` holds; fails where a process ended first."""
  patience = Patience(processes)
  while not fact():
    for process in processes:
      assert process.poll() is None, process.communicate()[0]
    if patience.is_over():
      for process in processes:
        process.kill()
      raise AssertionError("\n---\n".join(process.communicate()[0] for process in processes))
    time.sleep(0.01)


def end(process, seconds: float = math.inf) -> tuple[int, str]:
  """(exit code, output) of a process that ends by itself, at the latest after `seconds`."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  patience, until = Patience([process]), time.monotonic() + seconds
  try:
    while True:
      try:
        output = process.communicate(timeout=1)[0]
        break
      except subprocess.TimeoutExpired:
        if patience.is_over() or time.monotonic() > until:
          raise
  finally:
    process.kill()
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  process.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return process.returncode, output


def end_all(*processes) -> list[tuple[int, str]]:
  """Exit code and output of each; none outlives the test."""
  try:
    return [end(process) for process in processes]
  finally:
    for process in processes:
      process.kill()
