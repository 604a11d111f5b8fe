"""Checks the types of every call of moe_parity, and does so fast.

The import hook of jaxtyping (pyproject.toml) decorates every function. What it puts around a call
knows the names of array axes, and takes some 30 microseconds for that: three quarters of the time
of tests that plan and study. Only functions that name axes need it; beartype alone checks the same
types of all others in an eighth of that.
"""

import dataclasses
import functools
import inspect

import beartype
import jaxtyping

_naming_axes = jaxtyping.jaxtyped


def install() -> None:
  """Before moe_parity is imported."""

  def jaxtyped(*, typechecker):
    return functools.partial(_checked, typechecker=typechecker)

  jaxtyping.jaxtyped = jaxtyped


def _checked(decorated, *, typechecker):
  """A function or class of moe_parity, with checks."""
  if inspect.isclass(decorated):
    if not dataclasses.is_dataclass(decorated):
      return decorated
    annotated = decorated.__init__
  else:
    annotated = decorated
  if any(_names_axes(hint) for hint in inspect.get_annotations(annotated).values()):
    return _naming_axes(decorated, typechecker=typechecker)
  if annotated is decorated:
    return beartype.beartype(decorated)
  decorated.__init__ = beartype.beartype(decorated.__init__)
  return decorated


def _names_axes(hint) -> bool:
  """Whether a hint, which may be quoted, has an array's axes somewhere in it."""
  said = hint if isinstance(hint, str) else repr(hint)
  return "jaxtyping" in said or any(f"{name}[" in said for name in jaxtyping.__dict__)
