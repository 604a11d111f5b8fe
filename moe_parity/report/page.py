"""The report of a study: one HTML file that needs nothing else, and the plain files beside it.

Verdict first, then what it rests on. Figures are inline SVG images in two widths, desk and phone;
no script, no network. What a study does not have (yet) is named where it would stand.
"""

import base64
import dataclasses
import html
import json
import os
import pathlib

from moe_parity.report import figures, paper, routing, style, tables
from moe_parity.study import analysis, reading


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and HTML that is already escaped."""

  title: str
  body: str


def write_report(study_folder: str | pathlib.Path) -> pathlib.Path:
  """Analyses a study or a single run and writes analysis.json and report/; returns index.html.

  report/ then holds index.html, figures as PNG and SVG, tables as Markdown, CSV and LaTeX.
  Files are replaced one by one, each atomically.

  Raises:
    UserError: the folder is neither a study nor a run.
  """
  study = reading.read_study(study_folder)
  report = json.loads(analysis.write_analysis(study_folder).read_text())
  folder = pathlib.Path(study_folder) / "report"
  folder.mkdir(exist_ok=True)
  drawings = _drawings(study, report)
  for drawing in drawings:
    _write(folder / f"{drawing.name}.png", drawing.png(style.DESK))
    _write(folder / f"{drawing.name}.svg", drawing.svg(style.DESK).encode())
  for table in _tables(study, report).values():
    _write(folder / f"{table.name}.md", table.markdown().encode())
    _write(folder / f"{table.name}.csv", table.csv().encode())
    _write(folder / f"{table.name}.tex", table.latex().encode())
  _write(folder / "index.html", page(study, report, drawings).encode())
  return folder / "index.html"


def page(study: reading.Study, report: dict, drawings: list[style.Drawing]) -> str:
  """The whole HTML text."""
  by_name = {drawing.name: drawing for drawing in drawings}
  parts = _tables(study, report)
  sections = [
    Section("Activation rate", _figure(by_name.get("activation_rate"), "no MoE arm is done yet")),
    Section("MoE against dense", _table(parts["comparisons"], "nothing to compare yet")),
    Section("Arms", _table(parts["arms"], "no arms are planned")),
    Section(
      "Plan", "".join(_table(parts[n], "plan.json is not there") for n in ("shapes", "plan"))
    ),
    Section("Certificate", _certificate(study, report)),
    Section("Loss", _figure(by_name.get("loss_curves"), "no run has logged a step yet")),
    Section("Routing", _routing(by_name, report)),
    Section(
      "Domains",
      _table(parts["domains"], "no arm is evaluated yet")
      + _fold("MoE minus dense in each domain", _table(parts["domain_differences"], "none yet")),
    ),
    Section("Beside the paper", _paper(by_name, parts["paper_columns"])),
    Section("How the intervals are made", _method(report)),
    Section("How to reproduce", _reproduce(study)),
  ]
  title = html.escape(study.name)
  body = "\n".join(
    f'<section id="s{i}"><h2>{html.escape(s.title)}</h2>\n{s.body}</section>'
    for i, s in enumerate(sections)
  )
  contents = " ".join(f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections))
  created = html.escape(str(study.info.get("created", "")))
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: dense against MoE</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<p class="kicker">moe_parity &middot; equal N, C and D</p>
<h1>{title}</h1>
<p class="when">{created}</p>
</header>
{_verdict(report)}
<nav aria-label="Contents">{contents}</nav>
{body}
</body>
</html>
"""


def _drawings(study: reading.Study, report: dict) -> list[style.Drawing]:
  """Every figure there is data for; expert loads for the first seed of each arm."""
  first = {run.name: run for run in reversed(study.runs) if reading.read_routing(run.folder)}
  found = [
    figures.activation_rate(report),
    figures.loss_curves(study),
    paper.excess_over_dense(report),
    paper.compute_ratio(study),
    routing.health(study),
    routing.loads(list(reversed(first.values()))),
  ]
  return [drawing for drawing in found if drawing]


def _tables(study: reading.Study, report: dict) -> dict[str, tables.Table]:
  every = (
    tables.arms(report),
    tables.domains(report),
    tables.comparisons(report),
    tables.domain_differences(report),
    tables.shapes(study.plan.get("arms", [])),
    tables.plan(study.plan.get("arms", [])),
    tables.paper_columns(report, study.plan.get("arms", [])),
    tables.certificate("certificate", [("all arms", study.certificate)]),
    tables.certificate("certificates", [(run.label, run.certificate) for run in study.runs]),
  )
  return {table.name: table for table in every}


