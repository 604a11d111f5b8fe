"""Runs the arms of a study, on one worker or on several; resumes where they stopped.

A worker acquires the lease of a run (`leases`), trains it, and asks again what there is to do,
until nothing is left that it could get. Workers of `--shard=i/n` begin with their own share and
then help with the rest, so none waits while there is work. Before it leaves, a worker watches the
runs of others: it leaves those that show a sign of life and takes over those that show none. An arm
that fails is recorded with its error and the others continue; the next start tries it again. What
is done is not touched. All of a study is in its folder, so a worker may be killed at any moment and
started anywhere.
"""

import dataclasses
import pathlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from moe_parity.errors import Stopped, UserError, disk_is_full
from moe_parity.study import certificate
from moe_parity.study.finetuning import base_of, train_run
from moe_parity.study.folder import Arm, StudyFolder, Task, tasks_of
from moe_parity.study.reading import is_finetuning
from moe_parity.study.workers.leases import (
  DONE,
  FAILED,
  STOPPED,
  Lease,
  LeaseLostError,
  SameNameError,
)
from moe_parity.study.workers.shard import Shard
from moe_parity.training import run_folder
from moe_parity.training.control import RunControl, StopRequests
from moe_parity.training.loop import Progress

TRACE = "failed.txt"
POLL_SECONDS = 5.0  # between looks at what other workers have finished


@dataclasses.dataclass(frozen=True)
class RunActions:
  """What is done with a run; tests put something quicker in its place."""

  train: Callable[..., Any] = train_run
  certify: Callable[[pathlib.Path], dict] = certificate.certify_run
  recheck: Callable[[pathlib.Path], None] = certificate.recheck_run


class _Worker:
  """One worker at one study: what `run_study` was given."""

  def __init__(self, study, on_log, log, actions, stop):
    self.study, self.on_log, self.log = study, on_log, log
    self.actions, self.stop = actions, stop
    self._watched: dict[str, dict] = {}  # run of another worker -> its record when first watched

  def train_one(self, tasks: list[Task]) -> bool:
    """Acquires and trains the first run that is to be had; False if there is none."""
    for task in tasks:
      if (self.study.folder / task.run / run_folder.RESULT).exists():
        continue
      lease = self.study.leases.acquire(task.run)
      if lease is None:
        continue
      if self.study.finished(task.run):  # finished by another between the two looks
        lease.release(DONE)
        continue
      if lease.took_over:
        self.log(f"{task.label}: {lease.took_over}; taking its run over")
      self.study.write()
      self._train(task, lease)
      self.study.write()
      return True
    return False

  def _train(self, task: Task, lease: Lease) -> None:
    state, failure = STOPPED, None
    try:
      self._train_and_certify(task, lease)
      state = DONE
    except SameNameError:
      raise
    except LeaseLostError as error:
      self.log(f"{task.label}: {error}")
      return
    except Exception as error:
      if disk_is_full(error) or isinstance(error, BrokenPipeError):
        raise  # no arm's fault: every other would fail of the disk, or of a closed output, as well
      state, failure = FAILED, error
      self._record_failure(task, lease, error)
    finally:
      lease.release(state, failure)
    if state == DONE:
      validation = run_folder.read_result(self.study.folder / task.run)["validation"]
      self.log(f"{task.label}: done, {validation['bpc']:.4f} bits per character")

  def _train_and_certify(self, task: Task, lease: Lease) -> None:
    folder = self.study.folder / task.run

    def on_log(progress: Progress) -> None:
      self.study.upload_checkpoint(task.run, lease.check, self.log)
      self.on_log(task, progress)

    self.study.fetch(task.run)
    if is_finetuning(task.comparison.name):
      self.study.fetch_checkpoint(base_of(task.run))
    bucket = self.study.bucket_checkpoints(task.run, lease.check, self.log)
    control = RunControl(lease.check, self.stop, bucket)
    run = task.comparison.config, task.arm, self.study.store, folder
    certificate.forget_unfinished(folder)
    try:
      self.actions.train(*run, on_log, self.log, control)
    except Stopped:
      self.study.upload_stopped(task.run, lease.check, self.log)
      raise
    lease.check()
    self.study.fetch_last_checkpoint(task.run)
    certify_or_recheck(folder, self.actions)
    self.study.upload_run(task.run, lease.check, self.log)

  def _record_failure(self, task: Task, lease: Lease, error: Exception) -> None:
    self.log(f"{task.label} failed: {error}")
    try:
      lease.check()
    except LeaseLostError:
      return  # the folder is another's now
    if not isinstance(error, UserError):
      folder = self.study.folder / task.run
      folder.mkdir(parents=True, exist_ok=True)
      (folder / TRACE).write_text("".join(traceback.format_exception(error)))
      self.study.upload_failure(task.run)

  def must_wait(self, tasks: list[Task]) -> bool:
    """Whether a run of another worker is to be watched further before this one may leave.

    A staged study's worker waits for every run, since results decide what comes next; a plain
    one's until each run's worker has shown a sign of life. A run that another worker stopped since
    this one looked for one to train is there to be had: it waits, and looks again.
    """
    statuses = [self.study.status(task.run)[0] for task in tasks]
    running = [task for task, status in zip(tasks, statuses, strict=True) if status == "running"]
    if self.study.staged and running or "pending" in statuses:
      return True
    unproven = []
    for task in running:
      record = self.study.leases.get(task.run)
      if task.run not in self._watched:
        self.log(f"{task.label}: with another worker; waiting for a sign of life from it")
      if self._watched.setdefault(task.run, record) == record:
        unproven.append(task)
    return bool(unproven)


