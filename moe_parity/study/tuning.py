"""Equal effort: every arm, reference and control is compared at its own best of one grid of
learning rates.

With `study.learning_rate_grid`, a method's arms are not trained as they stand. First each is tried
at every rate of the grid, with all its tokens, on `study.tuning_seeds`, which no compared run has:
runs of role "tuning", named `<arm>_lr<rate>`. Then it is trained with its seeds at the rate of
lowest BPC. Where one of the arms known from the start is best at an end of the grid, the grid grows
at that end for all of them, up to `study.grid_extensions` times; so while it may grow, an arm waits
for the tries of all those arms, and then for its own alone. Arms that results add later (controls
of the best MoE arm) try the grid that the first arms ended with, so all have equally many tries. An
arm that is still best at an end is named by the verdict.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from moe_parity.errors import UserError

TUNING = "tuning"  # the role of a try
Score = float | None  # bits per character; infinity: diverged; None: not known yet


@dataclasses.dataclass(frozen=True)
class Grid:
  """What a config says of tuning; no rates: arms are trained as they stand."""

  rates: tuple[float, ...]
  seeds: tuple[int, ...]
  extensions: int

  def grown(self, low: bool, high: bool) -> "Grid":
    """With one more rate at either end, each as far as the last two are apart."""
    rates = self.rates
    if low:
      rates = (_rounded(rates[0] ** 2 / rates[1]), *rates)
    if high:
      rates = (*rates, _rounded(rates[-1] ** 2 / rates[-2]))
    return dataclasses.replace(self, rates=rates)


def _rounded(rate: float) -> float:
  return float(f"{rate:.6g}")


def read_grid(config: ConfigDict) -> Grid:
  """
  Raises:
    UserError: rates that are no rising grid, seeds that compared runs have, checks of learning
      rates in the same study.
  """
  study = config.study
  grid = Grid(
    tuple(float(rate) for rate in study.learning_rate_grid),
    tuple(study.tuning_seeds),
    int(study.grid_extensions),
  )
  if not grid.rates:
    return grid
  if len(grid.rates) < 2 or list(grid.rates) != sorted(grid.rates):
    raise UserError(
      f"study.learning_rate_grid={study.learning_rate_grid}: give at least two rates in"
      " rising order, for example (0.002, 0.004, 0.008)"
    )
  if not grid.seeds:
    raise UserError("study.tuning_seeds=() with a learning_rate_grid; give one seed or more")
  if study.learning_rates or study.batches:
    raise UserError(
      f"study.learning_rates={study.learning_rates}, batches={study.batches} with a"
      " learning_rate_grid, which tunes every arm already; leave them out"
    )
  return grid


def name_of_try(arm: str, rate: float) -> str:
  """moe_20_lr0p004."""
  return f"{arm}_lr{rate:.6g}".replace(".", "p")


def tuned_arms(
  grid: Grid,
  config: ConfigDict,
  first: Iterable[str],
  scores_of: Callable[[dict[str, ConfigDict]], Mapping[str, Score]],
) -> dict[str, ConfigDict]:
  """Tries of all arms, then those arms whose tries are all known, at their best rates.

  Args:
    config: of a comparison, its arms as a method derives them. first: names of those that it has
      without any result.
    scores_of: mean BPC over seeds of each of some tries, by their names.
  """
  check_seeds(grid, config)
  arms = dict(config.arms.items())
  tuned = [name for name, arm in arms.items() if not arm.role]
  names = [name for name in first if name in tuned]
  for extension in range(grid.extensions + 1):
    scores = scores_of(_tries(grid, arms, tuned))
    best = {name: best_rate(grid.rates, _row(grid, name, scores)) for name in tuned}
    if extension == grid.extensions:
      break  # it grows no more
    if any(best[name] is None for name in names):
      return _tries(grid, arms, tuned)
    low, high = (any(best[name] == grid.rates[end] for name in names) for end in (0, -1))
    if not (low or high):
      break
    grid = grid.grown(low, high)
  tries = _tries(grid, arms, tuned)
  for name, arm in arms.items():
    if name not in tuned:
      tries[name] = arm
    elif best[name] is not None:
      fields = arm.to_dict() | {"peak_learning_rate": best[name], "learning_rate_multiplier": 1.0}
      if best.get(fields["active_of"], 0.0) is None:  # that arm is not planned yet, its tries are
        fields["active_of"] = name_of_try(fields["active_of"], grid.rates[0])
      tries[name] = ConfigDict(fields)
  return tries


def check_seeds(grid: Grid, config: ConfigDict) -> None:
  """
  Raises:
    UserError: an arm has a seed that is kept for tuning.
  """
  for name, arm in config.arms.items():
    if shared := sorted(set(arm.seeds or (config.seed,)) & set(grid.seeds)):
      raise UserError(
        f"arm {name!r} has seed {shared[0]}, which study.tuning_seeds={grid.seeds} keeps for trying"
        " learning rates; use other seeds"
      )


def best_rate(rates: Sequence[float], scores: Sequence[Score]) -> float | None:
  """The rate of lowest score, the lower one of two; None while a score is not known."""
  if None in scores:
    return None
  return min(zip(scores, rates, strict=True))[1]


def _row(grid: Grid, name: str, scores: Mapping[str, Score]) -> list[Score]:
  return [scores[name_of_try(name, rate)] for rate in grid.rates]


def _tries(grid: Grid, arms: Mapping[str, ConfigDict], tuned: Sequence[str]) -> dict:
  """Every arm at every rate of the grid."""
  found = {}
  for name in tuned:
    for rate in grid.rates:
      fields = arms[name].to_dict() | {
        "peak_learning_rate": rate, "learning_rate_multiplier": 1.0, "role": TUNING,
        "tunes": name, "seeds": grid.seeds,
      }  # fmt: skip
      if fields["active_of"]:  # any try of that arm has its shape
        fields["active_of"] = name_of_try(fields["active_of"], grid.rates[0])
      found[name_of_try(name, rate)] = ConfigDict(fields)
  return found


def pending_notes(
  config: ConfigDict, comparisons: Sequence[Any], on_paper: bool = False
) -> list[str]:
  """What tuning adds to the runs that are listed, in words.

  Args:
    comparisons: as planned. on_paper: they hold the arms as they stand, without tries.
  """
  grid = read_grid(config)
  if not grid.rates:
    return []
  rates = ", ".join(f"{rate:g}" for rate in grid.rates)
  runs = {run: arm for c in comparisons for arm, run in zip(c.plan.arms, c.runs, strict=True)}
  if not on_paper:
    waiting = [arm for arm in runs.values() if arm.tunes]
    compared = {arm.name for arm in runs.values() if not arm.tunes}
    if left := len({arm.tunes for arm in waiting} - compared):
      return [f"then {left} arms with their seeds, each at its own best of the rates that it tries"]
    return []
  arms = {(arm.name, arm.num_tokens): arm for arm in runs.values() if arm.role != "check"}
  tries = len(arms) * len(grid.rates) * len(grid.seeds)
  flops = sum(arm.train_flops for arm in arms.values()) * len(grid.rates) * len(grid.seeds)
  return [
    f"first {tries} runs more ({flops:.2g} FLOPs): every arm, reference and control tries the"
    f" learning rates {rates} on seed {', '.join(map(str, grid.seeds))} with all its tokens, and is"
    " compared at its best; the rates of the table are not those",
  ]


def mean_score(scores: Iterable[Score]) -> Score:
  """Mean over seeds; None until all are known."""
  values = list(scores)
  return None if None in values else math.fsum(values) / len(values)
