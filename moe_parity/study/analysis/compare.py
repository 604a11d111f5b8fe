"""From run folders to analysis.json: who was better, by how much, and how sure that is.

Reads only what runs left behind. Every planned run appears in the result, done or not. Differences
are MoE minus dense in bits per character over the same validation documents: negative means that
MoE is better. A comparison's verdict is "MoE better", "dense better" or "not distinguishable"; or
"no verdict" where the certificate did not pass. Intervals: see `bootstrap`; the curve over
activation rate: see `curve`.
"""

import json
import math
import os
import pathlib

import numpy as np

from moe_parity.planning.targets import RATE_TOLERANCE
from moe_parity.study import reading
from moe_parity.study.analysis import bootstrap, rate_curve, resources, verdict

LEVEL = 0.95
NUM_DRAWS = 4000
BOOTSTRAP_SEED = 20250612


def write_analysis(study_folder: str | pathlib.Path) -> pathlib.Path:
  """Writes analysis.json into the study folder (atomically) and returns its path."""
  path = pathlib.Path(study_folder) / "analysis.json"
  text = json.dumps(analyse(study_folder), indent=1, allow_nan=False)
  part = path.with_suffix(".json.part")
  part.write_text(text + "\n")
  os.replace(part, path)
  return path


def analyse(study_folder: str | pathlib.Path) -> dict:
  """Everything that analysis.json holds; see `analyse_with_curve`."""
  return analyse_with_curve(study_folder)[0]


def analyse_with_curve(study_folder: str | pathlib.Path) -> tuple[dict, rate_curve.Curve | None]:
  """Everything that analysis.json holds, and the fitted curve with its draws; the same folder
  gives the same numbers.

  Keys: study, arms (a row for every run), groups (arms over seeds), not_done, baseline,
  equal (what arms share by plan), comparisons, references, by_domain, noise, curve (None without
  MoE arms of three rates), certificate, documents, resources (what every arm cost, relative to
  dense), warnings, verdict.

  Raises:
    UserError: the folder is not a study.
  """
  study = reading.read_study(study_folder)
  warnings = list(study.problems)
  runs = _comparable(study, warnings)
  report = {
    "study": study.name,
    "created": study.info.get("created", ""),
    "metric": "bpc",
    "level": LEVEL,
    "num_draws": NUM_DRAWS,
    "arms": [_row(run) for run in study.runs],
    "not_done": [_absence(run) for run in study.runs if not run.done],
    "certificate": _certificate(study),
    "equal": _equal(study.plan.get("budget", {})),
  }
  statistics, fitted = _statistics(runs, warnings)
  report |= statistics
  report["resources"] = resources.resources(study, report["baseline"])
  if report["certificate"]["passed"] is False:
    for row in report["comparisons"] + report["references"]:
      row["verdict"] = "no verdict"
  report["warnings"] = warnings
  report["verdict"] = verdict.verdict(report)
  return report, fitted


def _statistics(
  runs: list[reading.Run], warnings: list[str]
) -> tuple[dict, rate_curve.Curve | None]:
  """All that rests on finished runs. Arms are averaged over seeds before they are compared."""
  empty = {"groups": [], "baseline": "", "comparisons": [], "references": [], "by_domain": []}
  empty |= {"noise": {"sd": None, "df": 0}, "curve": None, "num_rates": 0, "documents": {}}
  if not runs:
    return empty, None
  rng = np.random.default_rng(BOOTSTRAP_SEED)
  names = list(dict.fromkeys(run.name for run in runs))
  first = {name: next(run for run in runs if run.name == name) for name in names}
  of_arm = [np.array([i for i, run in enumerate(runs) if run.name == name]) for name in names]
  average_AR = np.zeros((len(names), len(runs)))
  for a, members in enumerate(of_arm):
    average_AR[a, members] = 1 / len(members)
  value_R = np.array([run.result["validation"]["bpc"] for run in runs])
  seeds_A = np.array([len(members) for members in of_arm])
  noise = bootstrap.seed_noise([value_R[members] for members in of_arm])
  value_A = average_AR @ value_R

  nats_RN, units_N, domain_N = _documents(runs)
  documents_BA = np.zeros((NUM_DRAWS, len(names)))
  if len(units_N):
    documents_BA = bootstrap.document_deviations(
      average_AR @ nats_RN, units_N, domain_N, NUM_DRAWS, rng
    )
  deviations_BA = documents_BA
  if noise.df:
    sd_A = noise.sd / np.sqrt(seeds_A)
    deviations_BA = documents_BA + bootstrap.noise_deviations(sd_A, noise.df, NUM_DRAWS, rng)

  own = bootstrap.pointwise(value_A, deviations_BA, LEVEL)
  groups = [_group(first[name], value_R[of_arm[a]], own[:, a]) for a, name in enumerate(names)]
  report = empty | {"groups": groups, "noise": _noise(noise, seeds_A)}
  report["documents"] = _document_facts(average_AR @ nats_RN, units_N, domain_N, warnings)
  dense = [a for a, name in enumerate(names) if _is(first[name], "dense", "arm")]
  others = [a for a, name in enumerate(names) if _is(first[name], "dense", "reference")]
  moe = [a for a, name in enumerate(names) if _is(first[name], "moe", "arm")]
  if dense:
    base = min(dense, key=lambda a: value_A[a])
    report["baseline"] = names[base]
    if moe:
      report["comparisons"] = _compare(groups, value_A, deviations_BA, moe, base)
      report["by_domain"] = _by_domain(
        groups, average_AR @ nats_RN, units_N, domain_N, moe, base, rng
      )
  report["references"] = [
    row for a in others if moe for row in _compare(groups, value_A, deviations_BA, moe, a)
  ]
  rate_A = np.array([first[name].plan["activation_rate"] for name in names])
  fitted = None
  report["num_rates"] = _different(rate_A[moe])
  if report["num_rates"] >= rate_curve.NUM_COEFFICIENTS:
    fitted = rate_curve.fit(
      rate_A[moe], value_A[moe], seeds_A[moe], documents_BA[:, moe], noise, rng
    )
    report["curve"] = _curve(fitted)
    if dense:
      below, surely, band = rate_curve.region_below(
        fitted, value_A[base], deviations_BA[:, base], LEVEL
      )
      report["curve"] |= {"below_dense": below, "surely_below_dense": surely}
      report["curve"]["difference_band"] = band.tolist()
    for a in ([base] if dense else []) + others:
      below, surely, _ = rate_curve.region_below(fitted, value_A[a], deviations_BA[:, a], LEVEL)
      report["curve"]["below"].append({
        "baseline": names[a], "compute_multiple": groups[a]["compute_multiple"],
        "ranges": below, "surely": surely,
      })  # fmt: skip
  return report, fitted


