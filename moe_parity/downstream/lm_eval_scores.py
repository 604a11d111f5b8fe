"""Scores from what lm-eval says of every item.

A metric whose score is the mean of its items is stored item by item, as those of other tasks are.
Any other (a perplexity, BLEU, F1 or a correlation of all answers) is lm-eval's own number, with an
interval from items drawn anew and aggregated as the task does.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from moe_parity.downstream import intervals, results
from moe_parity.downstream.metrics import LOWER_IS_BETTER, of_label
from moe_parity.downstream.results import Values
from moe_parity.errors import UserError

BITS = "bits_per_byte"
NUM_DRAWS = 200  # of all items; a task's own aggregation may take a second
MOST_SECONDS = 300.0  # for the draws of one metric
Aggregation = Callable[[list], Any]


@dataclasses.dataclass(frozen=True)
class ItemScores:
  """What lm-eval found of one task.

  Attributes:
    values: of items, of metrics that are means of them.
    scores: of all metrics; see `results.scores_of`.
    metric: the main one: the task's first that is a mean of items, or else its first.
    notes: what a reader has to know, a line each.
  """

  values: Values
  scores: dict[str, dict]
  metric: str
  notes: list[str]


def of_samples(
  task: Any, name: str, samples: Sequence[dict], aggregated: Mapping[str, Any]
) -> ItemScores:
  """
  Args:
    samples: lm-eval's, of every item and filter.
    aggregated: lm-eval's own scores, "metric,filter" -> value.
  Raises:
    UserError: the task has no score that is a number.
  """
  filters = list(dict.fromkeys(sample["filter"] for sample in samples))
  first = [s for s in samples if s["filter"] == filters[0]]
  by_metric: dict[str, np.ndarray] = {}
  weights: dict[str, np.ndarray] = {}
  at_once: dict[str, tuple[float, list[float] | None]] = {}
  notes: list[str] = []
  for at in filters:
    rows = [sample for sample in samples if sample["filter"] == at]
    for metric in dict.fromkeys(metric for row in rows for metric in row["metrics"]):
      label = metric if at == "none" else f"{metric} ({at})"
      found = [row[metric] for row in rows if metric in row["metrics"]]
      aggregate, score = _aggregation(task, metric), aggregated.get(f"{metric},{at}")
      is_whole = len(found) == len(rows)
      if is_whole and metric in (BITS, "byte_perplexity") and _are_pairs(found):
        nats, size = np.array(found, float).T
        bits = label.replace(metric, BITS)  # of both the same items: (nats, bytes)
        by_metric[bits], weights[bits] = -nats / (size * math.log(2)), size
      if label in by_metric:
        continue
      if is_whole and _are_averaged(found, score, aggregate):
        by_metric[label] = np.array(found, float)
      elif metric != "bypass" and _is_number(score):
        interval, reason = _redrawn(found, aggregate)
        at_once[label] = float(score), interval
        notes += [f"{name}: {label} has no interval: {reason}"] * bool(reason)
      else:
        notes.append(f"{name}: {label} is no number ({score}) and is not shown")
  if (gold := _gold_bits(task, first)) is not None:
    by_metric.setdefault(BITS, gold)
  labels = list(dict.fromkeys([*by_metric, *at_once]))
  if not labels:
    raise UserError(
      f"{name} has no score that is a number ({', '.join(first[0]['metrics'])}); choose a task that"
      " scores items"
    )
  lower = lower_is_better(task, labels)
  notes += _undeclared(task, name, labels)
  chance = _chance(task, samples)
  scores = results.scores_of(
    Values(tuple(str(s["doc_id"]) for s in first), by_metric, weights),
    {m: chance for m, value_N in by_metric.items() if _is_chosen(m, value_N)},
    lower,
  )
  for label, (value, interval) in at_once.items():
    scores[label] = results.score_at_once(value, interval, label not in lower)
  declared = [label for label in by_metric if label != BITS or gold is None]
  main = next(iter([*declared, *at_once, *by_metric]))
  values = Values(tuple(str(s["doc_id"]) for s in first), by_metric, weights)
  return ItemScores(values, scores, main, notes)


def _aggregation(task: Any, metric: str) -> Aggregation:
  """How a task makes a score of its items; as lm-eval the mean where the task does not say."""
  return task.aggregation().get(metric, np.mean)


def _are_pairs(values: Sequence[Any]) -> bool:
  return all(isinstance(value, tuple | list) and len(value) == 2 for value in values)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float | np.number | np.bool_) and math.isfinite(value)


def _are_averaged(values: Sequence[Any], score: Any, aggregate: Aggregation) -> bool:
  """Whether a score is the mean of the items' values.

  The aggregation is tried on numbers of its own: where all items score 0 a median is a mean too,
  and two runs would disagree on what a metric is.
  """
  if not _is_number(score) or not all(map(_is_number, values)):
    return False
  try:
    is_mean = math.isclose(aggregate([0.0, 1.0, 5.0]), 2.0)
  except Exception:  # a task's own code, on numbers it may not know
    return False
  return is_mean and math.isclose(
    score, np.mean(np.array(values, float)), rel_tol=1e-9, abs_tol=1e-12
  )


def _redrawn(items: list, aggregate: Aggregation) -> tuple[list[float] | None, str]:
  """(percentile interval of an aggregation, items drawn anew with replacement; why there is none).

  Where all draws are equal nothing is known, and no reason is given.
  """
  rng, start = np.random.default_rng(intervals.SEED), time.monotonic()
  drawn: list[float] = []
  for _ in range(NUM_DRAWS if len(items) > 1 else 0):
    if time.monotonic() - start > MOST_SECONDS:
      return None, f"{len(drawn)} of {NUM_DRAWS} draws took {MOST_SECONDS:.0f} s"
    index = rng.integers(0, len(items), len(items))
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = aggregate([items[i] for i in index])
    except Exception as error:  # a task's own code, on fewer distinct items than it may need
      return None, f"it fails on drawn items ({type(error).__name__})"
    if not _is_number(value):
      return None, f"it is {value} on drawn items"
    drawn.append(float(value))
  if not drawn or np.ptp(drawn) == 0:
    return None, ""
  tail = (1 - intervals.LEVEL) / 2
  return np.quantile(drawn, [tail, 1 - tail]).tolist(), ""


def lower_is_better(task: Any, labels: Collection[str]) -> set[str]:
  """Those of the metrics of which the task says so, or where it does not say, the usual ones. A
  perplexity and bits are always among them."""
  known = task.higher_is_better() or {}
  metrics = {label: of_label(label) for label in labels}
  return {
    label
    for label, metric in metrics.items()
    if metric in LOWER_IS_BETTER or known.get(metric) is False
  }


def _undeclared(task: Any, name: str, labels: Collection[str]) -> list[str]:
  """A line for each metric of which neither the task nor its name says which way is better."""
  known = task.higher_is_better() or {}
  metrics = dict.fromkeys(map(of_label, labels))
  return [
    f"{name} does not say which way {metric} is better, so higher is; higher_is_better: false in a"
    " copy of its YAML, given by --include-path, says otherwise"
    for metric in metrics
    if known.get(metric) is None and metric not in LOWER_IS_BETTER
  ]


def _gold_bits(task: Any, samples: Sequence[dict]) -> np.ndarray | None:
  """Bits per byte of the right choice, or of the one text that is scored; None where not every item
  has one right choice."""
  if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
    return None
  found = []
  for sample in samples:
    golds = [0] if task.OUTPUT_TYPE == "loglikelihood" else _golds(task, sample)
    if len(golds) != 1:
      return None
    (nats, *_), (_, text, *_) = sample["filtered_resps"][golds[0]], sample["arguments"][golds[0]]
    found.append(-nats / (len(text.encode()) * math.log(2)))
  return np.array(found)


def _golds(task: Any, sample: dict) -> list[int]:
  """Places of the right choices among an item's, as lm-eval's `process_results` reads them: a text
  is the choice that equals it, also a text of digits."""
  is_context = bool(getattr(task, "multiple_input", 0))  # the choice is of what stands before
  gold = task.doc_to_text(sample["doc"]) if is_context else sample["target"]
  if isinstance(gold, str):
    choices = list(task.doc_to_choice(sample["doc"])) if hasattr(task, "doc_to_choice") else []
    gold = choices.index(gold) if gold in choices else -1
  places = gold if isinstance(gold, list) else [gold]
  number = _num_choices(sample)
  return sorted({int(i) for i in places if isinstance(i, int | np.integer) and 0 <= i < number})


def _num_choices(sample: dict) -> int:
  # With mutual information every choice is asked twice, once without its question.
  return len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)


def _is_chosen(label: str, value_N: np.ndarray) -> bool:
  """Whether a metric says of every item if the choice was right. A task's own may be a probability,
  as that of TruthfulQA with several right answers, and what guessing scores is not known then."""
  named = of_label(label) in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
  return named and set(value_N.tolist()) <= {0.0, 1.0}


def _chance(task: Any, samples: Sequence[dict]) -> float | None:
  """What guessing scores: the mean over items of right choices / choices."""
  if task.OUTPUT_TYPE != "multiple_choice":
    return None
  return float(np.mean([max(len(_golds(task, s)), 1) / _num_choices(s) for s in samples]))
