"""Choosing among options by their runs: what is better beyond the noise, and what is not.

The noise is that of `analysis.arms`: the choice of validation documents, paired over options, and
the spread between seeds of the given options. Only these options' runs count, so a selection made
once is made again from the same files, whatever else the study has trained since.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moe_parity.study.analysis import arms as averaged
from moe_parity.study.analysis.statistics import scores_of
from moe_parity.study.analysis.uncertainty import LEVEL, SEED

__all__ = ["LEVEL", "RULE", "SEED", "Selection", "select"]

NOT_DISTINGUISHABLE = "not distinguishable"
RULE = (
  "An option replaces the current one only if its bits per character are lower by more than the"
  " noise (simultaneous 95 % intervals over the options of a stage: validation documents, and seeds"
  " where they repeat); of several such, the lowest is taken, and where options are not"
  " distinguishable the current one stays."
)


@dataclasses.dataclass(frozen=True)
class Selection:
  """Result of a stage; everything in the order of its options.

  Attributes:
    chosen: index of the option taken; the first is the current one.
    tie: another option is not distinguishable from the chosen one.
    bpc: mean over seeds; infinity for an option that diverged.
    difference: to the chosen one. interval: simultaneous, None where there is no noise estimate or
      the option diverged. verdict: chosen, better, worse, not distinguishable or diverged.
  """

  chosen: int
  tie: bool
  bpc: tuple[float, ...]
  difference: tuple[float, ...]
  interval: tuple[tuple[float, float] | None, ...]
  verdict: tuple[str, ...]


def select(options: Sequence[Sequence[dict | None]]) -> Selection:
  """Takes an option by `RULE`.

  Args:
    options: result.json of every seed of each option, in one order of seeds; None for a run that
      diverged.
  """
  converged = [i for i, runs in enumerate(options) if all(_has_converged(run) for run in runs)]
  if not converged:
    none = (math.inf,) * len(options)
    return Selection(0, False, none, none, (None,) * len(options), ("diverged",) * len(options))
  results = [run for i in converged for run in options[i]]
  arm_R = np.repeat(range(len(converged)), [len(options[i]) for i in converged])
  seed_R = np.concatenate([np.arange(len(options[i])) for i in converged])
  arms = averaged.average(scores_of(results, arm_R, seed_R))
  value = np.full(len(options), math.inf)
  value[converged] = arms.value_A
  best = int(value.argmin())
  chosen = 0 if 0 in converged else best
  if chosen != best:
    interval = _against(arms, converged, len(options), chosen)[best]
    if interval is None or interval[1] < 0:
      chosen = best
  intervals = _against(arms, converged, len(options), chosen)
  verdicts = [_verdict(i, chosen, value, intervals) for i in range(len(options))]
  return Selection(
    chosen=chosen,
    tie=NOT_DISTINGUISHABLE in verdicts,
    bpc=tuple(value.tolist()),
    difference=tuple((value - value[chosen]).tolist()),
    interval=tuple(intervals),
    verdict=tuple(verdicts),
  )


def _has_converged(run: dict | None) -> bool:
  return run is not None and math.isfinite(run["validation"]["bpc"])


def _against(
  arms: averaged.Arms, converged: list[int], num_options: int, base: int
) -> list[tuple[float, float] | None]:
  """Simultaneous intervals of option minus base; None without noise, for base and the diverged."""
  intervals: list[tuple[float, float] | None] = [None] * num_options
  others = [a for a, option in enumerate(converged) if option != base]
  for a, row in zip(others, averaged.differences(arms, others, converged.index(base)), strict=True):
    if row.simultaneous is not None:
      intervals[converged[a]] = (row.simultaneous[0], row.simultaneous[1])
  return intervals


def _verdict(i: int, chosen: int, value: np.ndarray, intervals: list) -> str:
  if i == chosen:
    return "chosen"
  if math.isinf(value[i]):
    return "diverged"
  if intervals[i] is None:
    return "worse" if value[i] > value[chosen] else NOT_DISTINGUISHABLE
  if intervals[i][0] > 0:
    return "worse"
  return "better" if intervals[i][1] < 0 else NOT_DISTINGUISHABLE