def _verdict(report: dict) -> str:
  verdict = report["verdict"]
  failed = report["certificate"]["passed"] is False
  tone = "bad" if failed else "good" if verdict["conclusive"] else "open"
  lines = "".join(f"<li>{html.escape(line)}</li>\n" for line in verdict["sentences"])
  warnings = "".join(f"<li>{html.escape(line)}</li>\n" for line in report["warnings"])
  notes = f'<div class="warn"><h2>Read with care</h2><ul>{warnings}</ul></div>' if warnings else ""
  return f"""<section class="verdict {tone}">
<p class="headline">{html.escape(verdict["headline"])}</p>
<ul>
{lines}</ul>
</section>
{notes}"""


def _figure(drawing: style.Drawing | None, missing: str) -> str:
  if drawing is None:
    return _absent(missing)
  desk, phone = (
    "data:image/svg+xml;base64," + base64.b64encode(drawing.svg(width).encode()).decode()
    for width in (style.DESK, style.PHONE)
  )
  alt = html.escape(f"{drawing.title}. {drawing.caption}", quote=True)
  return f"""<figure>
<picture><source media="(max-width: 560px)" srcset="{phone}">
<img src="{desk}" alt="{alt}"></picture>
<figcaption><b>{html.escape(drawing.title)}.</b> {html.escape(drawing.caption)}</figcaption>
</figure>
"""


def _table(table: tables.Table, missing: str) -> str:
  if not table.rows:
    return _absent(missing)
  files = html.escape(f"{table.name}.csv, .md, .tex")
  title = html.escape(table.title)
  return f'<p class="caption"><b>{title}</b> ({files})</p>\n{table.html()}\n'


def _absent(what: str) -> str:
  return f'<p class="absent">Not here: {html.escape(what)}.</p>\n'


def _fold(summary: str, body: str) -> str:
  return f"<details><summary>{html.escape(summary)}</summary>\n{body}</details>\n"


def _certificate(study: reading.Study, report: dict) -> str:
  """Outcome, the checks across arms, and (folded) those of every run."""
  certificate = report["certificate"]
  if certificate["passed"]:
    body = "<p>Passed: measured resources are equal within the stated tolerances.</p>\n"
  elif certificate["passed"] is None:
    body = _absent(f"a certificate for {', '.join(certificate['missing']) or 'this study'}")
  else:
    failures = "".join(f"<li>{html.escape(line)}</li>\n" for line in certificate["failures"])
    body = f'<div class="verdict bad"><p>Did not pass:</p><ul>{failures}</ul></div>\n'
  parts = _tables(study, report)
  if parts["certificate"].rows:
    body += _table(parts["certificate"], "")
  if parts["certificates"].rows:
    body += _fold("Checks of every run", _table(parts["certificates"], ""))
  return body


def _routing(by_name: dict[str, style.Drawing], report: dict) -> str:
  body = _figure(
    by_name.get("routing_health"), "no MoE run has logged a step yet; dense arms have no router"
  )
  body += _figure(
    by_name.get("expert_loads"), "routing.npz of an MoE run, for maps of expert loads"
  )
  if any(g["num_seeds"] > 1 for g in report["groups"]):
    body += "<p>Expert loads are shown for the first seed of each arm.</p>\n"
  return body


def _paper(by_name: dict[str, style.Drawing], columns: tables.Table) -> str:
  missing = "a figure beside the paper's, which takes a dense arm and an MoE arm"
  both = [_figure(by_name.get(n), missing) for n in ("beside_paper", "compute_ratio")]
  return "".join(both) + _fold(columns.title, _table(columns, "plan.json is not there"))


