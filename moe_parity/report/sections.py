"""The sections of the page, from the figures and tables there are.

A section of an ordinary study names what is not there yet; one of a step that was not run is left
out.
"""

import dataclasses
import html
import json

from moe_parity.report import sweeps
from moe_parity.report.figure_style import Drawing
from moe_parity.report.markup import (
  Section,
  bullets,
  details,
  figure,
  missing_note,
  paragraphs,
  table,
  words,
)
from moe_parity.report.table_formats import Table
from moe_parity.study import reading
from moe_parity.study.analysis import controls as lead_controls
from moe_parity.study.analysis.statistics import FEW_DOCUMENTS

MAX_CHECKS = 16  # a table longer than that hides what comes after it
Drawings = dict[str, Drawing]
Tables = dict[str, Table]


def _tone(report: dict) -> str:
  if report["certificate"]["passed"] is False:
    return "bad"
  return "good" if report["verdict"]["conclusive"] and not _is_doubtful(report) else "open"


def _is_doubtful(report: dict) -> bool:
  """Whether a control explains the lead, or few validation documents count."""
  few = report["documents"].get("df", 0.0) < FEW_DOCUMENTS
  return few or lead_controls.is_explained(report["controls"])


def headline(report: dict, steps: dict[str, dict]) -> str:
  """The sentence of the page; a step that answers another question gives its own before it."""
  own = [step["headline"] for step in steps.values() if step.get("headline")]
  first = "".join(
    f'<section class="verdict"><p class="headline">{words(line)}</p></section>\n' for line in own
  )
  return f"""{first}<section class="verdict {_tone(report)}">
<p class="headline">{words(report["verdict"]["headline"])}</p></section>
"""


def against(report: dict) -> str:
  """What speaks against the sentence or limits it, and the warnings; then, folded, the rest."""
  verdict = report["verdict"]
  doubts = [*verdict["against"], *map(_sentence, report["warnings"])]
  body = bullets(doubts) or paragraphs(["Nothing that these runs can show."])
  body = f'<section class="against"><h2>What speaks against it</h2>\n{body}</section>\n'
  rest = [line for line in verdict["sentences"] if line not in verdict["against"]]
  return body + (details("All differences, and what they rest on", bullets(rest)) if rest else "")


def _sentence(warning: str) -> str:
  """A warning, which may begin with a name as it is written, as a sentence among others."""
  return f"{warning[:1].upper()}{warning[1:]}{'' if warning.endswith('.') else '.'}"


def findings(steps: dict[str, dict]) -> str:
  """The sentences of the steps whose headlines stand above, folded."""
  return "".join(
    details("What this study found, in sentences", bullets(step["sentences"]))
    for step in steps.values()
    if step.get("headline") and step["sentences"]
  )


def _sentences(step: dict) -> str:
  """Of a step whose headline does not stand above already."""
  return "" if step.get("headline") else bullets(step.get("sentences", []))


def architecture(step: dict, drawings: Drawings, tables: Tables) -> list[Section]:
  """Step 1; nothing where it was not run."""
  if not step:
    return []
  body = _sentences(step)
  if step.get("rule"):
    rule = step["rule"][:1].lower() + step["rule"][1:]
    named = "Options are named by the ratio asked for; tables show what whole widths made of it."
    body += paragraphs([f"How a choice is made: {rule} {named}"])
  body += table(tables["backbones"]) + figure(drawings.get("shape_scatter"))
  for stage in step.get("stages", []):
    state = "" if stage["complete"] else " (not complete)"
    chosen = stage["chosen"] or "nothing yet"
    tie = "; the runner-up is not distinguishable" if stage.get("tie") else ""
    body += f"<h3>{html.escape(str(stage.get('question') or stage['name']))}</h3>\n"
    body += paragraphs([f"Chosen: {chosen}{tie}{state}."])
    body += table(tables[f"architecture_{stage['name']}"])
    body += bullets(f"left out: {s['label']}, {s['why']}" for s in stage.get("skipped", []))
  return [Section("Architecture search", body)]


def main_sweep(drawings: Drawings, report: dict, steps: dict[str, dict]) -> list[Section]:
  """BPC over activation rate; nothing for a search, all of whose MoE arms share one rate."""
  if steps["architecture"] and "activation_rate" not in drawings:
    return []
  done = any(group["kind"] == "moe" and group["role"] == "arm" for group in report["groups"])
  missing = "MoE arms of different activation rates" if done else "no MoE arm is done yet"
  return [Section("Activation rate", figure(drawings.get("activation_rate"), missing))]


def activation_rate(step: dict, drawings: Drawings, tables: Tables) -> list[Section]:
  """Step 2 beyond the main sweep."""
  if not step:
    return []
  body = _sentences(step)
  for name in ("sweeps", "fixed_data", "transfer"):
    body += figure(drawings.get(name))
  tuning = table(tables["tuning"])
  body += (bullets(sweeps.tuning_words(step)) + tuning) if tuning else ""
  body += details("Every arm of every sweep", table(tables["activation_rate"]))
  return [Section("Activation rate over budgets", body)]


