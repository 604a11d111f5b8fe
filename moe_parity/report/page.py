"""The report of a study: one HTML file that needs nothing else, and plain files alongside it.

First screen: the sentence, the figure, the three resources, what speaks against the sentence. Then
what it rests on. Figures are inline SVG in two widths, desk and phone. The page's own script shows
hover texts and nothing else; its policy lets the browser run no other script and fetch nothing.
What a study does not have (yet) is named where it would stand.
"""

import base64
import hashlib
import html
import pathlib
from collections.abc import Sequence

from moe_parity import files
from moe_parity.report import (
  architecture,
  comparisons,
  data_reuse,
  downstream,
  expert_share,
  figure_style,
  figures,
  finetuning,
  first_figure,
  glossary,
  learning_rates,
  paper_figures,
  resource_bars,
  routing,
  sections,
  specialization,
  sweeps,
  tables,
)
from moe_parity.report.markup import Section, details, figure, table
from moe_parity.report.table_formats import Table, file_name
from moe_parity.study import reading
from moe_parity.study.analysis import compare
from moe_parity.study.reading import read_steps


def write_report(study_folder: str | pathlib.Path) -> pathlib.Path:
  """Analyzes a study and its comparisons, or a single run: writes analysis.json, report/, returns
  index.html.

  report/ then holds index.html, figures as PNG and SVG, tables as Markdown, CSV and LaTeX.
  Files are replaced one by one, each atomically; those of an older report that this study no
  longer gives are removed.

  Raises:
    UserError: the folder is neither a study nor a run, or a link leads out of it.
  """
  study = reading.read_study(study_folder)
  steps = read_steps(study_folder)
  report = files.read_json(compare.write_analysis(study_folder))
  folder = pathlib.Path(study_folder) / "report"
  reading.check_inside(pathlib.Path(study_folder), folder)
  folder.mkdir(exist_ok=True)
  counted = specialization.read(reading.compared(study))
  others = comparisons.read(pathlib.Path(study_folder))
  tuned = finetuning.read(pathlib.Path(study_folder))
  drawings = every_drawing(study_folder, report)
  drawings |= {drawing.name: drawing for drawing in comparisons.drawings(others)}
  parts = _tables(study, report, steps, counted)
  parts |= {made.name: made for made in comparisons.all_tables(others)}
  if tuned:
    parts |= {t.name: t for t in (finetuning.finetuned(tuned), finetuning.compared(tuned))}
  examined = downstream.read(study_folder)
  parts |= {made.name: made for made in downstream.all_tables(examined)}
  written = {"index.html"}
  for drawing in drawings.values():
    stem = file_name(drawing.name)
    files.write_bytes(folder / f"{stem}.png", drawing.png(figure_style.DESK))
    files.write_bytes(folder / f"{stem}.svg", drawing.svg(figure_style.DESK).encode())
    written |= {f"{stem}.png", f"{stem}.svg"}
  for part in parts.values():
    stem = file_name(part.name)
    for ending, text in (("md", part.markdown()), ("csv", part.csv()), ("tex", part.latex())):
      files.write_bytes(folder / f"{stem}.{ending}", text.encode())
      written.add(f"{stem}.{ending}")
  html = page(study, report, steps, drawings, parts, others, tuned, examined)
  files.write_bytes(folder / "index.html", html.encode())
  for path in folder.iterdir():
    if path.suffix in (".png", ".svg", ".md", ".csv", ".tex") and path.name not in written:
      path.unlink(missing_ok=True)  # another worker may have been faster
  return folder / "index.html"