def _method(report: dict) -> str:
  documents = report["documents"]
  if not documents or not documents["num_documents"]:
    return _absent("validation documents, and so intervals")
  domains = ", ".join(f"{d} {n}" for d, n in documents["per_domain"].items())
  noise = report["noise"]
  training = (
    f"Training noise is the spread between seeds, pooled over arms (standard deviation "
    f"{noise['sd']:.4f} BPC, {noise['df']} degrees of freedom), taken as independent between arms."
    if noise["df"]
    else "Training noise is in no interval of a difference: no arm has a second seed."
  )
  lines = [
    "BPC is a ratio of sums: nats over all validation documents, by their characters and by ln 2.",
    f"The {documents['num_documents']} validation documents ({domains}) are resampled "
    f"{report['num_draws']} times within their domains, the same resample for every arm, with the "
    "rescaling of Rao and Wu (1988) for few documents and the tails of Student's t for "
    f"{documents['df']:.0f} degrees of freedom. The longest document holds "
    f"{100 * documents['largest_share']:.0f} % of the text.",
    training,
    "Intervals marked all together are stretched until the whole set of arms is covered with 95 % "
    "probability (max-t); verdicts go by them. A difference counts as better or worse only if its "
    "interval leaves out zero.",
    "The curve has three coefficients, either in log r_a and its square or in 1 / r_a and log r_a, "
    "whichever fits better, chosen anew in every draw; its interval also holds the arms' scatter "
    "about it.",
  ]
  return "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)


def _reproduce(study: reading.Study) -> str:
  info = study.info
  body = ""
  if info.get("command"):
    body += f"<pre>{html.escape(str(info['command']))}</pre>\n"
  else:
    body += _absent("the command, for study.json does not hold it")
  for key, summary in (("versions", "Versions"), ("data", "Data"), ("config", "Config")):
    if info.get(key):
      text = json.dumps(info[key], indent=1, ensure_ascii=False)
      block = f"<pre>{html.escape(text)}</pre>"
      body += _fold(summary, block) if key == "config" else f"<h3>{summary}</h3>\n{block}\n"
    else:
      body += _absent(f"{summary.lower()}, for study.json does not hold it")
  return body


def _write(path: pathlib.Path, content: bytes) -> None:
  part = path.with_name(path.name + ".part")
  part.write_bytes(content)
  os.replace(part, path)


_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.4rem 1.1rem 4rem; max-width: 66rem; background: #fff;
  color: #1b1f24; font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .1rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem;
  border-bottom: 1px solid #dde1e6; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.kicker, .when, .caption, figcaption, .absent { color: #5b6470; font-size: .85rem; }
.kicker, .when { margin: 0; }
.kicker { letter-spacing: .03em; }
.verdict { margin: 1.2rem 0; padding: .9rem 1.1rem; border-left: 5px solid #7a828c;
  background: #f5f6f8; }
.verdict.good { border-color: #1a7f4b; background: #f0f8f3; }
.verdict.bad { border-color: #b3362b; background: #fcf2f1; }
.verdict.open { border-color: #c98a00; background: #fdf8ec; }
.verdict p { margin: 0; }
.headline { font-size: 1.15rem; line-height: 1.4; font-weight: 650; }
.verdict ul { margin: .7rem 0 0; padding-left: 1.1rem; }
.verdict li, .warn li { margin: .25rem 0; }
.warn h2 { font-size: 1rem; border: 0; margin: 1rem 0 0; }
.warn ul { margin: .2rem 0; padding-left: 1.1rem; }
nav { font-size: .85rem; line-height: 1.9; }
nav a { color: #0b6e99; margin-right: .9rem; white-space: nowrap; text-decoration: none; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; width: 100%; height: auto; max-width: 46rem; margin: 0; }
figcaption { margin: .5rem 0 0; max-width: 46rem; }
.absent { font-style: italic; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35; min-width: 100%;
  font-variant-numeric: tabular-nums; }
th { text-align: left; white-space: nowrap; vertical-align: bottom; font-weight: 600;
  border-bottom: 1.5px solid #1b1f24; padding: .3rem .9rem .3rem 0; }
td { border-bottom: 1px solid #e8ebee; padding: .28rem .9rem .28rem 0; vertical-align: top;
  white-space: nowrap; }
td.w { white-space: normal; min-width: 12rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
th.n, td.n { text-align: right; }
.verdict, section > p, .warn, pre { max-width: 50rem; }
.caption { margin: 1.2rem 0 .3rem; }
pre { background: #f5f6f8; padding: .7rem .9rem; overflow-x: auto; font-size: .8rem;
  line-height: 1.45; white-space: pre-wrap; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: #0b6e99; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, .verdict, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  .caption { break-after: avoid; }
  table { font-size: 6.6pt; }
  details::details-content { content-visibility: visible; height: auto; }
  td, th { padding-right: .25rem; }
  @page { size: A4; margin: 14mm; }
}
"""