def data_reuse(step: dict, drawings: Drawings, tables: Tables) -> list[Section]:
  """Step 3."""
  if not step:
    return []
  body = _sentences(step)
  body += figure(drawings.get("reuse_by_scheme")) + figure(drawings.get("reuse_decay"))
  body += table(tables["reuse_cost"])
  body += details("Every arm under every scheme", table(tables["data_reuse"]))
  return [Section("Data reuse", body)]


def resources(report: dict, tables: Tables) -> Section:
  """What every arm cost in all, and how to read it."""
  resources = report["resources"]
  lines = [
    f"C is counted by the budget's convention ({resources['convention']}); executed FLOPs are"
    " every matrix product of training: router, output head and attention as computed, without what"
    " is computed twice. Parameters with vocabulary add embedding and head; weights are float32. "
    "Seconds are those of steady training steps, without compiling, validation and checkpoints."
  ]
  lines += resources["notes"] + resources["energy_notes"]
  body = paragraphs(lines) + table(tables["resources"], "plan.json is not there")
  return Section("Resources", body + bullets(resources["hidden"]))


def certificate(study: reading.StudyRecord, report: dict, tables: Tables) -> Section:
  """Outcome, the checks across arms, and (folded) those of every run."""
  certificate = report["certificate"]
  if certificate["passed"]:
    body = "<p>Passed: measured resources are equal within the stated tolerances.</p>\n"
  elif certificate["passed"] is None:
    body = missing_note(f"a certificate for {', '.join(certificate['missing']) or 'this study'}")
  else:
    body = (
      f'<div class="verdict bad"><p>Did not pass:</p>{bullets(certificate["failures"])}</div>\n'
    )
  body += paragraphs(_rescored(certificate["rescored"]))
  body += checks(tables["certificate"])
  if tables["certificates"].rows:
    body += details("Checks of every run", table(tables["certificates"]))
  return Section("Certificate", body)


def _rescored(found: dict) -> list[str]:
  """What was scored again from checkpoints, and what was not."""
  lines = []
  if found["runs"]:
    lines.append(
      f"{found['documents']} validation documents of {found['runs']} runs were scored again from"
      " the last checkpoints and compared with the scores that this page rests on."
    )
  whys: dict[str, list[str]] = {}
  for label, why in found["not_rescored"].items():
    whys.setdefault(why, []).append(label)
  return lines + [f"{', '.join(labels)}: {why}." for why, labels in whys.items()]


def checks(content: Table) -> str:
  """The checks across arms, folded where they are many; those that failed are always shown."""
  if len(content.rows) <= MAX_CHECKS:
    return table(content)
  off: dict[str, float] = {}
  for row in content.rows:
    if row["difference_pct"] is not None:
      name = row["name"].rpartition(": ")[2]
      off[name] = max(off.get(name, 0.0), abs(row["difference_pct"]))
  largest = ", ".join(f"{name} {value:.3f} %" for name, value in off.items())
  lines = [f"Largest distance of an arm from the budget: {largest}."] if off else []
  failed = [row for row in content.rows if row["passed"] != "yes"]
  shown = dataclasses.replace(content, rows=failed).html() if failed else ""
  return paragraphs(lines) + shown + details(f"All {len(content.rows)} checks", table(content))


def controls(report: dict, drawings: Drawings, tables: Tables) -> Section:
  """Is the lead one of the experts: controls, ablations, gate sums and norms."""
  ask = (
    "Is a lead one of the experts? An MoE arm at small r_a reads more text than the dense arm of "
    "equal N, because a token costs it less. A dense control that reads as much tells the two "
    "apart, and so does what remains when the routed experts are taken out of the trained model."
  )
  body = paragraphs([ask])
  body += table(tables["controls"], _no_controls(report))
  body += table(tables["ablations"], _no_ablations(report))
  if any(group["kind"] == "moe" for group in report["groups"]):
    body += figure(drawings.get("gate_sums"), "sums of gates, which these runs did not log")
    body += figure(drawings.get("layer_norms"), "norms by layer, which these runs did not measure")
  if tables["layers"].rows:
    body += details(tables["layers"].title, table(tables["layers"]), on_paper=False)
  return Section("Controls and ablations", body)


def _no_controls(report: dict) -> str:
  """What is missing where no control is compared."""
  if not any(group["role"] == "control" for group in report["groups"]):
    return "a dense control that is done (study.controls asks for them)"
  return f"{_no_pair(report)}, which the controls that are done are compared with"


def _no_ablations(report: dict) -> str:
  if report["controls"]:
    return "ablations of the best MoE arm (evaluation.ablations asks for them)"
  return f"{_no_pair(report)}: ablations are of the lead of the best MoE arm over dense"


def _no_pair(report: dict) -> str:
  """Which side of the comparison is not done."""
  return "an MoE arm that is done" if report["baseline"] else "a dense arm that is done"