def _equal(budget: dict) -> dict[str, bool]:
  """What the arms share besides N, by plan: a sweep at fixed data differs in compute, and some
  reuse schemes in unique data."""
  if budget.get("shared") == "tokens":
    return {"tokens": True, "compute": False}
  return {"compute": True, "data": budget.get("equal_data", True)}


def _different(rate_A: np.ndarray) -> int:
  """How many activation rates there are, apart from what whole numbers make of one target."""
  return 0 if not len(rate_A) else 1 + int((np.diff(np.sort(rate_A)) > RATE_TOLERANCE).sum())


def _comparable(study: reading.Study, warnings: list[str]) -> list[reading.Run]:
  """Finished runs validated alike: same mode, same documents as most. The rest is named."""
  done = []
  for run in study.runs:
    if run.done and not run.plan:
      warnings.append(f"{run.label} is done but has no plan.json, and is not compared")
    elif run.done and not math.isfinite(run.result["validation"]["bpc"]):
      warnings.append(f"{run.label} has a BPC of {run.result['validation']['bpc']}: not compared")
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


def _documents(runs: list[reading.Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  docs = [run.result["validation"]["documents"] for run in runs]
  nats = np.array([[d["nats"] for d in rows] for rows in docs], dtype=np.float64)
  units = np.array([d["num_chars"] for d in docs[0]], dtype=np.float64)
  return nats, units, np.array([d["domain"] for d in docs[0]])


def _document_facts(
  nats_AN: np.ndarray, units_N: np.ndarray, domain_N: np.ndarray, warnings: list[str]
) -> dict:
  if not len(units_N):
    warnings.append(
      "result.json holds no documents, so the choice of validation documents is in no interval"
    )
    return {"num_documents": 0, "df": 0.0, "per_domain": {}, "largest_share": None}
  per_domain = {str(d): int((domain_N == d).sum()) for d in np.unique(domain_N)}
  for domain, count in per_domain.items():
    if count < 2:
      warnings.append(
        f"domain {domain!r} has one validation document: its share of the uncertainty is unknown "
        "and left out of every interval"
      )
  df = bootstrap.document_df(nats_AN, units_N, domain_N)
  if df < 10:
    warnings.append(
      f"the validation documents count as {df + 1:.0f} (few, or a few long ones hold most of the "
      "text): intervals are wide and rest on little"
    )
  largest = float(units_N.max() / units_N.sum())
  return {
    "num_documents": len(units_N), "df": df, "per_domain": per_domain, "largest_share": largest
  }  # fmt: skip


def _compare(
  groups: list[dict], value_A: np.ndarray, deviations_BA: np.ndarray, arms: list[int], base: int
) -> list[dict]:
  """One row an arm against `base`; the verdict goes by the simultaneous interval over all rows."""
  difference = value_A[arms] - value_A[base]
  deviations = deviations_BA[:, arms] - deviations_BA[:, [base]]
  known = deviations.any()
  alone = bootstrap.pointwise(difference, deviations, LEVEL)
  joint = bootstrap.simultaneous(difference, deviations, LEVEL)
  rows = []
  for i, a in enumerate(arms):
    rows.append({
      "name": groups[a]["name"],
      "baseline": groups[base]["name"],
      "activation_rate": groups[a]["activation_rate"],
      "num_seeds": groups[a]["num_seeds"],
      "baseline_seeds": groups[base]["num_seeds"],
      "difference": float(difference[i]),
      "interval": alone[:, i].tolist() if known else None,
      "simultaneous": joint[:, i].tolist() if known else None,
      "verdict": _three_valued(joint[:, i]) if known else "not distinguishable",
    })  # fmt: skip
  return rows


def _three_valued(interval: np.ndarray) -> str:
  if interval[1] < 0:
    return "MoE better"
  return "dense better" if interval[0] > 0 else "not distinguishable"


def _by_domain(
  groups: list[dict],
  nats_AN: np.ndarray,
  units_N: np.ndarray,
  domain_N: np.ndarray,
  moe: list[int],
  base: int,
  rng: np.random.Generator,
) -> list[dict]:
  """Differences to dense within each domain: documents only, each interval by itself."""
  rows = []
  for domain in dict.fromkeys(domain_N.tolist()):
    members = domain_N == domain
    value_A = bootstrap.ratio_of_sums(nats_AN[:, members], units_N[members])
    interval = None
    if members.sum() > 1:
      deviations = bootstrap.document_deviations(
        nats_AN[:, members], units_N[members], domain_N[members], NUM_DRAWS, rng
      )
      interval = bootstrap.pointwise(
        value_A[moe] - value_A[base], deviations[:, moe] - deviations[:, [base]], LEVEL
      )
    for i, a in enumerate(moe):
      rows.append({
        "domain": domain,
        "name": groups[a]["name"],
        "num_documents": int(members.sum()),
        "bpc": float(value_A[a]),
        "baseline_bpc": float(value_A[base]),
        "difference": float(value_A[a] - value_A[base]),
        "interval": None if interval is None else interval[:, i].tolist(),
      })  # fmt: skip
  return rows


def _curve(fitted: rate_curve.Curve) -> dict:
  tail = (1 - LEVEL) / 2
  band = np.quantile(fitted.draws_BG, [tail, 1 - tail], axis=0)
  return {
    "form": fitted.form,
    "grid": fitted.grid_G.tolist(),
    "bpc": fitted.bpc_G.tolist(),
    "band": band.tolist(),
    "minimum": rate_curve.minimum_interval(fitted, LEVEL),
    "minimum_by_form": fitted.minimum_by_form,
    "scatter_sd": fitted.scatter_sd if fitted.scatter_df else None,
    "scatter_df": fitted.scatter_df,
    "noise_df": fitted.noise_df,
    "misfit": fitted.misfit,
    "below_dense": None,
    "surely_below_dense": None,
    "difference_band": None,
    "below": [],
  }


def _row(run: reading.Run) -> dict:
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


def _group(run: reading.Run, values: np.ndarray, interval: np.ndarray) -> dict:
  return {
    "name": run.name,
    "kind": run.plan["kind"],
    "role": run.plan["role"],
    "activation_rate": run.plan["activation_rate"],
    "compute_multiple": run.plan["compute_multiple"],
    "num_seeds": len(values),
    "bpc": float(values.mean()),
    "bpc_by_seed": values.tolist(),
    "seed_sd": float(values.std(ddof=1)) if len(values) > 1 else None,
    "interval": interval.tolist(),
  }


def _noise(noise: bootstrap.SeedNoise, seeds_A: np.ndarray) -> dict:
  return {
    "sd": noise.sd if noise.df else None,
    "df": noise.df,
    "min_seeds": int(seeds_A.min()),
    "max_seeds": int(seeds_A.max()),
  }


def _finite(value: int | float | None) -> float | None:
  """nan and infinity as None: JSON has neither."""
  return value if value is not None and math.isfinite(value) else None


def _is(run: reading.Run, kind: str, role: str) -> bool:
  return run.plan["kind"] == kind and run.plan["role"] == role


def _absence(run: reading.Run) -> dict:
  return {"name": run.name, "seed": run.seed, "status": run.status, "error": run.error}


def _certificate(study: reading.Study) -> dict:
  """The study's certificate and those of its finished runs: `passed` only if all are there and did.

  None: something is missing and nothing failed.
  """
  failures, missing = [], []
  parts = [("the study", study.certificate)]
  if not (study.info or len(study.runs) != 1):
    parts = []
  parts += [(run.label, run.certificate) for run in study.runs if run.done]
  for label, certificate in parts:
    if not certificate.get("checks"):
      missing.append(label)
    elif not certificate["passed"]:
      failed = [c for c in certificate["checks"] if not c["passed"]]
      failures += [f"{label}: {_failure(c)}" for c in failed] or [f"{label}: not passed"]
  passed = False if failures else (None if missing or not parts else True)
  return {"passed": passed, "failures": failures, "missing": missing}


def _failure(check: dict) -> str:
  """A failed check in words; difference_pct is None where what was checked is no number."""
  line = f"{check['name']} planned {check['planned']}, measured {check['measured']}"
  if check["difference_pct"] is None:
    return line
  return f"{line} ({check['difference_pct']:+.2f} %)"
