"""Tables of shapes in the paper's column names: cells of text in, architectures out."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

from moe_parity.errors import UserError
from moe_parity.planning.architecture import Architecture

# Fields of an architecture -> columns of the paper's tables (its H is heads, its d_model is D_m).
COLUMNS = {
  "num_layers": "n_layers",
  "d_model": "d_model",
  "num_heads": "n_heads",
  "d_head": "d_head",
  "num_kv_heads": "n_kv_heads",
  "layout": "layout",
  "d_ffn": "d_ffn",
  "num_experts": "E",
  "experts_per_token": "K",
  "d_expert": "De",
  "d_shared": "Dse",
  "vocab_size": "vocab_size",
}
_FIELD = re.compile("|".join(sorted(COLUMNS, key=len, reverse=True)))
_EMPTY = ("", "-", "n/a")


def read_table(path: str | pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV file with a header line, as text; wholly empty lines are left out.

  Raises:
    UserError: no such file, no UTF-8, no header, no rows, a column named twice, or a row with more
      or fewer cells than the header.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"{path}: no such file; give a CSV file with a header line")
  rows = []
  try:
    with path.open(encoding="utf-8-sig", newline="") as lines:
      reader = csv.reader(lines, strict=True)
      header = [name.strip() for name in next(reader, [])]
      if not any(header):
        raise UserError(f"{path}: no header line; name the columns, such as n_layers,d_model,E")
      twice = sorted({name for name in header if header.count(name) > 1})
      if twice:
        raise UserError(f"{path}: column {twice[0]!r} appears twice; keep one of them")
      for cells in reader:
        if not any(cell.strip() for cell in cells):
          continue
        if len(cells) != len(header):
          raise UserError(
            f"{path}: row {len(rows) + 1} (line {reader.line_num}) has {len(cells)} "
            f"cells under {len(header)} columns; give one cell a column"
          )
        rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=True)))
  except (UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); save it as one") from None
  if not rows:
    raise UserError(f"{path}: a header and no rows; give one shape a row")
  return rows


@dataclasses.dataclass(frozen=True)
class ShapeRow:
  """One row, still as text. Every error names the table, the row, the column, a rule, a way out."""

  cells: Mapping[str, str]
  number: int
  table: str

  def error(self, column: str, problem: str) -> UserError:
    """A UserError about one cell of this row."""
    return UserError(f"{self.table}: row {self.number}, column {column}: {problem}")

  def has(self, column: str) -> bool:
    """Whether the cell holds anything; a missing column, `-` and `n/a` hold nothing."""
    return self.text(column) not in _EMPTY

  def text(self, column: str) -> str:
    """The cell without surrounding space; "" where there is no such column."""
    value = self.cells.get(column)
    return "" if value is None else str(value).strip()

  def number_of(self, column: str) -> float:
    """The cell as a finite number of at least 0."""
    text = self.text(column)
    if text in _EMPTY:
      raise self.error(
        column, f"the cell is {'empty' if column in self.cells else 'missing'}; give a number"
      )
    try:
      value = float(text)
    except ValueError:
      raise self.error(column, f"{text!r} is not a number; write 1408 or 2.15e9") from None
    if not math.isfinite(value) or value < 0:
      raise self.error(column, f"{text} is not a finite number of at least 0; correct the cell")
    return value

  def count(self, column: str, default: int | None = None, least: int = 0) -> int:
    """The cell as a whole number of at least `least`; `default` where the cell holds nothing."""
    if default is not None and not self.has(column):
      return default
    value = self.number_of(column)
    if value >= 2**53:
      raise self.error(
        column,
        f"{self.text(column)} is above 2^53, where counts lose their last digits; correct the cell",
      )
    if value != int(value):
      raise self.error(column, f"{self.text(column)} is not a whole number; round it yourself")
    if value < least:
      raise self.error(column, f"{int(value)} is below {least}; correct the cell")
    return int(value)


def rows_of(rows: Sequence[Mapping[str, str]], table: str) -> list[ShapeRow]:
  """Numbered rows, the first is row 1."""
  return [ShapeRow(cells, number, table) for number, cells in enumerate(rows, 1)]


def architecture_of(row: ShapeRow, vocab_size: int = 0) -> Architecture:
  """The architecture of one row.

  Dense where E is missing, empty or 0. The layout is the column `layout`, else `scheme` with its
  `+SE` (shared expert) taken off, else `n_dense_layers` leading dense layers, none if that is
  missing too. Of n_heads and d_head one may be missing: heads then span d_model exactly.

  Args:
    vocab_size: where the row has no column of that name; 0 is not known.
  Raises:
    UserError: a cell that is missing, not a number or against a rule, by its column.
  """
  num_layers = row.count("n_layers", least=1)
  d_model = row.count("d_model", least=1)
  num_heads, d_head = _heads(row, d_model)
  fields = dict(
    num_layers=num_layers,
    d_model=d_model,
    num_heads=num_heads,
    d_head=d_head,
    num_kv_heads=row.count("n_kv_heads", default=0),
    d_ffn=row.count("d_ffn", default=0),
    vocab_size=row.count("vocab_size", default=vocab_size),
  )
  if row.count("E", default=0):
    fields |= _experts(row) | {"layout": _layout(row, num_layers)}
  try:
    return Architecture(**fields)
  except UserError as error:
    columns = _FIELD.findall(str(error))
    problem = _FIELD.sub(lambda match: COLUMNS[match[0]], str(error))
    raise row.error(COLUMNS[columns[0]] if columns else "layout", problem) from None


def _heads(row: ShapeRow, d_model: int) -> tuple[int, int]:
  given = {
    column: row.count(column, least=1) for column in ("n_heads", "d_head") if row.has(column)
  }
  if len(given) == 2:
    return given["n_heads"], given["d_head"]
  if not given:
    raise row.error("n_heads", "the cell is missing, and so is d_head; give at least one of them")
  ((column, value),) = given.items()
  if d_model % value:
    raise row.error(column, f"{value} does not divide d_model={d_model}; give n_heads and d_head")
  return (value, d_model // value) if column == "n_heads" else (d_model // value, value)


def _experts(row: ShapeRow) -> dict[str, int]:
  experts = {
    "num_experts": row.count("E"),
    "experts_per_token": row.count("K", least=1),
    "d_expert": row.count("De", least=1),
    "d_shared": row.count("Dse", default=0),
  }
  if experts["experts_per_token"] > experts["num_experts"]:
    raise row.error(
      "K",
      f"K={experts['experts_per_token']} exceeds E={experts['num_experts']}; "
      f"a token cannot choose more experts than there are",
    )
  if "SE" in row.text("scheme").split("+")[1:] and not experts["d_shared"]:
    raise row.error(
      "Dse",
      f"no width, but scheme={row.text('scheme')!r} has a shared expert; "
      f"give its width or take +SE off",
    )
  return experts


def _layout(row: ShapeRow, num_layers: int) -> str:
  layout = next(
    (row.text(column).split("+")[0] for column in ("layout", "scheme") if row.has(column)), ""
  )
  leading = row.count("n_dense_layers", default=0)
  if not layout:
    if leading >= num_layers:
      raise row.error(
        "n_dense_layers",
        f"{leading} of n_layers={num_layers} leaves no MoE layer "
        f"for E={row.text('E')}; give fewer, or E=0",
      )
    return f"{leading}dense" if leading else "full"
  if row.has("n_dense_layers") and layout.endswith("dense") and layout != f"{leading}dense":
    raise row.error("n_dense_layers", f"{leading} contradicts {layout!r}; keep one of them")
  return layout
