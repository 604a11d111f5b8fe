"""A file system that is really full, at every stage of a run: a small one of the campaign's own."""

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import subprocess

from moe_parity.study.workers import leases
from tests.campaign import runs
from tests.campaign.outcomes import LOST, NAMED, SURVIVED, Injection, command, judge, worst

SIZE = 8 << 20


def own_mounts() -> bool:
  """Gives this process mounts of its own, before it has threads; False where not permitted."""
  user, group = os.getuid(), os.getgid()
  try:
    if user == 0:
      os.unshare(os.CLONE_NEWNS)
    else:
      os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
      pathlib.Path("/proc/self/setgroups").write_text("deny")
      pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
      pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
  except OSError:
    return False
  private = ["mount", "--make-rprivate", "/"]
  return subprocess.run(private, capture_output=True).returncode == 0


@contextlib.contextmanager
def small_disk(folder: pathlib.Path):
  """A tmpfs of SIZE bytes at `folder`; yields whether it could be mounted."""
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
  is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
  try:
    yield is_mounted
  finally:
    if is_mounted:
      subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FullDisk:
  """Runs on a disk with a random number of free bytes.

  Args:
    unfinished: a study whose runs stopped on their way.
    expected: arm -> `runs.outcome_of` the reference.
  """

  def __init__(self, unfinished: pathlib.Path, expected: dict, disk: pathlib.Path):
    self.unfinished, self.expected, self.disk, self.number = unfinished, expected, disk, 0

  def inject(self, rng: random.Random) -> Injection:
    """Trains on until the disk is full, frees it and trains to the end."""
    self.number += 1
    arm = rng.choice(runs.ARMS)
    run = self.disk / f"run_{self.number}"
    is_new = rng.random() < 0.25
    if not is_new:
      shutil.copytree(self.unfinished / f"runs/{arm}-s0", run)
    free = int(rng.random() ** 2 * 600_000)
    ballast = self.disk / "ballast"
    self._fill(ballast, free)
    with _short_lived():
      done = command(*runs.train_command(run, arm))
    same = lambda: runs.same_run(run, self.expected[arm])  # noqa: E731
    outcome, note = judge(done, same, ("the disk is full", "No space left"))
    ballast.unlink()
    if outcome == NAMED:
      with _short_lived():
        again = command(*runs.train_command(run, arm))
      if not same():
        outcome, note = worst((LOST, f"{note} | {again.words[-300:]} {again.trace[-300:]}"))
    shutil.rmtree(run, ignore_errors=True)
    stage = "before the fault mattered" if outcome == SURVIVED else _stage(free)
    return Injection("a full disk", stage, f"{arm}, {free} bytes free", outcome, note)

  def _fill(self, ballast: pathlib.Path, free: int) -> None:
    left = os.statvfs(self.disk)
    size = max(left.f_bavail * left.f_frsize - free, 0)
    ballast.write_bytes(b"\1" * size)


@contextlib.contextmanager
def _short_lived():
  """Within, leases are those of a process that is gone afterwards, as a command's is: one on a full
  disk cannot be released."""
  before = leases.this_process
  gone = dataclasses.replace(before(), pid=(1 << 22) + 7)  # above the largest there may be
  leases.this_process = lambda: gone
  try:
    yield
  finally:
    leases.this_process = before


def _stage(free: int) -> str:
  return f"less than {100 * (free // 100_000 + 1)} kB free"