def routing(drawings: Drawings, tables: Tables, report: dict) -> Section:
  body = figure(
    drawings.get("routing_health"), "no MoE run has logged a step yet; dense arms have no router"
  )
  body += figure(drawings.get("expert_loads"), "routing.npz of an MoE run, for maps of loads")
  if any(group["num_seeds"] > 1 for group in report["groups"]):
    body += "<p>Expert loads are shown for the first seed of each arm.</p>\n"
  special = tables["specialization"]
  body += figure(drawings.get("specialization")) + figure(drawings.get("experts"))
  if special.rows:
    body += details(special.title, table(special))
  elif any(group["kind"] == "moe" for group in report["groups"]):
    body += missing_note(
      "specialization of experts by domain, which a run counts when it ends (for runs without it: "
      "moe-parity evaluate STUDY --routing)"
    )
  return Section("Routing", body)


def versus_paper(drawings: Drawings, tables: Tables) -> Section:
  missing = "a figure with the paper's points, which takes a dense arm and an MoE arm"
  body = "".join(figure(drawings.get(name), missing) for name in ("versus_paper", "compute_ratio"))
  body += figure(drawings.get("loss_over_data"))
  columns = tables["paper_columns"]
  return Section(
    "Compared with the paper", body + details(columns.title, table(columns, "plan.json"))
  )


_CURVE = (
  "The curve has three coefficients, either in log r_a and its square or in 1 / r_a and log r_a, "
  "whichever fits better, chosen anew in every draw. Its interval holds the arms' scatter about it "
  "where seeds are not repeated, and where they are if documents and seeds explain less than that."
)


def method(report: dict) -> Section:
  title = "How the intervals are made"
  documents = report["documents"]
  if not documents or not documents["num_documents"]:
    return Section(title, missing_note("validation documents, and so intervals"))
  domains = ", ".join(f"{d} {n}" for d, n in documents["per_domain"].items())
  noise = report["noise"]
  drawn = "weights, data order and the text drawn" if noise.get("draws_data") else "weights"
  training = (
    f"Training noise is the spread between seeds ({drawn}) once every arm and every seed has its "
    "own level: what a seed does to all arms alike cancels between them, and what it does to dense "
    "arms alone counts between dense and MoE. The rest, pooled over arms, has a standard deviation "
    f"of {noise['sd']:.4f} BPC ({noise['df']} degrees of freedom). Each arm's interval goes by its "
    "own spread, moderated by that of the others (Smyth 2004)."
    if noise["df"]
    else "Training noise is in no interval of a difference: arms were not repeated with another "
    "seed, so their rows have no verdict."
  )
  lines = [
    "BPC is a ratio of sums: nats over all validation documents, by their characters and by ln 2.",
    f"The choice of the {documents['num_documents']} validation documents ({domains}) adds the "
    "variance of their differences between arms, within domains. They count as "
    f"{documents['df'] + 1:.0f} documents of one length; the longest holds "
    f"{100 * documents['largest_share']:.0f} % of the text.",
    training,
    "Degrees of freedom of a difference are its own (Welch, Satterthwaite). Simultaneous intervals "
    "hold for the whole set of arms with 95 % probability, and verdicts go by them; a pointwise "
    "interval holds for its own row. A difference counts as better or worse only if its "
    "simultaneous interval leaves out zero.",
    *([_CURVE] if report["curve"] else []),
    "How often these intervals hold the truth is measured by moe-parity bench --only=coverage.",
  ]
  return Section(title, paragraphs(lines))


def reproduce(study: reading.StudyRecord, tables: Tables) -> Section:
  """Command, versions, data hashes and config."""
  info = study.info
  if info.get("command"):
    body = paragraphs(
      ["In a checkout of moe_parity of the version below, with the packages below:"]
    )
    body += f"<pre>{html.escape(str(info['command']))}</pre>\n"
  else:
    body = missing_note("the command, for study.json does not hold it")
  source = info.get("config", {}).get("data", {}).get("source")
  text = "The text comes with the package." if source == "builtin" else (
    "The text is the user's own: these are the same runs only if the hashes below are the same;"
    " `moe-parity data show STORE` prints those of a store."
  )  # fmt: skip
  again = [
    "The same command on the same --workdir trains what is missing and writes this page again;"
    " `moe-parity report` on that folder only writes the page.",
    "Reproducible means two things. On one machine, with the versions below, the same command gives"
    " the same numbers to the last bit. On another machine sums are rounded in another order, runs"
    " drift apart, and scores move as they do between seeds: a comparison should come out the same"
    " within its interval, and single scores need not.",
  ]
  body += paragraphs(([text] if source else []) + again)
  body += table(tables["versions"], "versions, for study.json does not hold it")
  body += table(tables["data"], "data, for study.json does not hold it")
  if info.get("config"):
    text = json.dumps(info["config"], indent=1, ensure_ascii=False)
    body += details("Config, as resolved", f'<pre class="long">{html.escape(text)}</pre>')
  else:
    body += missing_note("config, for study.json does not hold it")
  return Section("How to reproduce", body)
