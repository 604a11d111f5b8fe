"""Tables of a study as Markdown, CSV, LaTeX and HTML: one object, four spellings.

CSV carries full precision; the other three carry the formatted cells.
"""

import csv
import dataclasses
import html
import io
import re
from collections.abc import Callable
from typing import Any


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
    def line(cells: list[str]) -> str:
      return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    rule = ["---:" if c.number else "---" for c in self.columns]
    head = [c.header for c in self.columns]
    return line(head) + line(rule) + "".join(line(cells) for cells in self.cells())

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

    def row(tag: str, cells: list[str]) -> str:
      return "".join(
        f"<{tag}{look}>{html.escape(cell)}</{tag}>" for look, cell in zip(looks, cells, strict=True)
      )

    head = f"<thead><tr>{row('th', [c.header for c in self.columns])}</tr></thead>"
    body = "".join(f"<tr>{row('td', cells)}</tr>\n" for cells in self.cells())
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody></table></div>'


def arms(report: dict) -> Table:
  """A row for every planned run, finished or not, with its resources and scores."""
  return Table(
    "arms",
    "Arms: resources and held-out scores",
    (
      Column("name", "arm", number=False),
      Column("kind", "kind", number=False),
      Column("role", "role", number=False),
      Column("seed", "seed"),
      Column("status", "status", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("num_params", "N", count),
      Column("train_flops", "C", scientific),
      Column("num_tokens", "tokens", count),
      Column("epochs", "epochs", fixed(2)),
      Column("train_cross_entropy", "train CE", fixed(4)),
      Column("bpc", "BPC", fixed(4)),
      Column("bpb", "BPB", fixed(4)),
      Column("macro_bpc", "macro BPC", fixed(4)),
    ),
    report["arms"],
  )


def domains(report: dict) -> Table:
  """BPC of every run in every domain."""
  names = list(dict.fromkeys(d for row in report["arms"] for d in row["by_domain"]))
  rows = [
    row | {f"bpc_{d}": v["bpc"] for d, v in row["by_domain"].items()}
    for row in report["arms"]
    if row["by_domain"]
  ]
  columns = (Column("name", "arm", number=False), Column("seed", "seed"))
  columns += (Column("activation_rate", "r_a %", percent),)
  columns += tuple(Column(f"bpc_{d}", d, fixed(4)) for d in names)
  columns += (Column("macro_bpc", "macro", fixed(4)), Column("bpc", "all", fixed(4)))
  return Table("domains", "BPC by domain", columns, rows)


def comparisons(report: dict) -> Table:
  """Every MoE arm against the dense arm at parity and against the references."""
  return Table(
    "comparisons",
    "MoE minus dense, BPC, with 95 % intervals",
    (
      Column("name", "arm", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("baseline", "against", number=False),
      Column("num_seeds", "seeds"),
      Column("difference", "difference", signed),
      Column("interval", "alone", interval),
      Column("simultaneous", "all together", interval),
      Column("verdict", "verdict", number=False),
    ),
    report["comparisons"] + report["references"],
  )


def domain_differences(report: dict) -> Table:
  return Table(
    "domain_differences",
    "MoE minus dense by domain, BPC",
    (
      Column("domain", "domain", number=False),
      Column("num_documents", "documents"),
      Column("name", "arm", number=False),
      Column("baseline_bpc", "dense BPC", fixed(4)),
      Column("bpc", "BPC", fixed(4)),
      Column("difference", "difference", signed),
      Column("interval", "95 % interval", interval),
    ),
    report["by_domain"],
  )


def shapes(arms_of_plan: list[dict]) -> Table:
  """The planned architectures; an arm once, for its seeds share them."""
  once = {arm["name"]: {**arm.get("architecture", {}), **arm} for arm in arms_of_plan}
  return Table(
    "shapes",
    "Plan: shapes",
    (
      Column("name", "arm", number=False),
      Column("layout", "layout", number=False),
      Column("num_layers", "L"),
      Column("d_model", "d_model"),
      Column("num_heads", "heads"),
      Column("d_ffn", "d_ffn"),
      Column("num_experts", "E"),
      Column("experts_per_token", "K"),
      Column("d_expert", "d_expert"),
      Column("d_shared", "d_shared"),
      Column("num_params", "N", count),
      Column("num_active_params", "N_a", count),
      Column("activation_rate", "r_a %", percent),
      Column("exact_num_params", "all parameters", count),
    ),
    list(once.values()),
  )


def plan(arms_of_plan: list[dict]) -> Table:
  """Training length, optimizer settings and distance to the budget of every planned run."""
  return Table(
    "plan",
    "Plan: training, and distance to the budget",
    (
      Column("name", "arm", number=False),
      Column("seed", "seed"),
      Column("train_flops_per_token", "M train", scientific),
      Column("num_tokens", "tokens", count),
      Column("num_unique_tokens", "unique", count),
      Column("num_steps", "steps"),
      Column("batch_sequences", "batch"),
      Column("peak_learning_rate", "peak lr", scientific),
      Column("warmup_steps", "warm-up"),
      Column("compute_multiple", "x C", lambda x: f"{x:g}"),
      Column("residual_params_pct", "N off %", signed_percent),
      Column("residual_flops_pct", "C off %", signed_percent),
      Column("residual_unique_pct", "D^ off %", signed_percent),
    ),
    arms_of_plan,
  )


def paper_columns(report: dict, arms_of_plan: list[dict]) -> Table:
  """The runs in the columns of the paper's Tables 9 to 17, to be set beside them.

  M is the training value, as there; B counts sequences.
  """
  scores = {(row["name"], row["seed"]): row["bpc"] for row in report["arms"]}
  rows = [
    {
      **arm.get("architecture", {}),
      **arm,
      "tokens_per_param": arm["num_tokens"] / arm["num_params"],
      "bpc": scores.get((arm["name"], arm["seed"])),
    }
    for arm in arms_of_plan
  ]
  return Table(
    "paper_columns",
    "The runs in the paper's columns",
    (
      Column("name", "arm", number=False),
      Column("seed", "seed"),
      Column("num_params", "N", count),
      Column("num_active_params", "N_a", count),
      Column("activation_rate", "r_a %", percent),
      Column("train_flops_per_token", "M", scientific),
      Column("num_tokens", "D", count),
      Column("num_unique_tokens", "D^", count),
      Column("epochs", "epochs", fixed(2)),
      Column("train_flops", "C", scientific),
      Column("tokens_per_param", "D/N", fixed(1)),
      Column("num_layers", "L"),
      Column("d_model", "D_m"),
      Column("num_experts", "E"),
      Column("experts_per_token", "K"),
      Column("d_expert", "D_e"),
      Column("d_shared", "D_se"),
      Column("peak_learning_rate", "lr", scientific),
      Column("batch_sequences", "B"),
      Column("num_steps", "iters"),
      Column("bpc", "BPC", fixed(4)),
    ),
    rows,
  )


def certificate(name: str, parts: list[tuple[str, dict]]) -> Table:
  """All checks of (whose, certificate) pairs: planned against measured."""
  rows = [
    {**check, "whose": whose, "passed": "yes" if check["passed"] else "NO"}
    for whose, part in parts
    for check in part.get("checks", [])
  ]
  return Table(
    name,
    "Certificate: planned against measured",
    (
      Column("whose", "of", number=False),
      Column("name", "check", number=False),
      Column("planned", "planned", quantity),
      Column("measured", "measured", quantity),
      Column("difference_pct", "off %", signed_percent),
      Column("tolerance_pct", "allowed %", lambda x: f"{x:g}"),
      Column("passed", "passed", number=False),
      Column("how", "how it was measured", number=False, wrap=True),
    ),
    rows,
  )


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
  return column.show is interval


def _tex(text: str) -> str:
  text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
  text = text.replace("^", r"\textasciicircum{}").replace("~", r"\textasciitilde{}")
  text = text.replace("<", r"\textless{}").replace(">", r"\textgreater{}")
  return text.replace("\N{MINUS SIGN}", "$-$")
