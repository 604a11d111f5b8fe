"""Refuses what breaks a row of the table: value, rule and way out, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_parity.errors import UserError, suggest
from moe_parity.fields.kinds import Choice, Kind, Several, Whole, show
from moe_parity.fields.table import ARM_NAME, ROWS, SECTIONS, Field, rows_of

NEEDED = ("budget", "data", "model", "train", "evaluation")  # of a run's config.json


def check_fields(config: Any) -> None:
  """Checks every field of a config, which may lack sections and fields: a mapping, a config
  dictionary or a plain object.

  Raises:
    UserError: a field without a row (suggests the nearest), or a value that breaks its row.
  """
  names = [*rows_of(""), *SECTIONS, "arms"]
  for name, value in items(config, "the config"):
    if name in rows_of(""):
      check_value(name, value)
    elif name in SECTIONS:
      section_values(value, name)
    elif name == "arms":
      for arm, fields in items(value, "arms"):
        check_kind("the name of an arm", arm, ARM_NAME)
        section_values(fields, "arms.*", f"arms.{arm}")
    else:
      raise UserError(f"a config has no field {show(name)}{_way_out(name, names)}")


def check_sections(stored: Any) -> None:
  """Checks that a config of a JSON file is an object of objects, with the sections of a run.

  Raises:
    UserError: it is not.
  """
  if not isinstance(stored, dict):
    raise UserError(f"the config is {show(stored)}, not an object; restore the file")
  for name in (*SECTIONS, "arms"):
    if not isinstance(stored.get(name, {}), dict):
      raise UserError(f"{name}={show(stored[name])} is no section; restore the file")
  missing = [name for name in NEEDED if name not in stored]
  if missing:
    raise UserError(f"the config has no {missing[0]!r}; restore the file")


def section_values(section: Any, name: str, shown: str = "") -> dict[str, Any]:
  """The fields of a section by name, counts as int also where they are written 2e9.

  Args:
    name: of the section, "arms.*" for an arm. shown: its name in errors.
  Raises:
    UserError: see `check_fields`.
  """
  rows, values, shown = rows_of(name), {}, shown or name
  for field, value in items(section, shown):
    if field not in rows:
      raise UserError(f"{shown} has no field {show(field)}{_way_out(field, rows)}")
    check_kind(f"{shown}.{field}", value, rows[field].kind)
    values[field] = as_given(rows[field], value)
  return values


def check_values(section: str, values: dict[str, Any], shown: str) -> None:
  """`section_values` for values of which some may be no fields: those are passed over.

  Args:
    shown: the section's name in errors; "" shows the fields' names alone.
  """
  rows = rows_of(section)
  for name in rows.keys() & values.keys():
    check_kind(f"{shown}.{name}" if shown else name, values[name], rows[name].kind)


def check_value(path: str, value: Any) -> None:
  """Checks one field by its dotted name.

  Raises:
    UserError: the value breaks the field's row.
  """
  check_kind(path, value, ROWS[path].kind)


def check_kind(shown: str, value: Any, kind: Kind) -> None:
  """Checks a value by a kind; `shown` is what errors call it.

  Raises:
    UserError: it breaks the kind's rule.
  """
  problem = kind.problem(value)
  if problem:
    of = kind.of if isinstance(kind, Several) else kind
    wrong = value
    if isinstance(kind, Several) and isinstance(value, list | tuple):
      wrong = next((item for item in value if of.problem(item)), "")
    choices = of.values if isinstance(of, Choice) and isinstance(wrong, str) else ()
    raise UserError(
      f"{shown}={show(value)} {problem}; give {kind.words()}{suggest(str(wrong), choices)}"
    )


def row_of(path: str) -> Field | None:
  """The row of a dotted name such as arms.moe_20.d_model; None if there is none."""
  parts = path.split(".")
  if len(parts) > 2 and parts[0] == "arms":
    path = f"arms.*.{parts[-1]}"
  return ROWS.get(path)


def as_given(row: Field | None, value: Any) -> Any:
  """A count that is written 2e9 as an int; anything else as it is."""
  if row is not None and isinstance(row.kind, Whole):
    if isinstance(value, float) and value.is_integer():
      return int(value)
  return value


def items(section: Any, shown: str) -> Iterator[tuple[str, Any]]:
  """(name, value) of a mapping or of anything with attributes.

  Raises:
    UserError: it is neither.
  """
  if hasattr(section, "keys"):
    return ((name, section[name]) for name in list(section.keys()))
  if section is None or isinstance(section, str | bytes | int | float | list | tuple):
    raise UserError(f"{shown}={show(section)} is no section; give its fields by name")
  return iter(vars(section).items())


_REQUIRED = object()


def get(section: Any, name: str, default: Any = _REQUIRED) -> Any:
  """A value of a section: a mapping, a config dictionary or a plain object."""
  if hasattr(section, "keys"):
    if name in section:
      return section[name]
  elif hasattr(section, name):
    return getattr(section, name)
  if default is _REQUIRED:
    raise UserError(f"the config has no {name!r}; it needs seed, budget and arms")
  return default


def _way_out(name: Any, known: Any) -> str:
  return suggest(str(name), known) or f"; it has {', '.join(known)}"
