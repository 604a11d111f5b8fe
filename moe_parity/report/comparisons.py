"""The further comparisons of a study, each a complete study folder under parts/: what each found,
its certificate, its arms in the paper's columns and its figure.

`moe-parity report STUDY/parts/NAME` writes a whole page of one of them.
"""

import dataclasses
import html
import pathlib
import re

from moe_parity import files
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
class AnalyzedComparison:
  """A comparison with its study folder as read, and its analysis.json."""

  name: str
  study: reading.StudyRecord
  report: dict

  @property
  def has_dense(self) -> bool:
    return any(arm["kind"] == "dense" for arm in self.study.plan.get("arms", []))


def read(study_folder: pathlib.Path) -> list[AnalyzedComparison]:
  """Every comparison of a study, analyzed anew, epochs_8 before epochs_16; [] if it has none."""
  results = []
  folders = reading.comparison_folders(pathlib.Path(study_folder))
  for folder in sorted(folders, key=lambda folder: _by_number(folder.name)):
    report = files.read_json(compare.write_analysis(folder))
    results.append(AnalyzedComparison(folder.name, reading.read_study(folder), report))
  return results


def _by_number(name: str) -> list:
  """A key that sorts digits by what they count."""
  return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)]


def what(comparison: AnalyzedComparison) -> str:
  """What all arms of a comparison share, in words."""
  budget = comparison.study.plan["budget"]
  shared = f"C = {scientific(budget['train_flops'])} FLOPs"
  if budget.get("held_fixed") == "tokens":
    shared = f"{count(budget['dense_tokens'])} tokens, whatever that costs"
  reuse = budget["reuse"]
  if reuse == "epochs":
    reuse = f"{budget['epochs']:g} epochs"
  return f"Every arm has N = {count(budget['num_params'])} and {shared}; reuse: {reuse}."


def drawings(comparisons: list[AnalyzedComparison]) -> list[figure_style.Drawing]:
  """BPC over activation rate of each comparison that has it."""
  pairs = [(comparison, figures.activation_rate(comparison.report)) for comparison in comparisons]
  return [
    dataclasses.replace(
      drawing,
      name=f"{comparison.name}_{drawing.name}",
      title=f"{comparison.name}: {_of(comparison, drawing.title)}",
    )
    for comparison, drawing in pairs
    if drawing
  ]


def _of(comparison: AnalyzedComparison, title: str) -> str:
  at_tokens = comparison.study.plan["budget"].get("held_fixed") == "tokens"
  return title.replace("fixed N and C", "fixed N and D") if at_tokens else title


def all_tables(comparisons: list[AnalyzedComparison]) -> list[Table]:
  """Differences to dense, certificate and the paper's columns, named after the comparison."""
  found = []
  for comparison in comparisons:
    runs = [(run.label, run.certificate) for run in comparison.study.runs]
    for made in (
      tables.comparisons(comparison.report),
      tables.paper_columns(comparison.report, comparison.study.plan["arms"]),
      tables.certificate("certificate", [("all arms", comparison.study.certificate)]),
      tables.certificate("certificates", runs),
    ):
      found.append(
        dataclasses.replace(
          made, name=f"{comparison.name}_{made.name}", title=f"{comparison.name}: {made.title}"
        )
      )
  return found


def section(
  comparisons: list[AnalyzedComparison],
  drawn: dict[str, figure_style.Drawing],
  made: dict[str, Table],
) -> list[Section]:
  """One section for all comparisons; nothing for a study that has none."""
  if not comparisons:
    return []
  body = ""
  for comparison in comparisons:
    body += f"<h3>{html.escape(comparison.name)}</h3>\n" + paragraphs([what(comparison)])
    if comparison.has_dense:
      body += bullets([comparison.report["verdict"]["headline"]])
    else:
      body += paragraphs(
        ["It trains no dense arm; its arms are compared with the study's own, see above."]
      )
    body += figure(drawn.get(f"{comparison.name}_activation_rate"))
    body += table(made[f"{comparison.name}_comparisons"])
    body += _certificate(comparison, made)
    columns = made[f"{comparison.name}_paper_columns"]
    body += details(columns.title, table(columns))
  return [Section("Comparisons of this study", body)]


def _certificate(comparison: AnalyzedComparison, made: dict[str, Table]) -> str:
  certificate = comparison.report["certificate"]
  if certificate["passed"] is None:
    return missing_note(f"a certificate for {', '.join(certificate['missing']) or comparison.name}")
  outcome = (
    "passed" if certificate["passed"] else "did NOT pass: " + "; ".join(certificate["failures"])
  )
  checks = table(made[f"{comparison.name}_certificate"]) + table(
    made[f"{comparison.name}_certificates"]
  )
  where = f"every check: {comparison.name}_certificate.csv and {comparison.name}_certificates.csv"
  # Hundreds of rows a comparison: on paper their files are named instead.
  return paragraphs([f"Certificate: {outcome} ({where})."]) + details(
    f"{comparison.name}: every check", checks, on_paper=False
  )
