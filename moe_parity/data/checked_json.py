"""JSON files of others, checked against a shape before anything of them is used; one-line errors.

A shape is a type (str, int, float, bool, object for anything), [shape] for a list, {str: shape} for
names that are free, or {"name": shape, "name?": shape} for an object: names with ? may be missing
or null, further names are allowed. int means an integer of at least 0.
"""

import json
from pathlib import Path
from typing import Any

from moe_parity.data import storage
from moe_parity.errors import UserError


def read(path: str | Path, shape: Any, way_out: str = "replace the file") -> Any:
  """The value of a JSON file, local or remote.

  Args:
    way_out: how the error ends: what the user can do.
  Raises:
    FileNotFoundError, NotADirectoryError: it is not there.
    UserError: it is no JSON (nan, infinity and lone surrogates are none), nested too deeply, or not
      of this shape.
  """
  return parse(storage.read_bytes_of(path), shape, str(path), way_out)


def parse(data: bytes, shape: Any, what: str, way_out: str = "replace the file") -> Any:
  """As `read`, from the bytes; `what` is their name in errors."""
  try:
    value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # finds lone surrogates
  except RecursionError:
    raise UserError(f"{what} is damaged (nested too deeply); {way_out}") from None
  except ValueError as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{what} is damaged ({reason}); {way_out}") from None
  if problem := mismatch(value, shape):
    raise UserError(f"{what} is damaged ({problem}); {way_out}")
  return value


def mismatch(value: Any, shape: Any, place: str = "") -> str:
  """What is wrong with the first part of a value that is not of the shape; '' for none."""
  here = place or "it"
  if isinstance(shape, list):
    if not isinstance(value, list):
      return f"{here} is a {type(value).__name__}, not a list"
    parts = ((item, shape[0], f"{place}[{number}]") for number, item in enumerate(value))
  elif isinstance(shape, dict):
    if not isinstance(value, dict):
      return f"{here} is a {type(value).__name__}, not an object"
    if str in shape:
      parts = ((item, shape[str], f"{place}[{name[:80]!r}]") for name, item in value.items())
    else:
      dot = f"{place}." if place else ""
      names = {name.removesuffix("?"): name for name in shape}
      if missing := [n for n, key in names.items() if n == key and n not in value]:
        return f"{dot}{missing[0]} is missing"
      parts = (
        (value[name], shape[key], f"{dot}{name}")
        for name, key in names.items()
        if value.get(name) is not None or name == key
      )
  else:
    return "" if _is_a(value, shape) else f"{here} is {str(value)[:80]!r}, not {_WORDS[shape]}"
  return next((found for part in parts if (found := mismatch(*part))), "")


_WORDS = {
  str: "a string", int: "an integer of at least 0", float: "a number", bool: "true or false",
}  # fmt: skip


def _is_a(value: Any, kind: type) -> bool:
  if kind is object:
    return True
  if kind is int:
    return type(value) is int and value >= 0
  if kind is float:
    return type(value) in (int, float)
  return isinstance(value, kind)


def _refuse(constant: str) -> Any:
  raise ValueError(f"{constant} is no JSON number")
