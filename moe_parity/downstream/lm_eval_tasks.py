"""Examines a run on tasks of lm-eval: its own, or a user's YAML files.

lm-eval builds the prompts, judges the answers and aggregates; what it says of every item becomes a
result like that of any other task, with an interval, the chance level and, where there are choices,
bits per byte of the right one (`lm_eval_scores`).
"""

import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import pathlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from moe_parity import files
from moe_parity.downstream import lm_eval_scores, registry
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.results import ResultFile
from moe_parity.errors import UserError

SCORING = 3  # version of `lm_eval_scores`
PACKAGE = pathlib.Path(__file__).parents[1]
INSTALL = 'pip install "moe_parity[eval]"'


def manager(include_path: tuple[str, ...] = (), needed: frozenset[str] = frozenset()):
  """lm-eval's index of tasks: that of `include_path` where it has all that is needed, otherwise
  with lm-eval's own, whose 15,000 files take a while.

  Raises:
    UserError: lm-eval is not installed, or a folder is none.
  """
  for folder in include_path:
    if not pathlib.Path(folder).is_dir():
      raise UserError(f"--include-path={folder} is no folder; give one with task YAML files")
  if not is_installed():
    raise UserError(f"lm-eval is not installed; {INSTALL}")
  alone = _index(include_path, False)
  return alone if needed <= set(alone.all_tasks) else _index(include_path, True)


@functools.cache
def _index(include_path: tuple[str, ...], include_defaults: bool):
  """Made once for all names that are asked for."""
  from lm_eval.tasks import TaskManager

  logging.getLogger("lm_eval").setLevel(logging.ERROR)
  return TaskManager(include_path=list(include_path), include_defaults=include_defaults)


def skipped_files(include_path: tuple[str, ...]) -> list[str]:
  """Task files that lm-eval's index leaves out without a word, each with the reason."""
  try:
    from lm_eval.tasks._yaml_loader import load_yaml
  except ImportError:  # private to lm-eval; without it no file is named
    return []
  found = []
  for path in sorted(p for folder in include_path for p in pathlib.Path(folder).rglob("*.y*ml")):
    if path.suffix == ".yml":
      found.append(f"{path} was not read: lm-eval reads .yaml files; rename it")
      continue
    try:
      load_yaml(path, resolve_func=False)
    except Exception as error:  # whatever YAML or the file system raises
      words = " ".join(str(error).split())[:160] or type(error).__name__
      found.append(f"{path} was not read: {words}")
  return found


def is_installed() -> bool:
  """Whether lm-eval can be imported."""
  return importlib.util.find_spec("lm_eval") is not None


def load(name: str, include_path: tuple[str, ...] = ()) -> list[Any]:
  """The tasks that a name of lm-eval stands for: itself, or those of a group or tag.

  Raises:
    UserError: its data cannot be had, or its YAML does not make a task.
  """
  index = manager(include_path, frozenset([name]))
  try:
    loaded = index.load([name])
  except Exception as error:  # whatever a hub, a YAML file or a task's own code raises
    words = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"--tasks={name}: lm-eval cannot load it ({words}); without a network only tasks with local"
      " data_files work, or those in a Hugging Face cache"
    ) from error
  return list(loaded["tasks"].values())


def examine(
  examinee: Examinee,
  task: Any,
  num_shots: int | None = None,
  report: Callable[[str], None] = lambda line: None,
) -> dict:
  """The result of an lm-eval task; see `examine.examine` for what it holds.

  Args:
    task: one that `load` gave.
    num_shots: solved examples in a prompt; None as the task has it.
  """
  from moe_parity.downstream.lm_eval_model import LmEvalModel

  name, docs = _name(task), list(task.eval_docs)
  chosen = _limited(len(docs), examinee.settings.limit)
  fingerprint = _fingerprint(task, docs, num_shots)
  place = ResultFile(
    examinee.folder, name, {"lm_eval": fingerprint, "num_shots": num_shots, **examinee.key}
  )
  if before := place.read():
    report(f"{name}: examined before ({place.json.name})")
    return before
  start = time.perf_counter()
  model = LmEvalModel(examinee, report)
  own_shots = task.get_config("num_fewshot")
  try:
    outcome = _evaluate(model, task, name, chosen, num_shots, examinee)
  finally:  # lm-eval writes the number that it used into the task, which is another task then
    task.set_config("num_fewshot", own_shots)
  samples, shots = outcome["samples"][name], outcome["n-shot"].get(name, num_shots)
  if num_shots is not None and shots != num_shots:
    report(f"{name} has {shots} examples in its prompts whatever num_fewshot={num_shots} asks for")
  found = lm_eval_scores.of_samples(task, name, samples, outcome["results"][name])
  for line in found.notes:
    report(line)
  known = registry.of_lm_eval(name)
  result = {
    "task": name,
    "source": "lm-eval",
    "category": known.category if known else "",
    "benchmark": known.name if known else "",
    "kind": task.OUTPUT_TYPE,
    "metric": found.metric,
    "num_shots": shots,
    "num_items": len({sample["doc_id"] for sample in samples}),
    "num_items_of_task": len(docs),
    "scores": found.scores,
    "lm_eval": {k: v for k, v in outcome["results"][name].items() if isinstance(v, (int, float))},
    "majority": None,
    "num_cut": model.num_cut_requests,
    "share_cut": None,
    "seconds": time.perf_counter() - start,
  }
  return place.write(result, found.values)


