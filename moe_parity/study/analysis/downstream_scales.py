"""On which scale each benchmark's scores are compared, and what no average takes.

Shares of right answers are one scale, bits per byte of gold answers another; both are averaged.
Any other metric (an error rate, ROUGE up to 100, a difference that may be negative) is a scale of
its own, with its direction, and enters no category and no average.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_parity.downstream import results
from moe_parity.downstream.metrics import is_share

ACCURACY, BITS = "accuracy", "bits_per_byte"
AVERAGED = (ACCURACY, BITS)


@dataclasses.dataclass(frozen=True)
class Scale:
  """What scores are compared on.

  Attributes:
    name: ACCURACY, BITS, or another for a metric that no average has.
    metric: of a task; "" is its main one.
  """

  name: str
  metric: str = ""
  higher_is_better: bool = True

  def turned(self, value: Any) -> Any:
    """A score as a loss, and a loss as a score."""
    if not self.higher_is_better:
      return value
    return 1 - value if self.name == ACCURACY else -value


OF_ACCURACY, OF_BITS = Scale(ACCURACY), Scale(BITS, BITS, False)


def scales_of(
  of_runs: Sequence[Mapping[str, dict]], tasks: Sequence[str]
) -> tuple[dict[Scale, list[str]], list[dict[str, str]]]:
  """(scale -> tasks with a score on it, {task, metric, reason} of main metrics without average).

  Args:
    of_runs: of every run task -> result, with the path of its items' values.
  """
  found: dict[Scale, list[str]] = {OF_ACCURACY: [], OF_BITS: []}
  left_out = []
  for task in tasks:
    metric, stated = of_runs[0][task]["metric"], of_runs[0][task]["scores"]
    values = [results.read_values(of_run[task]["path"]).by_metric for of_run in of_runs]
    if all(BITS in by_metric for by_metric in values):
      found[OF_BITS].append(task)
    if metric == BITS:
      continue
    if not all(metric in by_metric for by_metric in values):
      reason = "it is made of all items at once, so runs have no items to be paired by"
      left_out.append({"task": task, "metric": metric, "reason": reason})
      continue
    higher = stated[metric]["higher_is_better"]
    every = np.concatenate([by_metric[metric] for by_metric in values])
    if higher and is_share(metric, every):
      found[OF_ACCURACY].append(task)
      continue
    reason = "lower is better" if not higher else "it is no share of right answers"
    reason += f" (items score {every.min():g} to {every.max():g}); compared on its own scale"
    left_out.append({"task": task, "metric": metric, "reason": reason})
    name = f"{metric} of {task}" if metric in AVERAGED else metric
    found.setdefault(Scale(name, metric, higher), []).append(task)
  return {scale: members for scale, members in found.items() if members}, left_out


def left_out_lines(part: Mapping[str, Any]) -> list[str]:
  """What to say of the tasks that a state does not compare, and of the metrics that its averages
  leave out."""
  lines = [
    f"{task} is not compared: not every run has a result of it under the same settings; examine"
    " all of the study in one command"
    for task in part.get("not_in_every_run", ())
  ]
  return lines + [
    f"{row['task']}: {row['metric']} is not in averages: {row['reason']}"
    for row in part.get("left_out", ())
  ]


def losses(of_runs: Sequence[Mapping[str, dict]], task: str, scale: Scale) -> np.ndarray:
  """Loss of every run on every item [R, N]. Items of unequal weight count by it."""
  metric = scale.metric or of_runs[0][task]["metric"]
  rows = []
  for of_run in of_runs:
    values = results.read_values(of_run[task]["path"])
    value_N = values.by_metric[metric]
    weight_N = values.weights.get(metric)
    if weight_N is not None:  # so that the plain mean of items is the score
      value_N = value_N * weight_N / weight_N.mean()
    rows.append(scale.turned(value_N))
  return np.array(rows)
