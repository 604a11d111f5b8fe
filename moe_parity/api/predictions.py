"""`mp.predict`: what an arm will score before it is trained. Loads no JAX."""

import dataclasses
import numbers
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe_parity.api.plans import Plan, plan
from moe_parity.api.tables import as_table
from moe_parity.errors import UserError
from moe_parity.report import cards
from moe_parity.study.surrogate import answer as surrogate

Numbers = float | int | np.generic | np.ndarray | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Expected bits per character of some arms.

  Attributes:
    answer: all there is to know: fitted_on, num_rows, form, level, arms (inputs, bpc, interval,
      extrapolates, nearest, minus_dense), errors of the forms tried.
  """

  answer: dict[str, Any]

  @property
  def extrapolates(self) -> list[str]:
    """In which way an arm lies outside what was fitted; empty where all lie inside."""
    return [
      f"{arm['name']}: {sentence}" if arm["name"] else sentence
      for arm in self.answer["arms"]
      for sentence in arm["extrapolates"]
    ]

  def table(self) -> Any:
    """One row an arm: inputs, BPC and its interval, the difference to dense and its interval."""
    return as_table(self._rows())

  def _rows(self) -> list[dict[str, Any]]:
    return [_row(arm) for arm in self.answer["arms"]]

  def _repr_html_(self) -> str:
    rows = [{k: v for k, v in row.items() if v is not None and v != ""} for row in self._rows()]
    facts = (
      f"fitted on {self.answer['fitted_on']} ({self.answer['num_rows']} rows)",
      f"form: {self.answer['form']}",
      "extrapolates" if self.extrapolates else "inside the fitted rows",
    )
    full = rows if len({tuple(row) for row in rows}) == 1 else self._rows()
    return cards.card(
      "Expected bits per character", facts, cards.table(full), cards.items(self.extrapolates),
      mood="open" if self.extrapolates else "good",
    )  # fmt: skip


def predict(
  config: str | pathlib.Path | ConfigDict | Plan | None = None,
  *,
  num_params: Numbers = (),
  activation_rate: Numbers = (),
  tokens: Numbers = (),
  epochs: Numbers = 1.0,
  runs: Sequence[str | pathlib.Path] = (),
  check: bool = False,
) -> Prediction:
  """Expected bits per character of arms before they are trained, with an interval of 95 %.

      mp.predict("configs/paper_7b.py")
      mp.predict(num_params=2e9, activation_rate=[0.1, 0.2, 1], tokens=40e9, epochs=4)

  Args:
    config: of the arms to predict, or their plan; instead of the numbers that follow.
    num_params, activation_rate, tokens, epochs: one number or several; every combination is
      predicted. N without vocabulary; r_a in 0..1, dense is 1; epochs are passes over the text.
    runs: studies or runs of yours to fit instead of the paper's tables.
    check: also predicts each size and reuse from the others (slow).
  Raises:
    UserError: neither a config nor all numbers, or both; runs that cannot be compared.
  """
  passes = _several("epochs", epochs)
  given = [
    _several(name, value)
    for name, value in (
      ("num_params", num_params), ("activation_rate", activation_rate), ("tokens", tokens)
    )
  ]  # fmt: skip
  if config is not None and any(given):
    raise UserError("a config and numbers are two ways to ask; give one")
  if config is None and not all([*given, passes]):
    raise UserError("give a config, or num_params, activation_rate and tokens, and epochs or none")
  if config is None:
    question = surrogate.of_numbers(*given, passes)
  else:
    planned = config if isinstance(config, Plan) else plan(config)
    question = surrogate.of_plans({c.name: c.plan for c in planned.comparisons})
  return Prediction(surrogate.answer(question, runs, check))


def _several(name: str, value: Numbers) -> list[float]:
  """
  Raises:
    UserError: neither a number (NumPy's are) nor several.
  """
  try:
    parts = [value] if isinstance(value, numbers.Real | str) else list(value)
    if not any(isinstance(part, str) for part in parts):
      return [float(part) for part in parts]
  except (TypeError, ValueError):
    pass
  raise UserError(f"{name}={value!r} is no number; give one, or a list of them")


def _row(arm: dict[str, Any]) -> dict[str, Any]:
  versus = arm.get("minus_dense") or {}
  low, high = versus.get("interval") or (None, None)
  return {
    "arm": arm["name"],
    "num_params": arm["num_params"],
    "activation_rate": arm["activation_rate"],
    "num_tokens": arm["num_tokens"],
    "epochs": arm["epochs"],
    "bpc": arm["bpc"],
    "bpc_low": arm["interval"][0],
    "bpc_high": arm["interval"][1],
    "minus_dense": versus.get("difference"),
    "minus_dense_low": low,
    "minus_dense_high": high,
    "extrapolates": "yes" if arm["extrapolates"] else "no",
  }
