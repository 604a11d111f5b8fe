"""Workers that start at once: one process imports everything and forks a child for every command.

The children are real processes of their own, which a signal ends or stops; JAX starts in them. What
is saved is the import, some seconds of each start.
"""

import importlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

IMPORTED = (
  "jax", "flax.nnx", "optax", "tensorstore", "orbax.checkpoint", "grain", "tensorboardX",
  "moe_parity.commands.study", "moe_parity.commands.train", "moe_parity.report.page",
  "moe_parity.study.certificate", "moe_parity.study.workers.stop_signals",
  "moe_parity.training.loop",
)  # fmt: skip
POLL_SECONDS = 0.02


class Forks:
  """Starts commands of moe-parity as children of one warm process.

  Args:
    cache: the cache folder of the commands.
    scratch: an empty folder for what they print.
  """

  def __init__(self, cache: pathlib.Path, scratch: pathlib.Path):
    scratch.mkdir(parents=True, exist_ok=True)
    self._scratch = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    environment = os.environ | {
      "MOE_PARITY_CACHE": str(cache),
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      "OPENBLAS_NUM_THREADS": "1",  # no thread before the fork
    }
    self._server = subprocess.Popen(
      [sys.executable, "-m", "tests.campaign.forks"], env=environment, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      cwd=pathlib.Path(__file__).resolve().parents[2],
    )  # fmt: skip
    self._number, self._lock = 0, threading.Lock()

  def start(self, *words: str) -> "Worker":
    """A started command."""
    with self._lock:
      self._number += 1
      output = self._scratch / f"{self._number}.txt"
      output.touch()  # a child that is killed at once has opened nothing
      print(json.dumps([str(output), *map(str, words)]), file=self._server.stdin, flush=True)
      return Worker(int(self._server.stdout.readline()), output)

  def close(self) -> None:
    self._server.stdin.close()
    self._server.wait()


class Worker:
  """A child of the warm process, as `subprocess.Popen` shows one."""

  def __init__(self, pid: int, output: pathlib.Path):
    self.pid, self._output, self.returncode = pid, output, None

  def poll(self) -> int | None:
    path = self._output.with_suffix(".code")
    if self.returncode is None and path.exists():
      self.returncode = int(path.read_text())
    return self.returncode

  def send_signal(self, number: int) -> bool:
    """Whether the process was there to take it."""
    if self.poll() is not None:
      return False
    try:
      os.kill(self.pid, number)
    except ProcessLookupError:
      return False
    return True

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout: float) -> tuple[str, None]:
    """All that it printed, once it ended.

    Raises:
      subprocess.TimeoutExpired: it runs on after `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while self.poll() is None:
      if time.monotonic() > until:
        raise subprocess.TimeoutExpired("a forked command", timeout)
      time.sleep(POLL_SECONDS)
    return self._output.read_text(errors="replace"), None


def serve() -> list[str] | None:
  """Forks a child for every line of the input; in a child, returns the words of its command."""
  for name in IMPORTED:
    importlib.import_module(name)
  outputs: dict[int, pathlib.Path] = {}
  line = b""
  while True:
    ready, _, _ = select.select([0], [], [], POLL_SECONDS)
    if ready:
      data = os.read(0, 1)
      if not data:
        return None
      line += data
      if data != b"\n":
        continue
      output, *words = json.loads(line)
      line = b""
      if not (pid := os.fork()):
        _redirect(output)
        return words
      outputs[pid] = pathlib.Path(output)
      print(pid, flush=True)
    _reap(outputs)


def _reap(outputs: dict[int, pathlib.Path]) -> None:
  """Writes the exit code of every child that ended."""
  while outputs:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if not pid:
      return
    path = outputs.pop(pid).with_suffix(".code")
    path.with_suffix(".part").write_text(str(os.waitstatus_to_exitcode(status)))
    path.with_suffix(".part").rename(path)


def _redirect(output: str) -> None:
  for number, target in ((0, os.devnull), (1, output), (2, output)):
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
    opened = os.open(target, flags, 0o644)
    os.dup2(opened, number)
    os.close(opened)


if __name__ == "__main__":
  if (words := serve()) is not None:
    from moe_parity import cli

    sys.argv = ["moe-parity", *words]
    cli.program()
