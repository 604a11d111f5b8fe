"""A study's last stage: every trained and fine-tuned run answers the same benchmarks.

It begins when nothing is left to train, and follows from what is finished: each run is examined
under a lease of its own, `downstream/<run>`, so workers share the runs as they share training, and
one that was killed is taken over. Results are in the runs (`downstream/results.py`), where an
interrupted task resumes; `examined.json` beside them says that a run has answered everything.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

from ml_collections import ConfigDict

from moe_parity import files
from moe_parity.downstream import contamination
from moe_parity.downstream.exam import Exam, examine_run, open_exam
from moe_parity.downstream.examinee import Examinee, Settings
from moe_parity.downstream.lm_eval_tasks import identity
from moe_parity.downstream.results import EXAMINED, FOLDER, VERSION
from moe_parity.errors import UserError
from moe_parity.finetuning.seen_chats import seen_chats
from moe_parity.stored import read as stored
from moe_parity.study.analysis import downstream as comparison
from moe_parity.study.folder import StudyFolder
from moe_parity.study.reading import RunRecord
from moe_parity.study.workers.leases import DONE, FAILED, STOPPED

POLL_SECONDS = 5.0  # between looks at what other workers have examined


def is_wanted(config: ConfigDict) -> bool:
  """Whether a study has this stage."""
  return bool(config.downstream.suite or config.downstream.tasks)


def open_study_exam(config: ConfigDict, folder: pathlib.Path) -> Exam | None:
  """The examination that a config asks for; None without this stage. Called before any arm is
  trained, so that a name that is misspelt ends the study at once.

  Raises:
    UserError: see `open_exam`; a task that runs programs.
  """
  if not is_wanted(config):
    return None
  asked = config.downstream
  exam = open_exam(
    asked.tasks,
    asked.suite,
    asked.olmes,
    asked.include_path,
    num_fewshot=None if asked.num_fewshot < 0 else asked.num_fewshot,
    counts_overlap=asked.contamination,
    counted_in=folder,
  )
  for task in exam.tasks:
    if task.metric == "pass_at_1":
      raise UserError(
        f"downstream: {task.name} runs programs that a model writes, which no study does; leave it"
        " out, and use `moe-parity downstream --run-code` on the finished study"
      )
  return exam


def examine_study(study: StudyFolder, exam: Exam, log: Callable[[str], None] = print) -> dict:
  """Examines every finished run that no other worker has, waits for those that others have, and
  writes downstream.json.

  Args:
    log: takes lines on progress.
  Returns:
    what downstream.json holds, and "failed": labels of the runs whose examination failed.
  """
  while True:
    runs = comparison.runs_of(study.folder)
    states = {label: _examined_by_now(study, exam, label, run, log) for label, run in runs}
    if "running" not in states.values():
      break
    time.sleep(POLL_SECONDS)
  marks = {label: _mark(run) for label, run in runs if states[label] == "done"}
  paths = [run.folder / FOLDER / name for label, run in runs if label in marks
           for name in marks[label]["values"]]  # fmt: skip
  found = comparison.write(study.folder, paths, marks) if paths else {"states": {}}
  return found | {"failed": [label for label, state in states.items() if state == FAILED]}


def _examined_by_now(
  study: StudyFolder, exam: Exam, label: str, run: RunRecord, log: Callable[[str], None]
) -> str:
  """done, failed or running (with another worker), after this worker examined the run if it could
  have it."""
  if _is_done(study.config, exam, run):
    return DONE
  key = f"{FOLDER}/{run.folder.resolve().relative_to(study.folder.resolve()).as_posix()}"
  lease = study.leases.acquire(key)
  if lease is None:
    return FAILED if study.leases.get(key).get("state") == FAILED else "running"
  state, failure = STOPPED, None
  try:
    if not _is_done(study.config, exam, run):  # finished by another between the two looks
      log(f"{label}: examined on {len(exam.tasks) + len(exam.lm_eval)} tasks")
      _examine(study.config, exam, run, log)
    state = DONE
  except UserError as error:
    state, failure = FAILED, error
    log(f"{label}: {error}")
  finally:
    lease.release(state, failure)
  return state


def _examine(config: ConfigDict, exam: Exam, run: RunRecord, log: Callable[[str], None]) -> None:
  examinee = Examinee(run.folder, _settings(config, run))
  said = lambda line: None if "examined before" in line else log(line)  # noqa: E731
  results = examine_run(examinee, exam, said, seen_chats)
  files.write_json(
    run.folder / FOLDER / EXAMINED,
    {
      "asked": _asked(config, exam, run),
      "values": [result["values"] for result in results],
      **contamination.of_run(results),
    },
    seal=True,
  )


def _settings(config: ConfigDict, run: RunRecord) -> Settings:
  asked, tuned = config.downstream, bool(run.plan.get("finetuning"))
  return Settings(context=asked.context, limit=asked.limit, chat=asked.chat and tuned)


def _asked(config: ConfigDict, exam: Exam, run: RunRecord) -> dict:
  """What decides whether a run has answered everything."""
  searches_chats = exam.counts_overlap and bool(run.plan.get("finetuning"))
  return {
    "version": VERSION,
    "tasks": [
      *(f"{task.name} {task.fingerprint}" for task in exam.tasks),
      *(identity(task, exam.num_fewshot) for task in exam.lm_eval),
    ],
    "num_fewshot": exam.num_fewshot,
    "counts_overlap": exam.counts_overlap,
    **({"searches_chats": True} if searches_chats else {}),
    **dataclasses.asdict(_settings(config, run)),
  }


def _is_done(config: ConfigDict, exam: Exam, run: RunRecord) -> bool:
  mark = _mark(run)
  there = all((run.folder / FOLDER / name).is_file() for name in mark.get("values", ()))
  return there and mark.get("asked") == json.loads(json.dumps(_asked(config, exam, run)))


def _mark(run: RunRecord) -> dict:
  """examined.json of a run; {} where it has none, or a damaged one."""
  try:
    return stored.read_json(run.folder / FOLDER / EXAMINED)
  except (OSError, UserError):
    return {}
