"""The tables of arXiv:2506.12119v1 as data: every shape, budget and result with where it stands.

Digits are kept as printed, trailing zeros too, because they tell the rounding. Columns and units:
`n_layers`, `n_dense_layers`, `d_model`, `d_ffn`, `n_heads`, `d_head`, `E`, `K`, `De`, `Dse` are the
shape; `N_params`, `Na_params`, `D_tokens`, `D_unique_tokens` counts; `*_pct` percent;
`M_flops_per_token` FLOPs a token (forward or training: `M_kind`, training where there is none);
`C_flops` FLOPs; `batch_seqs` sequences of `seq_len` tokens; `lr` peak learning rate; `loss` nats a
token (training); `bpc` bits a character (validation); `zeta_printed` the column of Table 8, which
is not d_model / n_layers (see `anomalies`). Tables 12, 13, 15 and 17 are not held here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources

from moe_parity.errors import UserError
from moe_parity.planning.account_table import tokens_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.shape_table import ShapeRow, architecture_of, read_table

TABLES = (
  "table05",
  "table06",
  "table07",
  "table08",
  "table09",
  "table10",
  "table11",
  "table14",
  "table16",
)
TEXT_COLUMNS = ("source", "M_kind", "norm_topk", "scheme")


@dataclasses.dataclass(frozen=True)
class PublishedRow:
  """One printed row. `row["bpc"]` is a number (or text for TEXT_COLUMNS), `row.printed` the digits.

  Attributes:
    table: such as "table10". number: from 1, in printed order. printed: column -> text.
  """

  table: str
  number: int
  printed: Mapping[str, str]

  def __getitem__(self, column: str) -> int | float | str:
    """The value of a column; KeyError where the table has no such column."""
    text = self.printed[column]
    if column in TEXT_COLUMNS:
      return text
    return int(text) if text.isdigit() else float(text)

  @functools.cached_property
  def architecture(self) -> Architecture:
    """The shape of the row."""
    return architecture_of(self._cells)

  @functools.cached_property
  def num_tokens(self) -> int | float | None:
    """Tokens seen: iters * batch_seqs * seq_len, None where the table has no run length."""
    return tokens_of(self._cells, self["seq_len"])

  @functools.cached_property
  def _cells(self) -> ShapeRow:
    return ShapeRow(self.printed, self.number, self.table)


@functools.cache
def table(name: str) -> tuple[PublishedRow, ...]:
  """All rows of one of TABLES, in printed order.

  Raises:
    UserError: a table that is not held here.
  """
  if name not in TABLES:
    raise UserError(f"table={name!r} is not held here; use {', '.join(TABLES)}")
  with resources.as_file(resources.files(__package__) / f"{name}.csv") as path:
    return tuple(
      PublishedRow(name, number, cells) for number, cells in enumerate(read_table(path), 1)
    )


def row(name: str, number: int) -> PublishedRow:
  """One row of a table, counted from 1.

  Raises:
    UserError: no such table or row.
  """
  rows = table(name)
  if not 1 <= number <= len(rows):
    raise UserError(f"row={number} is not in {name}; it has rows 1 to {len(rows)}")
  return rows[number - 1]


@functools.cache
def training_settings() -> dict[str, str]:
  """Table 4, hyper-parameter -> setting as printed: optimizer, decay, clip, schedule, warm-up."""
  with resources.as_file(resources.files(__package__) / "table04.csv") as path:
    return {cells["hyperparameter"]: cells["setting"] for cells in read_table(path)}


def rounds_to(value: int | float, printed: str) -> bool:
  """Whether `value` rounds to the printed digits, half a unit of the last digit either way."""
  return abs(Decimal(value) - Decimal(printed)) <= last_digit(printed) / 2


def last_digit(printed: str) -> Decimal:
  """What one unit of the last printed digit is worth: 1e7 for 2.15e9."""
  return Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)
