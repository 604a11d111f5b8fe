"""The further comparisons of a study, each a complete study folder under parts/: what each found,
its certificate, its arms in the paper's columns and its figure.

`moe-parity report STUDY/parts/NAME` writes a whole page of one of them.
"""

import dataclasses
import html
import json
import pathlib
import re

from moe_parity.report import figure_style, figures, tables
from moe_parity.report.markup import (
  Section,
  bullets,
  details,
  figure,
  missing_note,
  paragraphs,
  table,
)
from moe_parity.report.table_formats import Table, count, scientific
from moe_parity.study import reading
from moe_parity.study.analysis import compare


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A part's folder as it was read, and what analysis.json holds of it."""

  name: str
  study: reading.Study
  report: dict

  @property
  def has_dense(self) -> bool:
    return any(arm["kind"] == "dense" for arm in self.study.plan.get("arms", []))


def read(study_folder: pathlib.Path) -> list[Comparison]:
  """Every part of a study, analyzed anew, epochs_8 before epochs_16; [] if it has none."""
  found = []
  plans = (pathlib.Path(study_folder) / "parts").glob("*/plan.json")
  for path in sorted(plans, key=lambda path: _by_number(path.parent.name)):
    report = json.loads(compare.write_analysis(path.parent).read_text())
    found.append(Comparison(path.parent.name, reading.read_study(path.parent), report))
  return found


def _by_number(name: str) -> list:
  """A key that sorts digits by what they count."""
  return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)]


def what(part: Comparison) -> str:
  """What all arms of a part share, in words."""
  budget = part.study.plan["budget"]
  shared = f"C = {scientific(budget['train_flops'])} FLOPs"
  if budget.get("shared") == "tokens":
    shared = f"{count(budget['dense_tokens'])} tokens, whatever that costs"
  reuse = budget["reuse"]
  if reuse == "epochs":
    reuse = f"{budget['epochs']:g} epochs"
  return f"Every arm has N = {count(budget['num_params'])} and {shared}; reuse: {reuse}."


def drawings(parts: list[Comparison]) -> list[figure_style.Drawing]:
  """BPC over activation rate of each part that has it."""
  found = [(part, figures.activation_rate(part.report)) for part in parts]
  return [
    dataclasses.replace(
      drawing, name=f"{part.name}_{drawing.name}", title=f"{part.name}: {_of(part, drawing.title)}"
    )
    for part, drawing in found
    if drawing
  ]


def _of(part: Comparison, title: str) -> str:
  at_tokens = part.study.plan["budget"].get("shared") == "tokens"
  return title.replace("fixed N and C", "fixed N and D") if at_tokens else title


def all_tables(parts: list[Comparison]) -> list[Table]:
  """Differences to dense, certificate and the paper's columns, named after the part."""
  found = []
  for part in parts:
    runs = [(run.label, run.certificate) for run in part.study.runs]
    for made in (
      tables.comparisons(part.report),
      tables.paper_columns(part.report, part.study.plan["arms"]),
      tables.certificate("certificate", [("all arms", part.study.certificate)]),
      tables.certificate("certificates", runs),
    ):
      found.append(
        dataclasses.replace(
          made, name=f"{part.name}_{made.name}", title=f"{part.name}: {made.title}"
        )
      )
  return found


def section(
  parts: list[Comparison], drawn: dict[str, figure_style.Drawing], made: dict[str, Table]
) -> list[Section]:
  """One section for all parts; nothing for a study that has none."""
  if not parts:
    return []
  body = ""
  for part in parts:
    body += f"<h3>{html.escape(part.name)}</h3>\n" + paragraphs([what(part)])
    if part.has_dense:
      body += bullets([part.report["verdict"]["headline"]])
    else:
      body += paragraphs(["It trains no dense arm: the study's own stands against it, see above."])
    body += figure(drawn.get(f"{part.name}_activation_rate"))
    body += table(made[f"{part.name}_comparisons"])
    body += _certificate(part, made)
    columns = made[f"{part.name}_paper_columns"]
    body += details(columns.title, table(columns))
  return [Section("Parts of this study", body)]


def _certificate(part: Comparison, made: dict[str, Table]) -> str:
  found = part.report["certificate"]
  if found["passed"] is None:
    return missing_note(f"a certificate for {', '.join(found['missing']) or part.name}")
  said = "passed" if found["passed"] else "did NOT pass: " + "; ".join(found["failures"])
  checks = table(made[f"{part.name}_certificate"]) + table(made[f"{part.name}_certificates"])
  where = f"every check: {part.name}_certificate.csv and {part.name}_certificates.csv"
  # Hundreds of rows a part: on paper their files are named instead.
  return paragraphs([f"Certificate: {said} ({where})."]) + details(
    f"{part.name}: every check", checks, on_paper=False
  )