def run_study(
  study: StudyFolder,
  *,
  only: Sequence[str] = (),
  runs: Sequence[str] = (),
  shard: Shard = Shard(1, 1),  # noqa: B008 - an immutable tuple
  on_log: Callable[[Task, Progress], None] = lambda task, progress: None,
  log: Callable[[str], None] = print,
  actions: RunActions = RunActions(),  # noqa: B008 - frozen
  stop: StopRequests | None = None,
) -> list[Arm]:
  """Trains the runs this worker can lease, then certifies each finished run and the comparisons.

  A staged study's worker waits for arms that others train, since they decide what comes next; a
  plain one's leaves when the rest is with workers that are alive.

  Args:
    only, runs: names of arms, folders of runs; those alone are trained. Empty for all.
    on_log: called for every logged step.
    log: takes a line a run that ended, failed or was taken over, and a line for each damaged
      checkpoint.
    stop: says when to stop.
  Returns:
    every arm of the study with its status; a failed one holds its error.
  Raises:
    SameNameError: another worker with this one's name is at work.
    Stopped: as `stop` requires.
  """
  worker = _Worker(study, on_log, log, actions, stop or StopRequests())

  def planned() -> list[Task]:
    return [task for task in tasks_of(study.derive(), only) if not runs or task.run in runs]

  while True:
    tasks = planned()
    if worker.train_one(shard.order(tasks)):
      continue
    if worker.must_wait(tasks):
      time.sleep(POLL_SECONDS)
    elif len(planned()) == len(tasks):  # what another worker finished since may lead to more
      break
  for task in tasks:
    # One that another worker trained to a bucket was certified by it, and its checkpoint is there.
    if study.status(task.run)[0] == "done" and study.has_checkpoint(task.run):
      certify_or_recheck(study.folder / task.run, actions)
  arms = study.write()
  for comparison in study.comparisons:
    certificate.certify_study(study.folder / comparison.folder)
  return arms


def certify_or_recheck(folder: pathlib.Path, actions: RunActions) -> None:
  """Recounts a finished run; one that was recounted before is held against its hashes."""
  if (folder / certificate.CERTIFICATE).exists():
    actions.recheck(folder)
  else:
    actions.certify(folder)
