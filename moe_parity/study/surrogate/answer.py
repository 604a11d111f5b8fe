"""A question to the surrogate and its answer: which arms, fitted on which runs."""

import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moe_parity.planning.arm_plan import ComparisonPlan
from moe_parity.study.surrogate import fit, leave_out
from moe_parity.study.surrogate.laws import ArmFeatures
from moe_parity.study.surrogate.rows import published_rows, study_rows


class Question(NamedTuple):
  """Arms to predict.

  Attributes:
    names: of the arms; "" where they have none.
    base: index of the dense arm that the others are compared with; None without one.
  """

  names: list[str]
  arms: ArmFeatures
  base: int | None


def of_plans(plans: Mapping[str, ComparisonPlan]) -> Question:
  """Every arm of the plans of a config's comparisons, by the comparison's name ("" is the first),
  each arm once, and the dense arm at parity among them."""
  once = {
    f"{comparison}/{arm.name}".removeprefix("/"): arm
    for comparison, plan in plans.items()
    for arm in plan.arms
  }
  rows = [
    [
      float(number)
      for number in (
        a.num_params,
        1 if a.kind == "dense" else a.activation_rate,
        a.num_tokens,
        a.epochs,
      )
    ]
    for a in once.values()
  ]
  dense = (i for i, a in enumerate(once.values()) if a.kind == "dense" and a.role == "arm")
  return Question(list(once), ArmFeatures(*zip(*rows, strict=True)), next(dense, None))


def of_numbers(
  num_params: Sequence[float | int],
  activation_rate: Sequence[float | int],
  num_tokens: Sequence[float | int],
  epochs: Sequence[float | int] = (1.0,),
) -> Question:
  """Every combination of the numbers given, the last varying fastest."""
  lists = (map(float, numbers) for numbers in (num_params, activation_rate, num_tokens, epochs))
  rows = list(itertools.product(*lists))
  return Question([""] * len(rows), ArmFeatures(*zip(*rows, strict=True)), None)


def answer(
  question: Question, runs: Sequence[str | pathlib.Path] = (), check: bool = False
) -> dict[str, Any]:
  """What `moe-parity predict --json` prints.

  Args:
    runs: studies or runs to fit instead of the paper's tables, which then lend exponents.
    check: also leave out every size, and every reuse of it, and predict its rows.
  Raises:
    UserError: see `rows.study_rows`.
  """
  names, arms, base = question
  fitted = fit.fit(study_rows(runs), published_rows()) if runs else _published()
  predictions = fitted.predict(arms, names)
  if base is not None:
    for prediction, versus in zip(predictions, fitted.differences(arms, base), strict=True):
      prediction["minus_dense"] = versus or None
  values = {
    "fitted_on": fitted.rows.source,
    "num_rows": len(fitted.rows),
    "form": fitted.form.name,
    "level": fit.LEVEL,
    "arms": predictions,
    "errors": [vars(error) for error in fitted.errors],
  }
  if check:
    lender = published_rows() if runs else None
    values["leave_one_size_out"] = leave_out.leave_one_size_out(fitted.rows, lender)
    values["leave_one_reuse_out"] = leave_out.leave_one_reuse_out(fitted.rows, lender)
  return values


@functools.cache
def _published() -> fit.Surrogate:
  """Fitted on the paper's tables: seconds, and always the same."""
  return fit.fit(published_rows())