def policy(script: str) -> str:
  """The page's Content-Security-Policy: this one script, its own styles, inline pictures."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
  )


def _own(name: str) -> str:
  """The text of a file of this folder."""
  return (pathlib.Path(__file__).parent / name).read_text()


def page(
  study: reading.StudyRecord,
  report: dict,
  steps: dict[str, dict],
  drawings: dict[str, figure_style.Drawing],
  parts: dict[str, Table],
  others: Sequence[comparisons.AnalyzedComparison] = (),
  tuned: dict | None = None,
  examined: dict | None = None,
) -> str:
  """The whole HTML text; `tuned` is finetuning.json, `examined` downstream.json."""
  symbols = glossary.FirstUses()
  top = [
    sections.headline(report, steps),
    first_figure.first_figure(study, report),
    resource_bars.resource_bars(report),
    sections.against(report),
    sections.findings(steps),
  ]
  first = "".join(part + symbols.line(part) for part in top)
  below = _sections_below(
    study, report, steps, drawings, parts, others, tuned or {}, examined or {}
  )
  body = "\n".join(
    f'<section id="s{i}"><h2>{html.escape(s.title)}</h2>\n{symbols.line(s.body)}{s.body}</section>'
    for i, s in enumerate(below)
  )
  contents = " ".join(f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(below))
  return _document(study, first, contents, body)


def _sections_below(
  study, report, steps, drawings, parts, others, tuned, examined
) -> list[Section]:
  """What follows the first screen, in order; arguments as of `page`."""
  domains = table(parts["domains"], "no arm is evaluated yet")
  domains += details(
    "MoE minus dense in each domain", table(parts["domain_differences"], "none yet")
  )
  plan = "".join(table(parts[n], "plan.json is not there") for n in ("shapes", "plan"))
  return [
    *sections.architecture(steps["architecture"], drawings, parts),
    *sections.data_reuse(steps["data_reuse"], drawings, parts),
    *sections.main_sweep(drawings, report, steps),
    Section("MoE against dense", table(parts["comparisons"], "nothing to compare yet")),
    sections.controls(report, drawings, parts),
    *learning_rates.section(report, parts),
    sections.resources(report, parts),
    *sections.activation_rate(steps["activation_rate"], drawings, parts),
    *comparisons.section(list(others), drawings, parts),
    *finetuning.section(tuned),
    *downstream.section(examined, drawings, parts),
    Section("Arms", table(parts["arms"], "no arms are planned") + table(parts["effort"])),
    Section("Plan", plan),
    sections.certificate(study, report, parts),
    Section("Loss", figure(drawings.get("loss_curves"), "no run has logged a step yet")),
    sections.routing(drawings, parts, report),
    Section("Domains", domains),
    sections.versus_paper(drawings, parts),
    sections.method(report),
    sections.reproduce(study, parts),
  ]


def _document(study: reading.StudyRecord, first: str, contents: str, body: str) -> str:
  """The HTML around the first screen, the list of contents and the sections."""
  title = html.escape(study.name)
  created = html.escape(str(study.info.get("created", "")))
  script = _own("page.js")
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: dense against MoE</title>
<style>{_own("page.css")}</style>
</head>
<body>
<header>
<p class="kicker">moe_parity &middot; equal N, C and D</p>
<h1>{title}</h1>
<p class="when">{created}</p>
</header>
<div class="top">
{first}</div>
<nav aria-label="Contents">{contents}</nav>
{body}
<script>{script}</script>
</body>
</html>
"""


def every_drawing(
  study_folder: str | pathlib.Path, report: dict
) -> dict[str, figure_style.Drawing]:
  """Every figure there is data for, by name; without further comparisons; expert loads for the
  first seed of each arm.

  Args:
    report: what `compare.analyze` gives for the folder.
  """
  study, steps = reading.compared(reading.read_study(study_folder)), read_steps(study_folder)
  counted = specialization.read(study)
  first = {run.name: run for run in reversed(study.runs) if reading.read_routing(run.folder)}
  drawings = [
    figures.activation_rate(report),
    architecture.shape_scatter(steps["architecture"]),
    sweeps.panels(steps["activation_rate"]),
    sweeps.fixed_data(steps["activation_rate"]),
    sweeps.transfer(steps["activation_rate"]),
    data_reuse.by_scheme(steps["data_reuse"]),
    data_reuse.decay(steps["data_reuse"]),
    figures.loss_curves(study),
    paper_figures.excess_over_dense(report),
    paper_figures.compute_ratio(study),
    paper_figures.loss_over_data(study),
    expert_share.gate_sums(study),
    expert_share.layer_norms(study),
    routing.health(study),
    routing.loads(list(reversed(first.values()))),
    specialization.by_layer(counted),
    specialization.experts(counted),
    downstream.figure_8(downstream.read(study_folder)),
  ]
  return {drawing.name: drawing for drawing in drawings if drawing}


def _tables(
  study: reading.StudyRecord, report: dict, steps: dict, counted: list[specialization.Counted]
) -> dict[str, Table]:
  planned = [arm for arm in study.plan.get("arms", []) if not arm.get("tunes")]
  every = [
    tables.arms(report),
    tables.resources(report),
    expert_share.controls(report),
    learning_rates.learning_rates(report),
    expert_share.ablations(report),
    expert_share.layers(study),
    tables.domains(report),
    tables.comparisons(report),
    tables.domain_differences(report),
    tables.shapes(planned),
    tables.plan(planned),
    tables.paper_columns(report, planned),
    tables.certificate("certificate", [("all arms", study.certificate)]),
    tables.certificate("certificates", [(run.label, run.certificate) for run in study.runs]),
    tables.effort(report),
    tables.versions(study.info),
    tables.data(study.info),
    specialization.table(counted),
  ]
  if steps["architecture"]:
    every += architecture.stage_tables(steps["architecture"])
    every.append(architecture.backbones(steps["architecture"]))
  if steps["activation_rate"]:
    every += [sweeps.table(steps["activation_rate"]), sweeps.tuning(steps["activation_rate"])]
  if steps["data_reuse"]:
    every += [data_reuse.schemes(steps["data_reuse"]), data_reuse.costs(steps["data_reuse"])]
  return {part.name: part for part in every}
