"""What a study method is: the paper's steps, each of which derives its arms from two templates.

`methods/<name>.py` derives the arms and `methods/<name>_summary.py` writes what they show. A new
method is two such files and its name in METHODS of `fields/choices.py`.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from moe_parity.fields.check import check_value


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
  if name == "arms":
    return None
  arms = importlib.import_module(f"moe_parity.study.methods.{name}")
  summary = importlib.import_module(f"moe_parity.study.methods.{name}_summary")
  return _FromModules(arms.derive, arms.pending_notes, summary.summarize)
