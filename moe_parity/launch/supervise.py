"""Keeps workers of this host running: starts them, restarts them on 75, passes signals on.

For hosts that no engine watches: a machine with GPUs (gpu.sh), the hosts of a TPU slice (tpu.sh).
"""

import argparse
import errno
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from moe_parity.errors import UserError
from moe_parity.launch.commands import say
from moe_parity.launch.exit_codes import (
  FAILED,
  MEND_INPUT,
  START_AGAIN,
  combined,
  meaning,
  signal_of,
)


class Policy(NamedTuple):
  """When to start a worker again.

  A worker that comes back before `quick_seconds` has done nothing, and one that crashed (an abort,
  a fault of memory) may crash there again; after `most_quick` such lives in a row it is given up.
  One that worked before it stopped, or was killed, is started as often.
  """

  quick_seconds: int | float = 60
  most_quick: int = 5
  first_wait: int | float = 5
  longest_wait: int | float = 300


_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class Decision(NamedTuple):
  """What follows a worker's end: `wait` seconds and start it again, or end with `code`."""

  again: bool
  code: int
  wait: int | float
  quick: int
  why: str


def decide(code: int, seconds: int | float, quick: int, policy: Policy) -> Decision:
  """Whether a worker that ended is started again.

  Args:
    code: its exit code, negative where a signal killed it.
    seconds: how long it lived.
    quick: lives in a row before this one that were shorter than `policy.quick_seconds`, or crashed.
  """
  if code != START_AGAIN and not signal_of(code):
    return Decision(False, code, 0, 0, meaning(code))
  crashed = signal_of(code) in _CRASHES
  quick = quick + 1 if crashed or seconds < policy.quick_seconds else 0
  if quick >= policy.most_quick:
    or_crashed = " or crashed" if crashed else ""
    why = (
      f"{meaning(code)}; ended {quick} times in a row within {policy.quick_seconds:g} s of its"
      f" start{or_crashed}, so it is given up; its log says more"
    )
    return Decision(False, FAILED, 0, quick, why)
  wait = min(policy.first_wait * 2 ** max(quick - 1, 0), policy.longest_wait)
  return Decision(True, code, wait, quick, f"{meaning(code)}; started again in {wait:g} s")


class Worker(NamedTuple):
  """A process to keep running. `log` gets its output, appended; None leaves it on the terminal."""

  name: str
  argv: Sequence[str]
  env: Mapping[str, str] = {}
  log: pathlib.Path | None = None


