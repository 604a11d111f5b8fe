"""What the sum of the routed experts is multiplied by: the values of `routed_scale`.

With raw gates the sum of the chosen ones shrinks as experts are added: an even router gives each of
E experts 1/E, so K of them add up to K/E, and the routed part of a layer is small compared with the
shared expert. A scale undoes that.
"""

from __future__ import annotations

from moe_parity.fields.check import check_value


def constant_scale(value: str) -> float:
  """The number that a text stands for; "" is 1.

  Raises:
    UserError: it is none, or out of range.
  """
  check_value("model.routed_scale", value)
  return float(value) if value else 1.0
