"""Tables as text, Markdown, CSV, LaTeX and HTML: one object, five spellings.

CSV carries full precision; the others carry the formatted cells.
"""

import csv
import dataclasses
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from moe_parity import markdown
from moe_parity.report import glossary


@dataclasses.dataclass(frozen=True)
class Column:
  """`key` looks the value up in a row, `show` formats it; None is shown as an empty cell.

  `number` aligns to the right; `wrap` lets long text break in HTML.
  """

  key: str
  header: str
  show: Callable[[Any], str] = str
  number: bool = True
  wrap: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  name: str
  title: str
  columns: tuple[Column, ...]
  rows: list[dict]

  def cells(self) -> list[list[str]]:
    return [
      ["" if row.get(c.key) is None else c.show(row[c.key]) for c in self.columns]
      for row in self.rows
    ]

  def markdown(self) -> str:
    numbers = [place for place, column in enumerate(self.columns) if column.number]
    return markdown.table([c.header for c in self.columns], self.cells(), numbers)

  def text(self) -> str:
    """Aligned columns as wide as their cells, numbers to the right, for a terminal."""
    cells = [[c.header for c in self.columns], *self.cells()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for line in cells:
      pairs = zip(line, widths, self.columns, strict=True)
      aligned = (cell.rjust(w) if c.number else cell.ljust(w) for cell, w, c in pairs)
      lines.append("  ".join(aligned).rstrip() + "\n")
    return "".join(lines)

  def csv(self) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([name for c in self.columns for name in _names(c)])
    for row in self.rows:
      writer.writerow([value for c in self.columns for value in _values(c, row.get(c.key))])
    return target.getvalue()

  def latex(self) -> str:
    """A booktabs tabular inside a table float; needs \\usepackage{booktabs}."""
    align = "".join("r" if c.number else "l" for c in self.columns)
    lines = [
      "\\begin{table}",
      "\\centering",
      f"\\caption{{{_tex(self.title)}}}",
      f"\\label{{tab:{self.name}}}",
      f"\\begin{{tabular}}{{{align}}}",
      "\\toprule",
      " & ".join(_tex(c.header) for c in self.columns) + " \\\\",
      "\\midrule",
      *(" & ".join(_tex(cell) for cell in cells) + " \\\\" for cells in self.cells()),
      "\\bottomrule",
      "\\end{tabular}",
      "\\end{table}",
    ]
    return "\n".join(lines) + "\n"

  def html(self) -> str:
    looks = [" class=n" if c.number else " class=w" if c.wrap else "" for c in self.columns]

    def row(cells: list[str]) -> str:
      return "".join(
        f"<td{look}>{html.escape(cell)}</td>" for look, cell in zip(looks, cells, strict=True)
      )

    heads = "".join(
      f"<th{look}>{glossary.marked(c.header)}</th>"
      for look, c in zip(looks, self.columns, strict=True)
    )
    head = f"<thead><tr>{heads}</tr></thead>"
    body = "".join(f"<tr>{row(cells)}</tr>\n" for cells in self.cells())
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody></table></div>'


def of_rows(rows: Sequence[dict]) -> Table:
  """Rows of equal keys as a table without name: keys are headers, "_" between words a
  space, numbers to the right where the first row has one."""
  columns = [
    Column(key, _header(key), general, _is_number(value)) for key, value in rows[0].items()
  ]
  return Table("", "", tuple(columns), list(rows))


def _header(key: str) -> str:
  """The key in words; a symbol keeps its underscore."""
  text = key.replace("_", " ")
  for symbol in glossary.SYMBOLS:
    text = re.sub(rf"\b{re.escape(symbol.replace('_', ' '))}(?!\w)", symbol, text)
  return text


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float)


def general(value: Any) -> str:
  """A cell of any kind: integers with separators, other numbers to four digits."""
  if isinstance(value, bool) or not _is_number(value):
    return "" if value is None else str(value)
  if isinstance(value, int):
    return f"{value:,}" if abs(value) < 10**9 else f"{value:.4g}"
  return f"{value:.4g}"


def file_name(name: str) -> str:
  """A name of a study's as the stem of a file in report/: letters, digits, "_", "-" and ".", so
  that none leads out of the folder."""
  return re.sub(r"[^\w.\-]", "_", name).lstrip(".") or "_"


def fixed(digits: int) -> Callable[[float], str]:
  return lambda x: f"{x:.{digits}f}"


def percent(x: int | float) -> str:
  return f"{100 * x:.2f}"


def signed(x: int | float) -> str:
  return f"{x:+.4f}".replace("-", "\N{MINUS SIGN}")


def signed_percent(x: int | float) -> str:
  return f"{x:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(ends: list[float]) -> str:
  return f"{signed(ends[0])} to {signed(ends[1])}"


def levels(ends: list[float]) -> str:
  """The ends of an interval of levels, which have no sign to show."""
  return f"{ends[0]:.4f} to {ends[1]:.4f}"


def scientific(x: int | float) -> str:
  return f"{x:.3g}" if 0.01 <= abs(x) < 1e4 else f"{x:.3e}".replace("e+", "e")


def count(x: int | float) -> str:
  """1,234 below a million, then 1.234M, 1.234B, 1.234T: four digits."""
  for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
    if abs(x) >= size:
      return f"{x / size:.4g}{unit}"
  return f"{x:,.0f}"


def quantity(x: Any) -> str:
  if isinstance(x, bool) or not isinstance(x, int | float):
    return str(x)
  if float(x).is_integer() and abs(x) < 1e12:
    return f"{x:,.0f}"
  return f"{x:.6g}"


def _names(column: Column) -> list[str]:
  return (
    [f"{column.key}_{end}" for end in ("low", "high")] if _is_interval(column) else [column.key]
  )


def _values(column: Column, value: Any) -> list:
  return list(value or (None, None)) if _is_interval(column) else [value]


def _is_interval(column: Column) -> bool:
  return column.show in (interval, levels)


def _tex(text: str) -> str:
  text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
  text = text.replace("^", r"\textasciicircum{}").replace("~", r"\textasciitilde{}")
  text = text.replace("<", r"\textless{}").replace(">", r"\textgreater{}")
  return text.replace("\N{MINUS SIGN}", "$-$")
