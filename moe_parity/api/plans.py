"""`mp.plan`: a config to what every arm costs. Loads no JAX."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe_parity import config as configs
from moe_parity.api.tables import as_table
from moe_parity.data.mixture import planner_inputs
from moe_parity.data.token_store import is_store, open_store
from moe_parity.errors import UserError, suggest
from moe_parity.fields.check import as_given, row_of
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.plan_costs import memory_of, rows_with_memory, with_costs
from moe_parity.report import cards
from moe_parity.report.table_formats import count, scientific
from moe_parity.study.comparisons import Comparison, Results, plan_comparisons


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config comes to.

  Attributes:
    config: complete, after overrides.
    comparisons: one for most configs; a study method adds further ones.
  """

  config: ConfigDict
  comparisons: tuple[Comparison, ...]

  @property
  def name(self) -> str:
    return self.comparisons[0].plan.name

  @property
  def budget(self) -> dict[str, Any]:
    """The shared resources: num_params, train_flops, num_unique_tokens, dense_tokens, ..."""
    return self.comparisons[0].plan.budget

  @property
  def arms(self) -> list[ArmPlan]:
    """Every run of every comparison, with its shape, tokens, batch, steps and learning rate."""
    return [arm for comparison in self.comparisons for arm in comparison.plan.arms]

  @property
  def notes(self) -> list[str]:
    """What to know before training."""
    return [note for comparison in self.comparisons for note in comparison.plan.notes]

  def table(self) -> Any:
    """One row an arm: shape, N, r_a, FLOPs, tokens, epochs, batch, steps, learning rate, GiB."""
    return as_table(self._rows())

  def costs(self) -> Any:
    """One row an arm: C, executed FLOPs, parameters with vocabulary, bytes, each over dense."""
    return as_table(row for comparison in self.comparisons for row in comparison.plan.cost_rows())

  def memory(self) -> Any:
    """One row an arm: planned bytes of a device by what they hold; an arm whose mesh is open has
    None in each."""
    rows = []
    for comparison in self.comparisons:
      for arm, bytes_ in zip(
        comparison.plan.arms, memory_of(comparison.config, comparison.plan), strict=True
      ):
        rows.append({"arm": arm.name, "seed": arm.seed} | (bytes_ or {}))
    return as_table(rows)

  def to_dict(self) -> dict[str, Any]:
    """What `moe-parity plan --json` prints: the plan with memory and costs; of several comparisons
    a dict of such plans by name."""
    plans = {
      comparison.name: with_costs(comparison.config, comparison.plan)
      for comparison in self.comparisons
    }
    return plans[""] if len(plans) == 1 else plans

  def _rows(self) -> list[dict[str, Any]]:
    rows = []
    for comparison in self.comparisons:
      name = {"comparison": comparison.name} if len(self.comparisons) > 1 else {}
      rows += [name | row for row in rows_with_memory(comparison.config, comparison.plan)]
    return rows

  def _facts(self) -> tuple[str, ...]:
    budget = self.budget
    return (
      f"N = {count(budget['num_params'])}",
      f"C = {scientific(budget['train_flops'])} FLOPs ({budget['convention']})",
      f"unique tokens {count(budget['num_unique_tokens'])}",
      f"reuse: {budget['reuse']}",
    )

  def __repr__(self) -> str:
    return f"Plan {self.name}: {', '.join(self._facts())}"

  def _repr_html_(self) -> str:
    return cards.card(
      f"Plan {self.name}", self._facts(), cards.table(self._rows()), cards.items(self.notes)
    )


def plan(config: str | pathlib.Path | ConfigDict, **fields: Any) -> Plan:
  """Derives every arm of a budget, or refuses: shapes, tokens, batches, learning rates, costs.

      mp.plan("configs/demo.py:tiny", budget={"dense_tokens": 40_000})
      mp.plan("configs/demo.py", **{"budget.reuse": "loose", "arms.moe_20.experts_per_token": 4})

  Args:
    config: `path/to/file.py`, `path/to/file.py:arg`, or a config as `defaults.base()` makes one.
    fields: fields to change, by their dotted name or a dictionary a section.
  Raises:
    UserError: no such file or field, a value of another type, a shape that cannot be found, arms
      that are not at parity, a corpus that is too small.
  """
  made = config if isinstance(config, ConfigDict) else configs.load(str(config))
  return planned(changed(made, fields) if fields else made)


def planned(config: ConfigDict) -> Plan:
  """`plan` of a config that is complete."""
  return Plan(config, plan_config(config))


def plan_config(config: ConfigDict) -> tuple[Comparison, ...]:
  """The comparisons of a config by what is known before anything is trained."""
  return tuple(plan_comparisons(config, Results(None), **_store_inputs(config)))


def changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
  """A locked copy of a config with some fields set; see `plan`.

  Raises:
    UserError: an unknown field (the nearest is suggested) or a value of another type.
  """
  copy = ConfigDict(config.to_dict())
  for name, value in _flat(fields).items():
    *sections, last = name.split(".")
    target: Any = copy
    for i, section in enumerate([*sections, last]):
      if not isinstance(target, ConfigDict) or section not in target:
        names = list(target) if isinstance(target, ConfigDict) else []
        where = ".".join(sections[:i]) or "a config"
        raise UserError(f"field {name!r}: {where} has no {section!r}{suggest(section, names)}")
      if i < len(sections):
        target = target[section]
    try:
      target[last] = as_given(row_of(name), value)
    except TypeError as error:
      raise UserError(f"field {name}={value!r}: {' '.join(str(error).split())}") from None
  return copy.lock()


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in fields.items():
    if isinstance(value, np.generic):
      value = value.item()
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def _store_inputs(config: ConfigDict) -> dict[str, Any]:
  """What the planner takes from a finished token store on this machine; nothing where the config's
  source is text, or elsewhere."""
  source = config.data.source
  if "," in source or "://" in source or source == "builtin":
    return {}
  return planner_inputs(open_store(source), config) if is_store(source) else {}
