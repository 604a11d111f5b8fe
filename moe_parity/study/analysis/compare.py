"""From run folders to analysis.json: who was better, by how much, and how sure that is.

Reads only what runs left behind. Every planned run appears in the result, done or not. Differences
are MoE minus dense in bits per character over the same validation documents: negative means that
MoE is better. A comparison's verdict is "MoE better", "dense better" or "not distinguishable"; or
"one seed" where an arm was not repeated, and "no verdict" where the certificate did not pass.
Intervals: see `statistics` and `uncertainty`; the curve over activation rate: see `rate_curve`.
"""

import math
import pathlib
from collections.abc import Sequence

from moe_parity import files
from moe_parity.evaluation.document_parts import TRIES
from moe_parity.planning.arm_plan import NOT_COMPARED
from moe_parity.study import effort, reading, rescoring
from moe_parity.study.analysis import rate_curve, resources, statistics, verdict
from moe_parity.study.analysis.uncertainty import LEVEL, NUM_DRAWS
from moe_parity.study.analysis.wording import listed


def write_analysis(study_folder: str | pathlib.Path) -> pathlib.Path:
  """Writes analysis.json into the study folder (atomically) and returns its path."""
  path = pathlib.Path(study_folder) / "analysis.json"
  files.write_json(path, analyze(study_folder), indent=1, allow_nan=False, seal=True)
  return path


def analyze(study_folder: str | pathlib.Path) -> dict:
  """Everything that analysis.json holds; see `analyze_with_curve`."""
  return analyze_with_curve(study_folder)[0]


def analyze_with_curve(study_folder: str | pathlib.Path) -> tuple[dict, rate_curve.Curve | None]:
  """Everything that analysis.json holds, and the fitted curve with its draws; the same folder
  gives the same numbers.

  Keys: study, arms (a row for every run), groups (arms over seeds), not_done, baseline,
  equal (what arms share by plan), comparisons, references, by_domain, picked (the best arm, scored
  by runs that did not pick it), noise, curve (None without MoE arms of three rates), certificate,
  documents, tuning (the learning rates that arms tried; None where they
  did not), resources (what every arm cost, relative to dense), warnings, verdict.

  Raises:
    UserError: the folder is not a study.
  """
  study = reading.read_study(study_folder)
  warnings = list(study.problems)
  tuned = _tuned(study)
  runs = _comparable(study, warnings)
  warnings += lost_text(study, runs) + mixed_versions(study.certificate)
  report = {
    "study": study.name,
    "created": study.info.get("created", ""),
    "metric": "bpc",
    "level": LEVEL,
    "num_draws": NUM_DRAWS,
    "arms": [_row(run) for run in study.runs],
    "not_done": [_absence(run) for run in study.runs if not (run.done or _diverged(run, tuned))],
    "certificate": _certificate(study) | {"rescored": _rescored(study)},
    "equal": _equal(study.plan.get("budget", {})),
  }
  found, fitted = statistics.of_runs(runs, warnings)
  report |= found
  report["tuning"] = effort.report(tuned, _documents_of_tries(study.runs))
  if report["controls"]:
    report["controls"]["tuned"] = bool(tuned)
  report["resources"] = resources.resources(study, report["baseline"])
  if report["certificate"]["passed"] is False:
    for row in report["comparisons"] + report["references"]:
      row["verdict"] = "no verdict"
  report["warnings"] = warnings
  report["verdict"] = verdict.verdict(report)
  return report, fitted


def _tuned(study: reading.StudyRecord) -> list[effort.TunedArm]:
  """The study's arms with the tries of their learning rates; [] where it tunes none."""
  tries = [run for run in study.runs if run.done and run.plan.get("tunes")]
  scores = {(run.name, run.seed): float(run.result["validation"]["bpc"]) for run in tries}
  return effort.tuned_arms([arm for arm in study.plan.get("arms", []) if "role" in arm], scores)


def lost_text(study: reading.StudyRecord, runs: Sequence[reading.RunRecord]) -> list[str]:
  """What the tokenizer lost of the text when it was prepared, as sentences; [] for nothing.

  Held-out characters that are lost count in BPC and are never scored, so every arm's BPC is too
  low; the same text is lost to every arm.
  """
  lines = []
  lost = next((r.result["validation"]["text_lost"] for r in runs if
               r.result["validation"].get("text_lost")), None)  # fmt: skip
  if lost:
    lines.append(
      f"The tokenizer does not give back {lost['num_chars']:,} of the held-out characters"
      f" ({100 * lost['share']:.2f} %, in {lost['num_documents']:,} documents). They count and are"
      " never scored: every BPC here is too low by about as much, for all arms alike."
    )
  train = ((study.info.get("data") or {}).get("text_lost") or {}).get("train") or {}
  if train.get("num_documents"):
    lines.append(
      f"Of the training text it does not give back {train.get('num_chars', 0):,} characters in"
      f" {train['num_documents']:,} documents, for all arms alike."
    )
  return lines


def mixed_versions(certificate: dict) -> list[str]:
  """A sentence where a study's runs were trained with different versions of something."""
  found = [
    f"{name} (runs with {', '.join(f'{version}: {runs}' for version, runs in versions.items())})"
    for name, versions in certificate.get("versions", {}).items()
    if len(versions) > 1
  ]
  if not found:
    return []
  return [
    f"Runs were trained with different versions of {listed(found)}; part of a difference between"
    " arms may be theirs. Each run's data.json names its own."
  ]


