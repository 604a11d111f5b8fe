"""Which formula gives each printed column: the tables do not all use one.

Found by recomputing every cell. Plain formulas (convention `paper`) fill Tables 5, 6 and 9; the
others count router, norms and elementwise work (`paper_full`) in some columns and a nominal size in
others. Where a row leaves its column's formula, `ROW_FORMULAS` says so; what no formula gives is in
`anomalies`.
"""

from __future__ import annotations

import dataclasses

from moe_parity.paper.tables import TABLES, PublishedRow, table
from moe_parity.planning.accounting import cost_of


@dataclasses.dataclass(frozen=True)
class Formula:
  """How a cell follows from its row.

  Attributes:
    convention: of N, N_a and M. nominal_params: the size a rate or ratio divides by, 0 for the
    row's own N. printed_active: N_a is the row's rounded figure.
  """

  convention: str = "paper"
  nominal_params: float = 0.0
  printed_active: bool = False


PLAIN, FULL = Formula("paper"), Formula("paper_full")
_COLUMNS = (
  "N_params",
  "Na_params",
  "ra_pct",
  "M_flops_per_token",
  "D_tokens",
  "C_flops",
  "D_over_N",
  "epochs",
  "mu",
  "zeta_printed",
)
COLUMN_FORMULAS: dict[str, dict[str, Formula]] = {
  "table05": {},
  "table06": {},
  "table08": {},
  "table09": {},
  "table07": dict.fromkeys(_COLUMNS, FULL),
  "table10": {
    "M_flops_per_token": FULL,
    "C_flops": FULL,
    "ra_pct": Formula(nominal_params=2.15e9),
    "D_over_N": Formula(nominal_params=2.15e9),
  },
  "table11": {
    "N_params": FULL,
    "M_flops_per_token": FULL,
    "C_flops": FULL,
    "ra_pct": Formula(nominal_params=6.51e9, printed_active=True),
    "D_over_N": Formula(nominal_params=6.51e9),
  },
  "table14": {"M_flops_per_token": FULL, "C_flops": FULL},
  "table16": dict.fromkeys(_COLUMNS, FULL),
}
ROW_FORMULAS: dict[tuple[str, int, str], Formula] = {
  **{
    ("table10", number, column): FULL
    for number in (3, 4, 5, 7)
    for column in ("Na_params", "ra_pct", "D_over_N")
  },
  **{("table11", 4, column): PLAIN for column in ("ra_pct", "D_over_N")},
  **{("table14", number, "D_over_N"): Formula(nominal_params=2.15e9) for number in (1, 2)},
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A printed cell and the value of its formula. difference_pct: 100 (found / printed - 1)."""

  table: str
  row: int
  column: str
  printed: str
  found: int | float

  @property
  def difference_pct(self) -> float:
    return 100 * (self.found / float(self.printed) - 1)


def formula_of(row: PublishedRow, column: str) -> Formula:
  """The formula behind one cell."""
  of_column = COLUMN_FORMULAS[row.table].get(column, PLAIN)
  return ROW_FORMULAS.get((row.table, row.number, column), of_column)


def cells() -> list[Cell]:
  """Every derived cell of every table."""
  return [
    Cell(row.table, row.number, column, row.printed[column], derive(row, column))
    for name in TABLES
    for row in table(name)
    for column in _COLUMNS
    if column in row.printed
  ]


def derive(row: PublishedRow, column: str, formula: Formula | None = None) -> int | float:
  """The value of one derived cell, unrounded; by its own formula unless another is given."""
  formula = formula or formula_of(row, column)
  cost = cost_of(row.architecture, row["seq_len"], formula.convention)
  params = formula.nominal_params or cost.num_params
  active = row["Na_params"] if formula.printed_active else cost.num_active_params
  flops = cost.train_flops_per_token
  if row.printed.get("M_kind") == "forward":
    flops = cost.forward_flops_per_token
  match column:
    case "N_params":
      return cost.num_params
    case "Na_params":
      return active
    case "ra_pct":
      return 100 * active / params
    case "M_flops_per_token":
      return flops
    case "D_tokens":
      return row.num_tokens
    case "C_flops":
      return flops * row.num_tokens
    case "D_over_N":
      return row.num_tokens / params
    case "epochs":
      return row.num_tokens / row["D_unique_tokens"]
    case "mu":
      return row.architecture.total_ffn_ratio
    case "zeta_printed":  # the paper's column; d_model / n_layers is aspect_ratio
      return row["d_model"] / (row["n_layers"] - 1) + 1
  raise KeyError(column)