def questions(task: Any, names: Sequence[str]) -> list[str]:
  """The texts of items with their right answers, to look for in training text."""
  docs = list(task.eval_docs)
  return [_text_of(task, doc) for doc in map(docs.__getitem__, map(int, names))]


def _text_of(task: Any, doc: dict) -> str:
  is_chosen = task.OUTPUT_TYPE == "multiple_choice" and hasattr(task, "doc_to_choice")
  choices = list(task.doc_to_choice(doc)) if is_chosen else []

  def words(value: Any) -> str:  # a number is a choice's, of a question or of an answer
    if isinstance(value, list | tuple):
      return " ".join(map(words, value))
    is_place = isinstance(value, int) and 0 <= value < len(choices)
    return str(choices[value] if is_place else value)

  return f"{words(task.doc_to_text(doc))} {words(task.doc_to_target(doc))}"


def _evaluate(model, task, name, chosen, num_shots, examinee: Examinee) -> dict:
  from lm_eval import simple_evaluate

  try:
    return simple_evaluate(
      model=model,
      tasks=[task],
      num_fewshot=num_shots,
      samples=None if chosen is None else {name: chosen},
      bootstrap_iters=0,
      apply_chat_template=examinee.template is not None,
      confirm_run_unsafe_code=examinee.settings.run_code,
      task_manager=manager(),
    )
  except UserError:
    raise
  except Exception as error:
    if isinstance(error, ValueError) and "unsafe" in str(error).lower():
      raise UserError(
        f"{name} runs programs that the model writes, inside this process; --run-code allows it,"
        " in a container of yours"
      ) from None
    frames = traceback.extract_tb(error.__traceback__)
    if any(pathlib.Path(frame.filename).is_relative_to(PACKAGE) for frame in frames[1:]):
      raise  # of this project, below lm-eval
    words = " ".join(str(error).split())[:200]
    raise UserError(
      f"{name}: the task itself fails ({type(error).__name__}: {words}, in"
      f" {pathlib.Path(frames[-1].filename).name} line {frames[-1].lineno}); mend its YAML or code"
    ) from error


def identity(task: Any, num_shots: int | None = None) -> str:
  """The same for two tasks that ask the same.

  Args:
    num_shots: solved examples in a prompt; None as the task has it.
  """
  return f"{_name(task)} {_fingerprint(task, list(task.eval_docs), num_shots)}"


def _name(task: Any) -> str:
  return task.task_name if hasattr(task, "task_name") else task.config.task


def _limited(number: int, limit: int) -> list[int] | None:
  """Items of a fixed shuffle, the same in every run; None for all."""
  if not limit or limit >= number:
    return None
  order = sorted(range(number), key=lambda i: hashlib.sha256(str(i).encode()).digest())
  return sorted(order[:limit])


def _fingerprint(task: Any, docs: Sequence[dict], num_shots: int | None) -> str:
  """sha256 of the task's configuration, the code it names, its items, those that examples in
  prompts are drawn from, and of the versions of lm-eval and SCORING."""
  from importlib.metadata import version

  own = task.get_config("num_fewshot")
  shots = (
    own if num_shots is None or own == 0 else num_shots
  )  # 0 in a task stays, as lm-eval has it
  examples = list(task.fewshot_docs()) if shots else []
  digest = hashlib.sha256(f"{SCORING} {version('lm_eval')}".encode())
  for value in (task.config.to_dict(keep_callable=True), *docs, *examples):
    digest.update(json.dumps(value, sort_keys=True, default=_plain).encode())
  return digest.hexdigest()


def _plain(value: object) -> str:
  """Text of what JSON does not know; a function by its name and the file it is in, whose other
  functions it may call."""
  value = getattr(value, "func", value)  # of a partial one
  name = getattr(value, "__name__", None)
  if name is None:
    return str(value)
  try:
    return name + files.sha256_of(inspect.getsourcefile(value))
  except (TypeError, OSError):  # a builtin one, or code without a file
    return name
