"""What a worker says when it leaves: which arms it was asked for, what those that are not planned
yet wait for, and its exit code."""

import time
from collections.abc import Sequence

from moe_parity.launch.exit_codes import FAILED, MEND_INPUT, START_AGAIN, WHOLE
from moe_parity.study.folder import Arm, StudyFolder, tasks_of
from moe_parity.study.workers.runner import POLL_SECONDS


def asked_for(
  study: StudyFolder, arms: Sequence[Arm], only: Sequence[str], runs: Sequence[str]
) -> tuple[list[Arm], list[str]]:
  """(those of the study's arms that this worker was to train, names in `only` that are not planned
  yet, for they wait for tries of learning rates).

  Args:
    only, runs: as for `run_study`.
  """
  tasks = tasks_of(study.comparisons, only)
  folders, planned = runs or {task.run for task in tasks}, {task.arm.name for task in tasks}
  return [arm for arm in arms if arm.folder in folders], [n for n in only if n not in planned]


def others_at_work(study: StudyFolder) -> bool:
  """Whether another worker has a run of the study, of any arm; looks again a little later, for a
  worker may be between two runs."""
  for is_second in (False, True):
    if is_second:
      time.sleep(POLL_SECONDS)
    if any(study.status(task.run)[0] == "running" for task in tasks_of(study.comparisons)):
      return True
  return False


def awaiting(study: StudyFolder, to_come: Sequence[str]) -> tuple[str, bool]:
  """(what arms that are not planned yet wait for, and what to run for it, "" without such arms;
  whether no worker is at it).

  Args:
    to_come: names of the arms.
  """
  if not to_come:
    return "", False
  tries = [task for task in tasks_of(study.comparisons) if task.arm.tunes]
  missing = [
    task for task in tries if task.arm.tunes not in to_come and study.status(task.run)[0] != "done"
  ]
  words, again = f"not planned yet: {', '.join(to_come)}", "run the same command again"
  if not missing:
    return f"{words}; tries of learning rates are not done: {again}", False
  others = list(dict.fromkeys(task.arm.tunes for task in missing))
  words += (
    "; while the grid of learning rates may grow where any arm is best at an end"
    f" (study.grid_extensions={study.config.study.grid_extensions}), all arms try it first, and"
    f" {len(missing)} tries of {', '.join(others)} are left"
  )
  if others_at_work(study):
    return f"{words} to other workers; {again}", False
  return (
    f"{words}, which no worker is at; run the same command without --only, or with"
    f" --only={','.join([*to_come, *others])}, or with --config.study.grid_extensions=0, by which"
    " each arm is compared at the best of its own tries"
  ), True


def exit_code(arms: Sequence[Arm], passed: bool | None, to_come=False, is_alone=False) -> int:
  """What a worker reports to its engine; see `launch.exit_codes`.

  Args:
    arms: those asked for, with their status.
    passed: the study's certificate; None while it is not whole.
    to_come: whether arms were asked for that are not planned yet. is_alone: and no other worker
      trains what they wait for, so that starting again would lead nowhere.
  """
  statuses = [arm.status for arm in arms]
  if "failed" in statuses or passed is False:
    return FAILED
  if to_come and is_alone:
    return MEND_INPUT
  return START_AGAIN if to_come or "pending" in statuses else WHOLE
