"""Workers killed, stopped and put to sleep at random moments; then started again."""

import pathlib
import random
import signal
import time

from tests.campaign import runs
from tests.campaign.outcomes import LOST, SURVIVED, TRACEBACK, Injection
from tests.helpers.workers import ROOT, end, start, world

STALE = 8.0  # seconds, in these studies
SECONDS = 240  # for any process
PARALLEL = ["--config.budget.batch_multiple=4", "--config.mesh.data=2"]


class Kills:
  """Real processes, on runs whose undisturbed outcome is known.

  Args:
    expected: arm -> `runs.outcome_of` the reference.
    cache: the cache folder of the processes, with token store and compiled programs.
  """

  def __init__(self, expected: dict, cache: pathlib.Path, scratch: pathlib.Path):
    self.expected, self.cache, self.scratch, self.number = expected, cache, scratch, 0
    self.expected_pair: dict | None = None
    assert ROOT == runs.ROOT

  def _folder(self) -> pathlib.Path:
    self.number += 1
    return self.scratch / f"killed_{self.number}"

  def one_worker(self, rng: random.Random, kills: int = 2) -> list[Injection]:
    """`train`, killed by kill -9 or SIGTERM at random moments, then run to its end."""
    folder, arm = self._folder(), rng.choice(runs.ARMS)
    faults, notes = [], []
    for _ in range(kills):
      process = start(self.cache, *runs.train_command(folder, arm))
      number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
      self._wait(process, folder / "metrics.jsonl", rng)
      process.send_signal(number)
      code, output = end(process, SECONDS)
      faults.append(("one worker", number.name))
      notes += _complaint(number, code, output)
    code, output = end(start(self.cache, *runs.train_command(folder, arm)), SECONDS)
    is_same = code == 0 and runs.same_run(folder, self.expected[arm])
    return _judged(faults, notes, is_same, output)

  def workers(self, rng: random.Random, number: int) -> list[Injection]:
    """A study by several workers: some are killed, one sleeps for longer than it may."""
    folder, faults, notes = self._folder(), [], []
    command = [*runs.study_command(folder), f"--stale-after={STALE}"]
    processes = [start(self.cache, *command, f"--worker=w{i}") for i in range(number)]
    self._wait(processes[0], folder / "runs", rng)
    sleeper = rng.choice(processes)
    sleeper.send_signal(signal.SIGSTOP)
    faults.append((f"{number} workers", "SIGSTOP longer than stale, then SIGCONT"))
    for process in processes:
      if process is not sleeper and rng.random() < 0.5:
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        faults.append((f"{number} workers", "SIGKILL"))
    rescuer = start(self.cache, *command, "--worker=rescuer")
    code, output = end(rescuer, SECONDS)
    sleeper.send_signal(signal.SIGCONT)
    for process in processes:
      _, words = end(process, SECONDS)
      notes += [words[-600:]] if "Traceback" in words else []
    code, output = end(start(self.cache, *command, "--worker=last"), SECONDS)
    is_same = code == 0 and all(
      runs.same_run(folder / f"runs/{arm}-s0", self.expected[arm]) for arm in runs.ARMS
    )
    return _judged(faults, notes, is_same, output)

  def two_processes(self, rng: random.Random) -> list[Injection]:
    """Two jax.distributed processes as one run: one is killed, the other must end by itself."""
    if self.expected_pair is None:
      folder = self._folder()
      for process in self._pair(folder):
        code, output = end(process, SECONDS)
        assert code == 0, output
      self.expected_pair = runs.outcome_of(folder)
    folder, notes = self._folder(), []
    both = self._pair(folder)
    self._wait(both[0], folder / "metrics.jsonl", rng)
    victim = rng.randrange(2)
    both[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    code, output = end(both[1 - victim], SECONDS)
    end(both[victim], SECONDS)
    if code not in (0, 75) or "Traceback" in output or time.monotonic() - begun > 60:
      notes.append(f"the other process: exit {code}: {output[-500:]}")
    ends = [end(process, SECONDS) for process in self._pair(folder)]
    is_same = not any(code for code, _ in ends) and runs.same_run(folder, self.expected_pair)
    return _judged([("two processes of a run", "SIGKILL")], notes, is_same, ends[0][1])

  def _pair(self, folder):
    command = [*runs.train_command(folder, "moe_40"), *PARALLEL]
    return [start(self.cache, *command, *place) for place in world(2)]

  def _wait(self, process, path: pathlib.Path, rng: random.Random) -> None:
    """Until a random moment of a run: while it starts, trains, saves or is scored."""
    if rng.random() < 0.15:
      time.sleep(rng.random() * 4)
      return
    until = time.monotonic() + SECONDS
    while not path.exists() and process.poll() is None and time.monotonic() < until:
      time.sleep(0.02)
    time.sleep(rng.random() ** 2 * 5)


def _complaint(number: signal.Signals, code: int, output: str) -> list[str]:
  """What is wrong with how a signalled worker ended."""
  allowed = {0, 75} if number == signal.SIGTERM else {0, -number}
  return [f"exit {code}: {output[-500:]}"] if code not in allowed or "Traceback" in output else []


def _judged(faults, notes: list[str], is_same: bool, output: str) -> list[Injection]:
  outcome, note = SURVIVED, ""
  if notes:
    outcome, note = TRACEBACK, " | ".join(notes)
  if not is_same:
    outcome, note = LOST, f"{note} | {output[-600:]}"
  return [Injection(f"kills, {group}", kind, kind, outcome, note) for group, kind in faults]
