"""Shapes of JSON values, and what is wrong with the first part of a value that has another.

A shape is one of
- a type: str, bool, object for anything, int for an integer of at least 0, float for a finite
  number; or a kind of `fields.kinds`, which states a range or a choice;
- [shape] for a list, (shape, shape) for a list of exactly so many, {str: shape} for an object whose
  names are free, {kind: shape} for one whose names are of a kind;
- {"name": shape, "name?": shape} for an object: names with ? may be missing or null, further names
  are allowed.
"""

import math
from typing import Any

from moe_parity.fields.kinds import Kind, show

LARGEST = 10**40  # of an integer: larger ones overflow a float where they are divided


def mismatch(value: Any, shape: Any, place: str = "") -> str:
  """What is wrong with the first part of a value that is not of the shape; "" for none."""
  here = place or "it"
  if isinstance(shape, list | tuple):
    if not isinstance(value, list):
      return f"{here} is {_a(value)}, not a list"
    if isinstance(shape, tuple) and len(value) != len(shape):
      return f"{here} is a list of {len(value)}, not of {len(shape)}"
    shapes = shape if isinstance(shape, tuple) else shape * len(value)
    parts = ((item, shapes[n], f"{place}[{n}]") for n, item in enumerate(value))
  elif isinstance(shape, dict):
    if not isinstance(value, dict):
      return f"{here} is {_a(value)}, not an object"
    key = next(iter(shape), "")
    if not isinstance(key, str):
      problems = (_of_leaf(name, key, f"{here}: the name") for name in value)
      if problem := next(filter(None, problems), ""):
        return problem
      parts = ((item, shape[key], f"{place}[{name[:80]!r}]") for name, item in value.items())
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
    return _of_leaf(value, shape, here)
  return next((found for part in parts if (found := mismatch(*part))), "")


def not_finite(value: Any, place: str = "") -> str:
  """The place of the first nan or infinity in a value, which JSON does not have; "" for none."""
  if isinstance(value, float):
    return "" if math.isfinite(value) else place or "it"
  if isinstance(value, dict):
    dot = f"{place}." if place else ""
    parts = ((item, f"{dot}{repr(name[:80])[1:-1]}") for name, item in value.items())
  elif isinstance(value, list):
    parts = ((item, f"{place}[{n}]") for n, item in enumerate(value))
  else:
    return ""
  return next((found for part in parts if (found := not_finite(*part))), "")


_WORDS = {
  str: "a string", int: "an integer of at least 0", float: "a finite number", bool: "true or false",
}  # fmt: skip


def _of_leaf(value: Any, shape: Any, here: str) -> str:
  if shape is object:
    return ""
  if isinstance(shape, type):
    return "" if _is_a(value, shape) else f"{here} is {show(value)}, not {_WORDS[shape]}"
  assert isinstance(shape, Kind)
  problem = shape.problem(value)
  return f"{here} is {show(value)}, which {problem}" if problem else ""


def _is_a(value: Any, kind: type) -> bool:
  if kind is int:
    return type(value) is int and 0 <= value < LARGEST
  if kind is float:
    if type(value) is int:
      return abs(value) < LARGEST
    return type(value) is float and math.isfinite(value)
  return isinstance(value, kind)


def _a(value: Any) -> str:
  names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
  return "null" if value is None else names.get(type(value), "a number")
