"""Examines a run on tasks of lm-eval: its own, or a user's YAML files.

lm-eval builds the prompts, judges the answers and aggregates; what it says of every item becomes a
result like that of any other task, with an interval, the chance level and, where there are choices,
bits per byte of the right one.
"""

import functools
import hashlib
import importlib.util
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from moe_parity.downstream import registry, results
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.metrics import LOWER_IS_BETTER
from moe_parity.downstream.results import ResultFile, Values
from moe_parity.errors import UserError

INSTALL = 'pip install "moe_parity[eval]"'


@functools.cache
def manager(include_path: tuple[str, ...] = (), needed: frozenset[str] = frozenset()):
  """lm-eval's index of tasks: that of `include_path` where it has all that is needed, otherwise
  with lm-eval's own, whose 15,000 files take a while.

  Raises:
    UserError: lm-eval is not installed, or a folder is none.
  """
  for folder in include_path:
    if not pathlib.Path(folder).is_dir():
      raise UserError(f"--include-path={folder} is no folder; give one with task YAML files")
  try:
    from lm_eval.tasks import TaskManager
  except ImportError:
    raise UserError(f"lm-eval is not installed; {INSTALL}") from None
  logging.getLogger("lm_eval").setLevel(logging.ERROR)
  alone = TaskManager(include_path=list(include_path), include_defaults=False)
  if needed <= set(alone.all_tasks):
    return alone
  return TaskManager(include_path=list(include_path) or None)


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
  fingerprint = _fingerprint(task, docs)
  place = ResultFile(
    examinee.folder, name, {"lm_eval": fingerprint, "num_shots": num_shots, **examinee.key}
  )
  if found := place.read():
    report(f"{name}: examined before ({place.json.name})")
    return found
  start = time.perf_counter()
  model = LmEvalModel(examinee, report)
  outcome = _evaluate(model, task, name, chosen, num_shots, examinee)
  samples, shots = outcome["samples"][name], outcome["n-shot"].get(name, num_shots)
  if num_shots is not None and shots != num_shots:
    report(f"{name} has {shots} examples in its prompts whatever num_fewshot={num_shots} asks for")
  values, others = _values(task, samples, outcome["results"][name])
  if others:
    report(f"{name}: {', '.join(others)} has no score of single items and is not shown")
  chance = _chance(task, samples)
  known = registry.of_lm_eval(name)
  result = {
    "task": name,
    "source": "lm-eval",
    "category": known.category if known else "",
    "benchmark": known.name if known else "",
    "kind": task.OUTPUT_TYPE,
    "metric": next(iter(values.by_metric)),
    "num_shots": shots,
    "num_items": len({sample["doc_id"] for sample in samples}),
    "num_items_of_task": len(docs),
    "scores": results.scores_of(
      values,
      {m: chance for m in values.by_metric if _is_chosen(m)},
      _lower_is_better(task, values.by_metric),
    ),
    "lm_eval": {k: v for k, v in outcome["results"][name].items() if isinstance(v, (int, float))},
    "majority": None,
    "num_cut": model.num_cut_requests,
    "share_cut": None,
    "seconds": time.perf_counter() - start,
  }
  return place.write(result, values)


def questions(task: Any, names: Sequence[str]) -> list[str]:
  """The texts of items, to look for in training text."""
  docs = list(task.eval_docs)
  return [f"{task.doc_to_text(doc)} {task.doc_to_target(doc)}" for doc in map(docs.__getitem__,
          map(int, names))]  # fmt: skip


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
  except ValueError as error:
    if "unsafe" not in str(error).lower():
      raise
    raise UserError(
      f"{name} runs programs that the model writes, inside this process; --run-code allows it,"
      " in a container of yours"
    ) from None


def identity(task: Any) -> str:
  """The same for two tasks that ask the same."""
  return f"{_name(task)} {_fingerprint(task, list(task.eval_docs))}"


def _name(task: Any) -> str:
  return task.task_name if hasattr(task, "task_name") else task.config.task


def _limited(number: int, limit: int) -> list[int] | None:
  """Items of a fixed shuffle, the same in every run; None for all."""
  if not limit or limit >= number:
    return None
  order = sorted(range(number), key=lambda i: hashlib.sha256(str(i).encode()).digest())
  return sorted(order[:limit])


