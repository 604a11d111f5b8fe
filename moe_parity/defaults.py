"""Configs at their defaults: every field of the table (`fields/table.py`), with what it means.

A config file states decisions by changing some of them. What follows from them (shapes, tokens,
steps, learning rates) is derived by the planner after the command line has been read.
"""

from ml_collections import ConfigDict

from moe_parity.errors import suggest
from moe_parity.fields.table import SECTIONS, rows_of


def base() -> ConfigDict:
  """A complete config with an empty list of arms."""
  config = _section("")
  config.arms = ConfigDict()  # name -> dense_arm() or moe_arm()
  for section in SECTIONS:
    config[section] = _section(section)
  return config


def completed(stored: dict) -> ConfigDict:
  """A stored config (`config.from_stored`) to train with again; what is newer than it is at its
  default."""
  defaults = base().to_dict()
  sections = {name: defaults[name] | stored.get(name, {}) for name in SECTIONS}
  return ConfigDict(defaults | stored | sections)


def dense_arm(**fields) -> ConfigDict:
  """A dense arm; what is 0 or "" is left to the solver.

  Raises:
    KeyError: a field that arms do not have.
  """
  return _arm("dense", layout="dense", **fields)


def moe_arm(activation_rate: float = 0.0, **fields) -> ConfigDict:
  """An MoE arm by its activation rate N_a / N, or by an explicit shape.

  Raises:
    KeyError: a field that arms do not have.
  """
  return _arm("moe", activation_rate=activation_rate, **fields)


def _arm(kind: str, **fields) -> ConfigDict:
  arm = _section("arms.*")
  for name, value in {"kind": kind, **fields}.items():
    if name not in arm:
      hint = suggest(name, arm) or f"; it has {', '.join(arm)}"
      raise KeyError(f"an arm has no field {name!r}{hint}")
    arm[name] = value
  return arm


def _section(section: str) -> ConfigDict:
  return ConfigDict({name: row.default for name, row in rows_of(section).items()})
