"""A file system that is really full, at every stage of a run: a small one of the campaign's own."""

import contextlib
import dataclasses
import functools
import importlib
import os
import pathlib
import random
import shutil
import subprocess

from moe_parity.study.workers import leases
from tests.campaign import runs
from tests.campaign.outcomes import LOST, NAMED, Injection, command, judge

SIZE = 128 << 20  # room for a token store of the built-in text, and its making


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
  """Runs on a disk that becomes full when a stage of the run begins.

  Args:
    files: a `FileDamage`, for its study and what is expected of it.
    scratch: an empty folder, where small disks are mounted.
  """

  def __init__(self, files, scratch: pathlib.Path):
    self.files, self.expected, self.scratch, self.number = files, files.expected, scratch, 0
    scratch.mkdir()

  def inject(self, rng: random.Random) -> list[Injection]:
    """Runs a command until the disk is full, frees it and runs the command again."""
    self.number += 1
    stage = rng.choice([*STAGES, *ALONE])
    arm, self.disk = rng.choice(runs.ARMS), self.scratch / f"disk_{self.number}"
    with small_disk(self.disk) as is_mounted:  # a new one each: mapped files of one that is gone
      if not is_mounted:  # would still take its space
        return []
      return [self._on_disk(rng, stage, arm)]

  def _on_disk(self, rng: random.Random, stage: str, arm: str) -> Injection:
    place = self.disk / "place"
    place.mkdir()
    self.free = int(rng.random() ** 3 * 100_000)
    if stage == "while the page is analyzed":
      found = self._analyze(place)
    else:
      found = self._train(place, stage, arm, rng)
    shutil.rmtree(place, ignore_errors=True)
    return Injection("a full disk", stage, f"{arm}, {self.free} bytes free", *found)

  def _train(self, place: pathlib.Path, stage: str, arm: str, rng) -> tuple[str, str]:
    run, words = place / "run", runs.train_command(place / "run", arm)
    if stage != "while tokens are prepared" and rng.random() < 0.7:
      shutil.copytree(self.files.unfinished / f"runs/{arm}-s0", run)
    cache = os.environ["MOE_PARITY_CACHE"]
    try:
      if stage == "while tokens are prepared":
        os.environ["MOE_PARITY_CACHE"] = str(place / "cache")
      with self._full(stage, rng):
        done = command(*words)
      return self._freed(done, words, lambda: runs.same_run(run, self.expected[arm]))
    finally:
      os.environ["MOE_PARITY_CACHE"] = cache

  def _analyze(self, place: pathlib.Path) -> tuple[str, str]:
    folder = pathlib.Path(shutil.copytree(self.files.study, place / self.files.study.name))
    self._fill()
    done = self.files._report(folder)
    if done.code == 0:
      return judge(done, lambda: self.files._same_report(folder, done.text), ())
    words = "report", folder, "--json"
    return self._freed(done, words, lambda: self.files._same_report(folder, self._last.text))

  def _freed(self, done, words, same) -> tuple[str, str]:
    """The disk is freed and the command run again: it must end as the reference."""
    outcome, note = judge(done, same, ("the disk is full", "No space left"))
    (self.disk / "ballast").unlink(missing_ok=True)
    if outcome == NAMED:
      with _short_lived():
        self._last = command(*words)
      if not same():
        outcome, note = LOST, f"{note} | {self._last.words[-300:]} {self._last.trace[-300:]}"
    return outcome, note

  @contextlib.contextmanager
  def _full(self, stage: str, rng: random.Random):
    """Within, the disk becomes full at a random one of the first calls that begin the stage."""
    with _short_lived():
      if stage in ALONE:
        self._fill()
        yield
        return
      module, name = STAGES[stage]
      holder = _holder(module)
      before, left = getattr(holder, name), [rng.randrange(1, 4 if stage in REPEATED else 2)]

      @functools.wraps(before)
      def begins(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
          self._fill()
        return before(*args, **kwargs)

      setattr(holder, name, begins)
      try:
        yield
      finally:
        setattr(holder, name, before)

  def _fill(self) -> None:
    left = os.statvfs(self.disk)
    size = max(left.f_bavail * left.f_frsize - self.free, 0)
    with contextlib.suppress(OSError), open(self.disk / "ballast", "wb") as file:
      file.write(b"\1" * size)


STAGES = {  # stage of a run -> the function that it begins with
  "when a run's folder is made": ("moe_parity.training.run_folder", "claim"),
  "while training": ("moe_parity.training.loop", "log_step"),
  "when a checkpoint begins": ("moe_parity.training.checkpoint.Checkpoints", "save"),
  "when a checkpoint gets its name": ("moe_parity.training.checkpoint", "commit"),
  "while a run is scored": ("moe_parity.training.loop", "finish"),
  "when the ledger is written": ("moe_parity.data.ledger.Ledger", "save"),
  "when a run is certified": ("moe_parity.study.certificate", "certify_or_recheck"),
}  # fmt: skip
REPEATED = ("while training", "when a checkpoint begins", "when a checkpoint gets its name")
ALONE = ("from the start", "while tokens are prepared", "while the page is analyzed")


def _holder(name: str):
  """The module or class of this name."""
  module, _, last = name.rpartition(".")
  if last[0].isupper():
    return getattr(importlib.import_module(module), last)
  return importlib.import_module(name)


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