def _documents_of_tries(runs: Sequence[reading.RunRecord]) -> int:
  """Validation documents that score tries of learning rates and nothing else; 0: there are none."""
  scored = [run.result["validation"] for run in runs if run.done and run.plan.get("tunes")]
  numbers = [v["num_documents"] for v in scored if v.get("part") == TRIES]
  return min(numbers) if len(numbers) == len(scored) and scored else 0


def _diverged(run: reading.RunRecord, tuned: Sequence[effort.TunedArm]) -> bool:
  """Whether a run is a try that diverged; of an arm that is planned, which it is once all its tries
  are known."""
  return run.diverged and run.plan.get("tunes") in {arm.name for arm in tuned}


def _equal(budget: dict) -> dict[str, bool]:
  """What the arms share besides N, by plan: a sweep at fixed data differs in compute, and some
  reuse schemes in unique data."""
  if budget.get("held_fixed") == "tokens":
    return {"tokens": True, "compute": False}
  return {"compute": True, "data": budget.get("equal_data", True)}


def _comparable(study: reading.StudyRecord, warnings: list[str]) -> list[reading.RunRecord]:
  """Finished runs validated alike: same mode, same documents as most. The rest is named.

  A run whose held-out text has no finite loss has diverged and is not finished (`NotFiniteError`).
  """
  done = []
  for run in study.runs:
    if run.plan.get("tunes"):
      continue  # a try of a learning rate
    if run.done and not run.plan:
      warnings.append(f"{run.label} is done but has no plan.json, and is not compared")
    elif run.done:
      done.append(run)
  keys = []
  for run in done:
    v = run.result["validation"]
    docs = tuple((d["domain"], d["source"], d["num_chars"], d["num_bytes"]) for d in v["documents"])
    keys.append((v["mode"], v["seq_len"], v["stride"], v["num_chars"], docs))
  if not keys:
    return []
  usual = max(keys, key=keys.count)
  kept = []
  for run, key in zip(done, keys, strict=True):
    if key == usual:
      kept.append(run)
    else:
      warnings.append(
        f"{run.label} was validated on other documents or in another mode than most arms "
        f"(mode {key[0]}, S {key[1]}, stride {key[2]}, {len(key[4])} documents) and is not compared"
      )
  return kept


def _row(run: reading.RunRecord) -> dict:
  plan, validation = run.plan, run.result.get("validation", {})
  row = {"name": run.name, "seed": run.seed, "status": run.status}
  for key in (
    "kind role activation_rate num_params num_active_params train_flops num_tokens "
    "num_unique_tokens epochs compute_multiple"
  ).split():
    row[key] = plan.get(key)
  for key in ("bpc", "bpb", "macro_bpc", "macro_bpb", "cross_entropy"):
    row[key] = _finite(validation.get(key))
  row["train_cross_entropy"] = _finite(run.result.get("train_cross_entropy"))
  row["seconds"] = run.result.get("seconds")
  row["by_domain"] = {
    domain: {"bpc": _finite(v["bpc"]), "bpb": _finite(v["bpb"])}
    for domain, v in validation.get("by_domain", {}).items()
  }
  return row


def _finite(value: int | float | None) -> float | None:
  """nan and infinity as None: JSON has neither."""
  return value if value is not None and math.isfinite(value) else None


def _absence(run: reading.RunRecord) -> dict:
  return {"name": run.name, "seed": run.seed, "status": run.status, "error": run.error}


def _is_compared(run: reading.RunRecord) -> bool:
  """Whether a run is done whose resources have to be equal."""
  return run.done and run.plan.get("role") not in NOT_COMPARED


def _failed(certificate: dict) -> list[dict]:
  return [check for check in certificate.get("checks", ()) if not check["passed"]]


def _certificate(study: reading.StudyRecord) -> dict:
  """The study's certificate and those of its finished runs: `passed` only if all are there and did.

  None: something is missing and nothing failed. The study's own says nothing before a run that is
  compared is done: tries of learning rates and references alone are no comparison.
  """
  failures, missing = [], []
  parts = [("the study", study.certificate)]
  if not (study.info or len(study.runs) != 1):
    parts = []
  elif not any(map(_is_compared, study.runs)) and not _failed(study.certificate):
    parts, missing = [], ["the study"]
  parts += [(run.label, run.certificate) for run in study.runs if run.done]
  for label, certificate in parts:
    if not certificate.get("checks"):
      missing.append(label)
    elif not certificate["passed"]:
      failed = _failed(certificate)
      failures += [f"{label}: {_failure(c)}" for c in failed] or [f"{label}: not passed"]
  passed = False if failures else (None if missing or not parts else True)
  return {"passed": passed, "failures": failures, "missing": missing}


def _rescored(study: reading.StudyRecord) -> dict:
  """What was scored again from checkpoints; see `rescoring.summary`."""
  compared = [run for run in study.runs if run.done and not run.plan.get("tunes")]
  return rescoring.summary([(run.label, run.certificate) for run in compared])


def _failure(check: dict) -> str:
  """A failed check in words; difference_pct is None where what was checked is no number."""
  line = f"{check['name']} planned {check['planned']}, measured {check['measured']}"
  if check["difference_pct"] is None:
    return line
  return f"{line} ({check['difference_pct']:+.2f} %)"
