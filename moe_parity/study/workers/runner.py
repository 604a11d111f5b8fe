"""Runs the arms of a study, on one worker or on several; goes on where they stopped.

A worker takes a run by a claim (`claims`), trains it, and asks again what there is to do, until
nothing is left that it could take. Workers of `--shard=i/n` begin with their own share and then
help with the rest, so none waits while there is work. An arm that fails is recorded with its error
and the others go on; the next start tries it again. What is done is not touched. All a study is
lies in its folder, so a worker may be killed at any moment and started anywhere.
"""

import dataclasses
import pathlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from moe_parity.errors import UserError, disk_is_full
from moe_parity.study import certificate
from moe_parity.study.folder import Arm, Study, Task, tasks_of
from moe_parity.study.workers.leases import DONE, FAILED, STOPPED
from moe_parity.study.workers.shard import Shard
from moe_parity.training import run_folder
from moe_parity.training.loop import Progress, train_arm

TRACE = "failed.txt"
POLL_SECONDS = 5.0  # between looks at what other workers have finished


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What is done with a run; tests put something quicker in its place."""

  train: Callable[..., Any] = train_arm
  certify: Callable[[pathlib.Path], dict] = certificate.certify_run
  recheck: Callable[[pathlib.Path], None] = certificate.recheck_run


def run_study(
  study: Study,
  *,
  only: Sequence[str] = (),
  shard: Shard = Shard(1, 1),  # noqa: B008 - an immutable tuple
  report: Callable[[Task, Progress], None] = lambda task, progress: None,
  say: Callable[[str], None] = print,
  trainer: Trainer = Trainer(),  # noqa: B008 - frozen
) -> list[Arm]:
  """Trains what this worker can get of the study, then certifies each finished run and the parts.

  A staged study's worker waits for arms that others train, since they decide what comes next; a
  plain one's ends when the rest is with other workers.

  Args:
    report: called for every logged step. say: takes a line a run that ended, failed or was taken
      over, and a line for each damaged checkpoint.
  Returns:
    every arm of the study with its status; a failed one holds its error.
  """
  while True:
    study.derive()
    tasks = tasks_of(study.parts, only)
    if _train_one(study, shard.order(tasks), report, say, trainer):
      continue
    running = [task.run for task in tasks if study.status(task.run)[0] == "running"]
    if not (study.staged and running):
      break
    time.sleep(POLL_SECONDS)
  for task in tasks:
    if study.status(task.run)[0] == "done":
      _certify(study.folder / task.run, trainer)
  arms = study.write()
  for part in study.parts:
    certificate.certify_study(study.folder / part.folder)
  return arms


def _train_one(study: Study, tasks: list[Task], report, say, trainer: Trainer) -> bool:
  """Takes and trains the first run that is to be had; False if there is none."""
  for task in tasks:
    folder = study.folder / task.run
    if (folder / run_folder.RESULT).exists():
      continue
    claim = study.claims.take(task.run)
    if claim is None:
      continue
    if study.finished(task.run):  # finished by another between the two looks
      claim.release(DONE)
      continue
    if claim.took_over:
      say(f"{task.label}: {claim.took_over}; taking its run over")
    study.write()

    def tell(progress: Progress, claim=claim, task=task) -> None:
      claim.check()
      study.keep(task.run, claim.check, say)
      report(task, progress)

    state, failure = STOPPED, None
    try:
      study.fetch(task.run)
      trainer.train(task.part.config, task.arm, study.store, folder, tell, say)
      _certify(folder, trainer)
      study.deliver(task.run, claim.check, say)
      state = DONE
    except Exception as error:
      if disk_is_full(error) or isinstance(error, BrokenPipeError):
        raise  # no arm's fault: every other would fail of the disk, or of a closed output, as well
      state, failure = FAILED, error
      if not isinstance(error, UserError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACE).write_text(traceback.format_exc())
        study.failed(task.run)
      say(f"{task.label} failed: {error}")
    finally:
      claim.release(state, failure)
    if state == DONE:
      validation = run_folder.read_result(folder)["validation"]
      say(f"{task.label}: done, {validation['bpc']:.4f} bits per character")
    study.write()
    return True
  return False


def _certify(folder: pathlib.Path, trainer: Trainer) -> None:
  """Recounts a run; one that was recounted since it finished is held against its hashes."""
  told, result = folder / certificate.CERTIFICATE, folder / run_folder.RESULT
  if not told.exists() or told.stat().st_mtime_ns < result.stat().st_mtime_ns:
    trainer.certify(folder)
  else:
    trainer.recheck(folder)
