"""Errors that a user is meant to read: value, rule and way out, in one line."""

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
  """Input that a person can mend. The command line prints it without a traceback and exits 2.

  The message names the value, the rule it breaks and a way out, in that order.
  """


class NotFiniteError(UserError):
  """A run diverged: its loss, in a step or on held-out text, or its gradient is NaN or infinite."""


class Stopped(KeyboardInterrupt):
  """A signal asked this process to stop, and it did so between two steps.

  No `Exception`, so that no library takes it for an error of its own.

  Attributes:
    code: the exit code: 75 asks its parent process to start it again, 130 is Ctrl-C's.
  """

  code = 75


def disk_is_full(error: BaseException | None) -> bool:
  """Whether a full disk caused an error, however deeply a library wrapped it."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def nearest(name: str, names: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
  """Up to `most` of `names` that resemble `name`, the nearest first.

  Args:
    cutoff: resemblance from 0 (take anything) to 1 (equal).
  """
  return difflib.get_close_matches(name, list(names), n=most, cutoff=cutoff)


def suggest(name: str, names: Iterable[str]) -> str:
  """ "; did you mean 'x'?" with the nearest of `names`; "" where none resembles `name`."""
  near = nearest(name, names)
  return f"; did you mean {near[0]!r}?" if near else ""


def check_choice(field: str, value: str, choices: Iterable[str]) -> str:
  """`value` if it is one of `choices`.

  Raises:
    UserError: it is not; suggests the nearest choice.
  """
  choices = tuple(choices)
  if value in choices:
    return value
  hint = suggest(str(value), choices)
  raise UserError(f"{field}={value!r} is not one of {', '.join(choices)}{hint}")