# Linux sends a process the signal it asked for when the thread that started it ends, also when
# that was killed; the wish outlasts exec. Asked for in a program of its own, as code between fork
# and exec may hang where there are threads.
_ASK_AND_EXEC = """
import os, signal, sys
try:
  import ctypes
  ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
except (ImportError, OSError, AttributeError):
  pass  # then it outlives a supervisor that is killed, as on other systems
if os.getppid() != int(sys.argv[1]):
  sys.exit(75)
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
  signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def not_outliving(argv: Sequence[str]) -> list[str]:
  """A command that is sent SIGTERM, and so saves a checkpoint, when this process is killed.

  Raises:
    FileNotFoundError: there is no such program.
  """
  if sys.platform != "linux":
    return list(argv)
  if shutil.which(argv[0]) is None:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
  return [sys.executable, "-SEc", _ASK_AND_EXEC, str(os.getpid()), *argv]


class Supervisor:
  """Keeps some workers running until each has ended for good."""

  def __init__(
    self,
    workers: Sequence[Worker],
    policy: Policy | None = None,
    report: Callable[[str], None] = say,
  ):
    self._workers, self._policy, self._report = workers, policy or Policy(), report
    self._processes: dict[str, subprocess.Popen] = {}
    self._codes: dict[str, int] = {}
    self._stopping = threading.Event()
    self._starting = threading.RLock()  # a signal comes before a start or after it, never within

  def run(self) -> int:
    """Runs until all have ended; the exit code of all as one.

    SIGTERM, SIGUSR1 and Ctrl-C go to every worker, which saves a checkpoint and ends; then none is
    started again. A terminal that is closed (SIGHUP) does the same with SIGTERM, unless the signal
    was ignored from the start, as nohup has it. Workers are in sessions of their own, so that a
    terminal's Ctrl-C reaches them once: a worker that gets a second signal leaves at once. Where
    this process is killed, Linux sends every worker SIGTERM.
    """
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, self._pass_on) for number in numbers}
    try:
      threads = [threading.Thread(target=self._keep, args=(w,)) for w in self._workers]
      for thread in threads:
        thread.start()
      for thread in threads:
        while thread.is_alive():  # in turns, as a signal just before a wait is seen after it
          thread.join(0.5)
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
    return combined(list(self._codes.values()))

  def _pass_on(self, number: int, _frame: object) -> None:
    with self._starting:
      self._stopping.set()
      for process in self._processes.values():
        if process.poll() is None:
          process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

  def _keep(self, worker: Worker) -> None:
    try:
      self._keep_alive(worker)
    except OSError as error:  # no such program, a log that cannot be written
      self._report(
        f"{worker.name} cannot be started: {error.filename or worker.argv[0]}:"
        f" {error.strerror or error}; mend it and start again"
      )
      self._codes[worker.name] = MEND_INPUT

  def _keep_alive(self, worker: Worker) -> None:
    quick = 0
    while True:
      started = time.monotonic()
      code = self._live(worker)
      if self._stopping.is_set():
        self._codes[worker.name] = START_AGAIN if code is None or signal_of(code) else code
        return
      decision = decide(code, time.monotonic() - started, quick, self._policy)
      self._report(f"{worker.name}: {decision.why}")
      if not decision.again:
        self._codes[worker.name] = decision.code
        return
      quick = decision.quick
      self._stopping.wait(decision.wait)

  def _live(self, worker: Worker) -> int | None:
    """One life of a worker: its exit code, None where it was not to be started any more."""
    out = None
    if worker.log:
      worker.log.parent.mkdir(parents=True, exist_ok=True)
      out = worker.log.open("a")
    try:
      with self._starting:
        if self._stopping.is_set():
          return None
        process = self._processes[worker.name] = subprocess.Popen(
          not_outliving(worker.argv),
          env={**os.environ, **worker.env},
          stdin=subprocess.DEVNULL,
          stdout=out,
          stderr=subprocess.STDOUT if out else None,
          start_new_session=True,
        )
      return process.wait()
    finally:
      if out:
        out.close()


HELP = "keeps one command running on this host: starts it again on exit code 75 and after crashes"
EXAMPLE = (
  "python -m moe_parity.launch supervise --name=a-1 --log=a-1.log -- bash launch/local.sh demo"
)


def arguments(parser: argparse.ArgumentParser) -> None:
  """The options, which stand before the command."""
  parser.add_argument("--name", default="worker")
  parser.add_argument(
    "--first-wait", type=float, default=Policy().first_wait, metavar="SECONDS",
    help="before it is started again (5); longer after each life of less than a minute",
  )  # fmt: skip
  parser.add_argument("--log", type=pathlib.Path, metavar="FILE", help="gets its output, appended")
  parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="COMMAND ...")


def run(args: argparse.Namespace) -> int:
  """Keeps the command running; its last exit code."""
  words = args.rest[1:] if args.rest[:1] == ["--"] else args.rest
  if not words:
    raise UserError("supervise: no command to keep running; end with -- COMMAND ...")
  if args.dry_run:
    print(shlex.join(words))
    return 0
  longest = max(args.first_wait, Policy().longest_wait)
  policy = Policy(first_wait=args.first_wait, longest_wait=longest)
  return Supervisor([Worker(args.name, words, {}, args.log)], policy).run()
