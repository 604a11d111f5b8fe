"""What a config field may hold: whole numbers, numbers, text, a choice, a switch, tuples."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

_SHOWN = 60  # characters of a value in an error
# Control characters, line and paragraph separators, switches of the direction of writing (a name
# with one reads as another name), halves of surrogate pairs.
_UNPRINTED = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


@runtime_checkable
class Kind(Protocol):
  """The type and range of a field."""

  def problem(self, value: Any) -> str:
    """The rule that a value breaks, as the predicate of a sentence; "" for none."""

  def words(self) -> str:
    """What may be given, for errors and the docs."""


@dataclasses.dataclass(frozen=True)
class Whole:
  """A whole number in [least, most], or one of `others`; 2e9 is one, True is none."""

  least: int
  most: int
  others: tuple[int, ...] = ()

  def problem(self, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
      return "is not a whole number"
    return "" if value in self.others else _outside(value, self.least, self.most)

  def words(self) -> str:
    return f"a whole number, {_or(self.others, f'{shown(self.least)} to {shown(self.most)}')}"


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number in [least, most], or one of `others`.

  Attributes:
    open_ends: whether `least` and `most` themselves are outside.
  """

  least: float
  most: float
  others: tuple[float, ...] = ()
  open_ends: bool = False

  def problem(self, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
      return "is not a number"
    if isinstance(value, float) and not math.isfinite(value):
      return "is not finite"
    if value in self.others:
      return ""
    if self.open_ends and value in (self.least, self.most):
      return f"is not {self._range()}"
    return _outside(value, self.least, self.most)

  def words(self) -> str:
    return f"a number, {_or(self.others, self._range())}"

  def _range(self) -> str:
    least, most = shown(self.least), shown(self.most)
    return f"over {least} and under {most}" if self.open_ends else f"{least} to {most}"


@dataclasses.dataclass(frozen=True)
class Switch:
  """True or False."""

  def problem(self, value: Any) -> str:
    return "" if isinstance(value, bool) else "is not True or False"

  def words(self) -> str:
    return "True or False"


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of a few words."""

  values: tuple[str, ...]

  def problem(self, value: Any) -> str:
    return "" if isinstance(value, str) and value in self.values else "is not known"

  def words(self) -> str:
    return " | ".join(value or '""' for value in self.values)


@dataclasses.dataclass(frozen=True)
class Text:
  """A line of Unicode text without control characters and the like.

  Attributes:
    rule: what `problem_of` allows, in words.
    problem_of: the rule that a text breaks, as of `Kind.problem`; None allows any.
  """

  rule: str = "text"
  problem_of: Callable[[str], str] | None = None
  longest: int = 4096

  def problem(self, value: Any) -> str:
    if not isinstance(value, str):
      return "is not text"
    if _UNPRINTED.search(value):
      return "holds a control character or half a surrogate pair"
    if len(value) > self.longest:
      return f"is longer than {self.longest:,} characters"
    return self.problem_of(value) if self.problem_of else ""

  def words(self) -> str:
    return self.rule


@dataclasses.dataclass(frozen=True)
class Several:
  """A tuple of up to `most` values of one kind, no two alike."""

  of: Kind
  most: int = 1000

  def problem(self, value: Any) -> str:
    if not isinstance(value, tuple | list):
      return "is not a tuple"
    if len(value) > self.most:
      return f"has over {self.most:,} values"
    for item in value:
      if found := self.of.problem(item):
        return f"has {show(item)}, which {found}"
    if len(set(value)) < len(value):
      return "names one value twice"
    return ""

  def words(self) -> str:
    return f"a tuple, each {self.of.words()}"


def matching(pattern: str, otherwise: str) -> Callable[[str], str]:
  """A `Text.problem_of`: the whole text matches a regular expression."""
  compiled = re.compile(pattern)
  return lambda text: "" if compiled.fullmatch(text) else otherwise


def show(value: Any) -> str:
  """A value in an error: one line, cut short."""
  if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
    return f"{'-' if value < 0 else ''}(a number of {abs(value).bit_length()} bits)"
  try:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
  except Exception as error:  # noqa: BLE001 - a __repr__ of others
    text = f"<{type(value).__name__}: {type(error).__name__}>"
  text = " ".join(text.split())
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def shown(number: int | float) -> str:
  """1,000 for 1000; 10^15 for a power of ten and 2^24 for one of two."""
  if isinstance(number, int) and number >= 10**6:
    exponent = len(str(number)) - 1
    if number == 10**exponent:
      return f"10^{exponent}"
    if number & (number - 1) == 0:
      return f"2^{number.bit_length() - 1}"
    if number & (number + 1) == 0:
      return f"2^{number.bit_length()} - 1"
  return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _outside(value: int | float, least: int | float, most: int | float) -> str:
  if value < least:
    return f"is below {shown(least)}"
  return f"is above {shown(most)}" if value > most else ""


def _or(others: tuple, rest: str) -> str:
  return " or ".join([*map(shown, others), rest])
