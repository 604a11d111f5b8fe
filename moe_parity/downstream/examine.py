"""Examines a run on a task: from items to scores with intervals, cached and resumable."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from moe_parity.downstream import metrics, prompts, results
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.generation import generated
from moe_parity.downstream.request_nats import RequestNats
from moe_parity.downstream.results import ResultFile, Values
from moe_parity.downstream.sandbox import passes
from moe_parity.downstream.tasks import BenchmarkTask
from moe_parity.errors import UserError

SAVE_SECONDS = 20.0  # between saves of a task that is under way
Report = Callable[[str], None]


def examine(examinee: Examinee, task: BenchmarkTask, report: Report = lambda line: None) -> dict:
  """The result of a task: what `results` reads and writes, from the cache where it is there.

  Keys: task, source, category, benchmark, kind, metric (the main one), num_shots, num_items,
  scores (metric -> value, interval, chance, against_chance), majority, num_cut (items whose prompt
  did not fit the window whole), share_cut (of prompt tokens), seconds.

  Raises:
    UserError: generated programs may not be run; see `Likelihood.score`, `Generator.generate`.
  """
  whole = len(task.items)
  task = task.limited(examinee.settings.limit)
  if task.metric == "pass_at_1" and not examinee.settings.run_code:
    raise UserError(
      f"{task.name} runs programs that the model writes; --run-code allows it, in a process of its"
      " own with limits: read docs/downstream.md first, or leave the task out"
    )
  place = ResultFile(examinee.folder, task.name, {"task": task.fingerprint, **examinee.key})
  if found := place.read():
    report(f"{task.name}: examined before ({place.json.name})")
    return found
  start = time.perf_counter()
  by_text = task.kind == "generate"
  values, facts = (_by_text if by_text else _by_likelihood)(examinee, task, place, report)
  names = values.by_metric
  chance = {name: task.chance for name in names if name.startswith("accuracy")}
  result = {
    "task": task.name,
    "source": task.source,
    "category": task.category,
    "benchmark": task.benchmark,
    "kind": task.kind,
    "metric": task.metric,
    "num_shots": task.num_shots,
    "num_items": len(task.items),
    "num_items_of_task": whole,
    "scores": results.scores_of(values, chance),
    "majority": task.majority,
    **facts,
    "seconds": time.perf_counter() - start,
  }
  return place.write(result, values)


def _by_likelihood(
  examinee: Examinee, task: BenchmarkTask, place: ResultFile, report: Report
) -> tuple[Values, dict]:
  if examinee.template:
    task = task.in_chats()
  requests, item_R = prompts.requests(task, examinee.tokenizer, examinee.template)
  saved, latest = time.monotonic(), None

  def on_batch(scores: RequestNats) -> None:
    nonlocal saved, latest
    latest = scores
    if time.monotonic() - saved > SAVE_SECONDS:
      place.write_part(scores)
      report(f"{task.name}: {_progress(scores)}")
      saved = time.monotonic()

  def resume(number: int) -> RequestNats:
    scores = place.read_part(number)
    if not np.isnan(scores.nats).all():
      report(f"{task.name} resumes: {_progress(scores)}")
    return scores

  try:
    scores = examinee.likelihood.score(requests, resume, on_batch)
  except KeyboardInterrupt:
    if latest is not None:
      place.write_part(latest)
    raise
  tokens_R = np.array([len(request.continuation) for request in requests])
  by_metric = metrics.of_choices(task, scores.nats, tokens_R)
  if task.kind == "gold":
    by_metric["greedy"] = scores.is_greedy.astype(float)
  lengths_R = np.array([len(request.context) for request in requests])
  names = tuple(item.name for item in task.items)
  return Values(names, by_metric), _cut(scores.num_cut, lengths_R, item_R)


def _progress(scores: RequestNats) -> str:
  return f"{np.count_nonzero(~np.isnan(scores.nats))} of {len(scores.nats)} requests scored"


def _by_text(
  examinee: Examinee, task: BenchmarkTask, place: ResultFile, report: Report
) -> tuple[Values, dict]:
  texts, num_cut, lengths = generated(examinee, task, report)
  if task.metric == "pass_at_1":
    found = [passes(item, text) for item, text in zip(task.items, texts, strict=True)]
  else:
    found = [
      metrics.of_text(task.metric, item, text) for item, text in zip(task.items, texts, strict=True)
    ]
  values = Values(tuple(item.name for item in task.items), {task.metric: np.array(found, float)})
  return values, _cut(num_cut, lengths, np.arange(len(texts))) | {"texts": texts[:20]}


def _cut(num_cut_R: np.ndarray, length_R: np.ndarray, item_R: np.ndarray) -> dict:
  return {
    "num_cut": len(np.unique(item_R[num_cut_R > 0])),
    "share_cut": float(num_cut_R.sum() / max(length_R.sum(), 1)),
  }


def cut_line(result: Mapping) -> str:
  """What to say of prompts that did not fit; "" where all did."""
  if not result.get("num_cut"):
    return ""
  if result["share_cut"] is None:
    return f"{result['task']}: the window is shorter than {result['num_cut']} prompts, cut in front"
  return (
    f"{result['task']}: the window is shorter than the prompts of {result['num_cut']} of"
    f" {result['num_items']} items; {100 * result['share_cut']:.1f} % of all prompt tokens were"
    " cut, from the front"
  )
