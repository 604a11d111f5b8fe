"""Markdown tables."""


def markdown(names: list[str], rows: list[list]) -> list[str]:
  """The lines of a table, with an empty line before it."""
  lines = [names, ["---"] * len(names), *rows]
  return ["", *("| " + " | ".join(map(str, line)) + " |" for line in lines)]


def interval(bounds: list[float]) -> str:
  """An interval of signed differences."""
  low, high = bounds
  return f"{low:+.4f} to {high:+.4f}"


def percent(share: float) -> str:
  """A share of 1 in percent, to a tenth."""
  return f"{100 * share:.1f} %"
