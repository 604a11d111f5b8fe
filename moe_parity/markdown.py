"""Markdown tables: of the docs, the report and model cards."""

from collections.abc import Sequence
from typing import Any


def table(
  headers: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()
) -> str:
  """A table, each line ended.

  Args:
    rows: cells are shown by `str`; a "|" in one is escaped.
    numbers: columns that are aligned to the right.
  """

  def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"

  rule = ["---:" if column in numbers else "---" for column in range(len(headers))]
  return "".join(map(line, [headers, rule, *rows]))
