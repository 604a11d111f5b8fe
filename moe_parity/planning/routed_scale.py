"""What the sum of the routed experts is multiplied by: the values of `routed_scale`.

With raw gates the sum of the chosen ones shrinks as experts are added: an even router gives each of
E experts 1/E, so K of them add up to K/E, and the routed part of a layer is small compared with the
shared expert. A scale undoes that.
"""

from __future__ import annotations

import math

from moe_parity.errors import UserError

PER_CHOICE, LEARNED = "E/K", "learned"


def check_routed_scale(field: str, value: str) -> None:
  """
  Raises:
    UserError: `value` is neither "", a positive number as text, "E/K" nor "learned".
  """
  if value not in ("", PER_CHOICE, LEARNED):
    constant_scale(field, value)


def constant_scale(field: str, value: str) -> float:
  """The number that a text stands for; "" is 1.

  Raises:
    UserError: it is no positive, finite number.
  """
  if not value:
    return 1.0
  try:
    scale = float(value)
  except ValueError:
    scale = math.nan
  if not (math.isfinite(scale) and scale > 0):
    raise UserError(
      f"{field}={value!r} is not a positive number, {PER_CHOICE!r} or {LEARNED!r}; use '' for 1"
    )
  return scale
