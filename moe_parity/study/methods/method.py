"""What a study method is: the paper's steps, each of which derives its arms from two templates.

`methods/<name>.py` derives the arms, names in FIELDS what it reads of `config.study`, and
`methods/<name>_summary.py` writes what they show. A new method is two such files and its name in
METHODS of `fields/choices.py`.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from moe_parity.errors import UserError
from moe_parity.fields.check import check_value
from moe_parity.fields.choices import METHODS
from moe_parity.fields.table import rows_of

# Fields of `config.study` that every method reads, plain arms too; the tries of learning rates.
FIELDS_OF_ALL = ("method", "learning_rate_grid", "tuning_seeds", "grid_extensions")
PLAIN = "arms"  # the method that trains the arms as listed
_OWN_SEEDS = PLAIN, "seeds"


@runtime_checkable
class Method(Protocol):
  """The interface of a study method; `study/comparisons.py` has `Comparison` and `Results`."""

  def derive(self, config: ConfigDict, results: Any) -> dict[str, ConfigDict]:
    """The config of each comparison with all arms that the results so far allow; "" comes first.

    Depends on nothing else, so that deriving again, after a kill or by another worker, gives the
    same arms.

    Raises:
      UserError: the config lacks what the method needs.
    """

  def pending_notes(self, config: ConfigDict, comparisons: Sequence[Any]) -> list[str]:
    """What later stages will add, in words, for a list that is printed before they are known."""

  def summarize(
    self, config: ConfigDict, folder: pathlib.Path, comparisons: Sequence[Any], results: Any
  ) -> dict:
    """What <name>.json holds: plain values, the same for the same folder."""


@dataclasses.dataclass(frozen=True)
class _FromModules:
  """A method whose functions are in modules."""

  derive: Callable
  pending_notes: Callable
  summarize: Callable


def method_of(config: Any) -> Method | None:
  """The method that a config names, None for plain arms.

  Raises:
    UserError: no such method.
  """
  name = config.study.method
  check_value("study.method", name)
  if name == PLAIN:
    return None
  arms = _module(name)
  summary = importlib.import_module(f"moe_parity.study.methods.{name}_summary")
  return _FromModules(arms.derive, arms.pending_notes, summary.summarize)


def check_study_fields(config: Any) -> None:
  """Refuses fields of `config.study` that are set and that the config's method does not read.

  Raises:
    UserError: one of them is not at its default.
  """
  method, defaults = config.study.method, rows_of("study")
  used = _fields_of(method)
  for name, value in config.study.items():
    if name in used or _plain(value) == _plain(defaults[name].default):
      continue
    users = " or ".join(repr(other) for other in METHODS if name in _fields_of(other))
    own = " and give each arm its own, as arms.NAME.seeds," if (method, name) == _OWN_SEEDS else ""
    raise UserError(
      f"study.{name}={value} has no effect with study.method={method!r}; leave it at"
      f" {defaults[name].default},{own} or use method={users}"
    )


def _fields_of(method: str) -> tuple[str, ...]:
  check_value("study.method", method)
  return FIELDS_OF_ALL + (() if method == PLAIN else _module(method).FIELDS)


def _module(method: str) -> Any:
  return importlib.import_module(f"moe_parity.study.methods.{method}")


def _plain(value: Any) -> Any:
  """JSON has lists where a config has tuples."""
  return list(value) if isinstance(value, list | tuple) else value