def _fingerprint(task: Any, docs: Sequence[dict]) -> str:
  """sha256 of the task's configuration and items, and lm-eval's version."""
  from importlib.metadata import version

  digest = hashlib.sha256(version("lm_eval").encode())
  for value in (task.dump_config(), *docs):
    digest.update(json.dumps(value, sort_keys=True, default=_plain).encode())
  return digest.hexdigest()


def _plain(value: object) -> str:
  """Text of what JSON does not know; a function by its name, for its address changes."""
  return getattr(value, "__name__", None) or str(value)


def _values(
  task: Any, samples: Sequence[dict], aggregated: Mapping[str, Any]
) -> tuple[Values, list[str]]:
  """(metrics of every item, those that are means of items or ratios of sums over them; the others).

  Perplexities are no such means, and say what bits per byte say.

  Args:
    aggregated: lm-eval's own scores, "metric,filter" -> value: what it makes otherwise than by the
      mean is no score of single items, whatever number it has of each.
  """
  filters = list(dict.fromkeys(sample["filter"] for sample in samples))
  first = [s for s in samples if s["filter"] == filters[0]]
  by_metric: dict[str, np.ndarray] = {}
  weights: dict[str, np.ndarray] = {}
  others: list[str] = []
  for at in filters:
    rows = [sample for sample in samples if sample["filter"] == at]
    for metric in rows[0]["metrics"]:
      label = metric if at == "none" else f"{metric} ({at})"
      found = [row[metric] for row in rows]
      if metric in ("bits_per_byte", "byte_perplexity", "word_perplexity"):
        if metric == "bits_per_byte":
          nats, size = np.array(found, float).T
          by_metric[label], weights[label] = -nats / (size * math.log(2)), size
      elif _are_averaged(found, aggregated.get(f"{metric},{at}")):
        by_metric[label] = np.array(found, float)
      elif metric != "perplexity":
        others.append(label)
  if (gold := _gold_bits(task, first)) is not None:
    by_metric.setdefault("bits_per_byte", gold)
  if not by_metric:
    raise UserError(
      f"{_name(task)} has no score of single items ({', '.join(first[0]['metrics'])}), so it has no"
      " interval; choose a task that scores items"
    )
  return Values(tuple(str(s["doc_id"]) for s in first), by_metric, weights), others


def _are_averaged(values: Sequence[Any], score: Any) -> bool:
  """Whether a score is the mean of the items' values."""
  if not all(isinstance(value, (int, float, bool, np.number)) for value in values):
    return False
  return isinstance(score, (int, float)) and math.isclose(
    score, np.mean(np.array(values, float)), rel_tol=1e-9, abs_tol=1e-12
  )


def _lower_is_better(task: Any, labels: Collection[str]) -> set[str]:
  """Those of the metrics of which the task says so, or where it does not say, the usual ones."""
  known = task.higher_is_better() or {}
  return {
    label
    for label in labels
    if not known.get(metric := label.split(" (")[0], metric not in LOWER_IS_BETTER)
  }


def _gold_bits(task: Any, samples: Sequence[dict]) -> np.ndarray | None:
  """Bits per byte of the right choice, or of the one text that is scored; None where there is none
  or a task marks it otherwise than by its number."""
  if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
    return None
  found = []
  for sample in samples:
    if task.OUTPUT_TYPE == "loglikelihood":
      sample = sample | {"target": 0}
    target = sample["target"]
    target = int(target) if str(target).isdigit() else target
    if not isinstance(target, int) or not 0 <= target < len(sample["arguments"]):
      return None
    nats, text = -sample["filtered_resps"][target][0], sample["arguments"][target][1]
    found.append(nats / (len(text.encode()) * math.log(2)))
  return np.array(found)


def _is_chosen(metric: str) -> bool:
  return metric.split(" ")[0] in ("acc", "acc_norm", "acc_bytes", "exact_match_choice")


def _chance(task: Any, samples: Sequence[dict]) -> float | None:
  if task.OUTPUT_TYPE != "multiple_choice":
    return None
  # With mutual information every choice is asked twice, once without its question.
  asked = [2 if "acc_mutual_info" in sample["metrics"] else 1 for sample in samples]
  return float(
    np.mean([n / len(sample["arguments"]) for n, sample in zip(asked, samples, strict=True)])
  )
