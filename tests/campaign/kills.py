"""Workers killed, stopped and put to sleep at random moments; then started again."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

from tests.campaign import runs
from tests.campaign.forks import Forks, Worker
from tests.campaign.outcomes import LOST, SURVIVED, TRACEBACK, Injection
from tests.helpers import workers
from tests.helpers.workers import world

STALE = 8.0  # seconds, in these studies
SECONDS = 400  # for any process
PARALLEL = [
  "--config.budget.batch_multiple=4", "--config.budget.flops_tolerance=0.02",
  "--config.mesh.data=2",
]  # fmt: skip
LIVES = 6  # of one worker, before it is left alone
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)


class Kills:
  """Real processes, on runs whose undisturbed outcome is known.

  Args:
    expected: arm -> `runs.outcome_of` the reference.
    cache: the cache folder of the processes, with token store and compiled programs.
  """

  def __init__(self, expected: dict, cache: pathlib.Path, scratch: pathlib.Path):
    self.expected, self.scratch, self.number = expected, scratch, 0
    self.expected_pair: dict | None = None
    self.forks = Forks(cache, scratch / "output")
    self.start = self.forks.start

  def _folder(self) -> pathlib.Path:
    self.number += 1
    return pathlib.Path(tempfile.mkdtemp(prefix="killed_", dir=self.scratch)) / "run"

  def one_worker(self, rng: random.Random) -> list[Injection]:
    """`train`, killed by kill -9 or SIGTERM at random moments, then run to its end."""
    folder, arm = self._folder(), rng.choice(runs.ARMS)
    faults, notes = [], []
    for _ in range(LIVES):
      process = self.start(*runs.train_command(folder, arm))
      number, moment = rng.choice(SIGNALS), rng.choice(sorted(MOMENTS))
      wait_for(moment, process, folder, rng)
      was_there = process.send_signal(number)
      code, output = end(process)
      if was_there:
        faults.append(("one worker", f"{number.name}, {moment}"))
        notes += _complaint(number, code, output)
      elif code:
        notes.append(f"exit {code} by itself: {output[-500:]}")
      if (folder / "result.json").exists():
        break
    code, output = end(self.start(*runs.train_command(folder, arm)))
    is_same = code == 0 and runs.same_run(folder, self.expected[arm])
    return self._judged(folder, faults, notes, is_same, output)

  def workers(self, rng: random.Random, number: int) -> list[Injection]:
    """A study by several workers: some are killed, one sleeps for longer than it may."""
    folder, faults, notes = self._folder(), [], []
    command = [*runs.study_command(folder), f"--stale-after={STALE}"]
    processes = [self.start(*command, f"--worker=w{i}") for i in range(number)]
    wait_for(rng.choice(["while training", "while saving"]), processes[0], folder, rng, "runs/*/")
    sleeper = _holder(folder, processes, rng) or rng.choice(processes)
    begun = time.monotonic()
    if sleeper.send_signal(signal.SIGSTOP):
      faults.append((f"{number} workers", "SIGSTOP longer than stale, then SIGCONT"))
    for process in processes:
      if process is not sleeper and rng.random() < 0.6:
        time.sleep(rng.random())
        if process.send_signal(how := rng.choice(SIGNALS)):
          faults.append((f"{number} workers", how.name))
    rescuer = self.start(*command, "--worker=rescuer")
    code, output = end(rescuer)
    time.sleep(max(begun + STALE + 2 - time.monotonic(), 0))
    sleeper.send_signal(signal.SIGCONT)
    for process in processes:
      _, words = end(process)
      notes += [words[-600:]] if "Traceback" in words else []
    code, output = end(self.start(*command, "--worker=last"))
    is_same = code == 0 and all(
      runs.same_run(folder / f"runs/{arm}-s0", self.expected[arm]) for arm in runs.ARMS
    )
    return self._judged(folder, faults, notes, is_same, output)

  def two_processes(self, rng: random.Random) -> list[Injection]:
    """Two jax.distributed processes as one run: one is killed, the other must end by itself."""
    if self.expected_pair is None:
      folder = self._folder()
      ends = [end(process) for process in self._pair(folder)]
      assert not any(code for code, _ in ends), ends
      self.expected_pair = runs.outcome_of(folder)
    folder, notes, faults = self._folder(), [], []
    both = self._pair(folder)
    moment = rng.choice(["while training", "while saving", "after a checkpoint"])
    wait_for(moment, both[0], folder, rng)
    victim = rng.randrange(2)
    if both[victim].send_signal(signal.SIGKILL):
      faults.append(("two processes of a run", f"SIGKILL of process {victim}"))
    begun = time.monotonic()
    code, output = end(both[1 - victim])
    silent = time.monotonic() - begun
    end(both[victim])
    if code not in (0, 75) or "Traceback" in output or silent > 60:
      notes.append(f"the other process: exit {code} after {silent:.0f} s: {output[-500:]}")
    ends = [end(process) for process in self._pair(folder)]
    is_same = not any(code for code, _ in ends) and runs.same_run(folder, self.expected_pair)
    return self._judged(folder, faults, notes, is_same, ends[0][1])

  def _pair(self, folder):
    command = [*runs.train_command(folder, "moe_40"), *PARALLEL]
    return [self.start(*command, *place) for place in world(2)]

  def _judged(self, folder, faults, notes: list[str], is_same: bool, output: str):
    """One outcome for all faults of a run, as only its end shows what they did."""
    outcome, note = SURVIVED, ""
    if notes:
      outcome, note = TRACEBACK, " | ".join(notes)
    if not is_same:
      outcome, note = LOST, f"{note} | {output[-600:]}"
    if outcome == SURVIVED:
      shutil.rmtree(folder.parent)
    return [Injection(f"kills, {group}", kind, kind, outcome, note) for group, kind in faults]


def end(process: Worker) -> tuple[int, str]:
  """(exit code, output) of a process; one that hangs is killed, which its code shows."""
  try:
    return workers.end(process, SECONDS)
  except subprocess.TimeoutExpired:
    return -signal.SIGKILL, process.communicate(SECONDS)[0]


def _lines(folder: pathlib.Path, runs_below: str):
  return sum(path.stat().st_size for path in folder.glob(f"{runs_below}metrics.jsonl"))


def _checkpoints(folder: pathlib.Path, runs_below: str):
  found = folder.glob(f"{runs_below}checkpoints/*")
  return sorted(path.name for path in found if path.name.isdigit())


MOMENTS = {  # the moment of a signal -> what changes when it comes
  "at the start": lambda folder, below: 0,
  "while it compiles": lambda folder, below: [p.stat().st_mtime_ns
                                              for p in folder.glob(f"{below}config.json")],
  "while training": _lines,
  "while saving": lambda folder, below: [p.name for p in folder.glob(f"{below}checkpoints/unf*")],
  "after a checkpoint": _checkpoints,
}  # fmt: skip


def wait_for(moment: str, process: Worker, folder, rng: random.Random, below: str = "") -> None:
  """Until a random moment of a run: what the moment is known by has changed, and some time more."""
  if moment == "at the start":
    time.sleep(rng.random() * 2)
    return
  until, before = time.monotonic() + SECONDS, MOMENTS[moment](folder, below)
  while process.poll() is None and time.monotonic() < until:
    try:
      if MOMENTS[moment](folder, below) != before:
        break
    except FileNotFoundError:  # replaced at this moment
      continue
    time.sleep(0.02)
  longest = 0.05 if moment == "while saving" else 1.5
  time.sleep(rng.random() ** 2 * longest)


def _holder(folder: pathlib.Path, processes: list[Worker], rng: random.Random) -> Worker | None:
  """A worker that has a run by now."""
  pids = set()
  for path in (folder / "leases").rglob("*"):
    try:
      pids.add(json.loads(path.read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
      continue  # a folder, a lock, or replaced at this moment
  holders = [process for process in processes if process.pid in pids]
  return rng.choice(holders) if holders else None


def _complaint(number: signal.Signals, code: int, output: str) -> list[str]:
  """What is wrong with how a signalled worker ended."""
  allowed = {0, 75} if number == signal.SIGTERM else {0, -number}
  return [f"exit {code}: {output[-500:]}"] if code not in allowed or "Traceback" in output else []
