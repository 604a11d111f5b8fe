"""Rows as a pandas DataFrame where pandas is installed, else as a list that shows as a table."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_parity.report import cards


class TableRows(list):
  """A list of dictionaries with the same keys; a notebook shows it as a table."""

  def _repr_html_(self) -> str:
    return cards.table(self)


def as_table(rows: Iterable[Mapping[str, Any]]) -> Any:
  """The rows as a DataFrame, or as `TableRows` where pandas is not installed."""
  rows = [dict(row) for row in rows]
  try:
    import pandas
  except ImportError:
    return TableRows(rows)
  return pandas.DataFrame(rows)
