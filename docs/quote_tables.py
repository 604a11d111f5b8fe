"""Tables and cells of the docs."""

from moe_parity.markdown import table


def markdown(names: list[str], rows: list[list]) -> list[str]:
  """The lines of a table, with an empty line before it."""
  return ["", *table(names, rows).splitlines()]


def interval(bounds: list[float]) -> str:
  """An interval of signed differences."""
  low, high = bounds
  return f"{low:+.4f} to {high:+.4f}"


def percent(share: float) -> str:
  """A share of 1 in percent, to a tenth."""
  return f"{100 * share:.1f} %"
