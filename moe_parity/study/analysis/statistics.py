"""All of analysis.json that rests on finished runs: arms over seeds, comparisons, the curve."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_parity.planning.targets import RATE_TOLERANCE
from moe_parity.study import reading
from moe_parity.study.analysis import arms as averaged
from moe_parity.study.analysis import document_noise, rate_curve, uncertainty
from moe_parity.study.analysis.arms import Arms, Scores
from moe_parity.study.analysis.controls import explain_lead
from moe_parity.study.analysis.uncertainty import LEVEL

FEW_DOCUMENTS = 10


@dataclasses.dataclass(frozen=True)
class ScoreTable:
  """Arms with what their plans say: names, the first run of each, rate_A (activation rate), and
  the indices of MoE arms, dense arms, dense references (other C) and controls (other N)."""

  arms: Arms
  names: list[str]
  runs: list[reading.RunRecord]
  rate_A: np.ndarray
  moe: list[int]
  dense: list[int]
  references: list[int]
  controls: list[int]

  @property
  def base(self) -> int | None:
    """The best dense arm, which MoE arms are compared with."""
    return min(self.dense, key=lambda a: self.arms.value_A[a]) if self.dense else None


def of_runs(
  runs: list[reading.RunRecord], warnings: list[str]
) -> tuple[dict, rate_curve.Curve | None]:
  """groups, baseline, comparisons, references, by_domain, picked, controls, noise, curve, num_rates
  and documents of analysis.json; and the fitted curve. Adds to `warnings`."""
  empty = {"groups": [], "baseline": "", "comparisons": [], "references": [], "by_domain": []}
  empty |= {
    "picked": None,
    "controls": None,
    "noise": {"sd": None, "df": 0},
    "curve": None,
    "num_rates": 0,
  }
  if not runs:
    return empty | {"documents": {}}, None
  table = tabulate(runs)
  arms, base = table.arms, table.base
  report = empty | {
    "groups": _groups(table),
    "noise": _noise(arms, runs),
    "documents": _document_facts(arms, warnings),
    "references": [row for a in table.references for row in _comparisons(table, a)],
    "num_rates": _num_rates(table.rate_A[table.moe]),
  }
  if base is not None:
    report |= {
      "baseline": table.names[base],
      "comparisons": _comparisons(table, base),
      "by_domain": _by_domain(table, base),
      "picked": _picked(table, base),
      "controls": explain_lead(arms, runs, table.names, table.moe, base, table.controls),
    }
  fitted = None
  if report["num_rates"] >= rate_curve.NUM_COEFFICIENTS:
    fitted, report["curve"] = _curve(table, report["groups"])
  return report, fitted


def tabulate(runs: list[reading.RunRecord]) -> ScoreTable:
  """Runs as arms, in the order in which they come."""
  names = list(dict.fromkeys(run.name for run in runs))
  first = [next(run for run in runs if run.name == name) for name in names]

  def those(kind: str, role: str) -> list[int]:
    return [a for a, r in enumerate(first) if r.plan["kind"] == kind and r.plan["role"] == role]

  arm_R = np.array([names.index(run.name) for run in runs])
  seed_R = np.array([run.seed for run in runs])
  scores = scores_of([run.result for run in runs], arm_R, seed_R, are_dense(first))
  return ScoreTable(
    arms=averaged.average(scores),
    names=names,
    runs=first,
    rate_A=np.array([run.plan["activation_rate"] for run in first]),
    moe=those("moe", "arm"),
    dense=those("dense", "arm"),
    references=those("dense", "reference"),
    controls=those("dense", "control"),
  )


def are_dense(runs: Sequence[reading.RunRecord]) -> np.ndarray:
  """Which of some arms are dense, from a run of each."""
  return np.array([run.plan["kind"] == "dense" for run in runs])


def scores_of(
  results: Sequence[dict],
  arm_R: np.ndarray,
  seed_R: np.ndarray,
  is_dense_A: np.ndarray | None = None,
) -> Scores:
  """Scores in bits per character of runs, from their result.json. Where not all have the same
  number of documents, none are taken.

  Args:
    is_dense_A: of the arms; None where all are of one kind.
  """
  documents = [result["validation"]["documents"] for result in results]
  if len({len(rows) for rows in documents}) > 1:
    documents = [[] for _ in results]
  nats_RN = [[row["nats"] for row in rows] for rows in documents]
  first = documents[0]
  return Scores(
    value_R=np.array([result["validation"]["bpc"] for result in results], float),
    arm_R=arm_R,
    seed_R=seed_R,
    nats_RN=np.array(nats_RN, float).reshape(len(results), len(first)),
    units_N=np.array([row["num_chars"] for row in first], float),
    domain_N=np.array([row["domain"] for row in first], str),
    is_dense_A=is_dense_A,
  )


def _groups(table: ScoreTable) -> list[dict]:
  """A row for every arm."""
  arms = table.arms
  interval = arms.own_intervals() if arms.sources else np.stack([arms.value_A, arms.value_A])
  rows = []
  for a, run in enumerate(table.runs):
    values = arms.scores.value_R[arms.scores.arm_R == a]
    fields = ("kind", "role", "activation_rate", "compute_multiple", "num_params")
    rows.append({
      "name": run.name,
      **{name: run.plan[name] for name in fields},
      "num_seeds": len(values),
      "bpc": float(values.mean()),
      "bpc_by_seed": values.tolist(),
      "seed_sd": float(values.std(ddof=1)) if len(values) > 1 else None,
      "moderated_sd": math.sqrt(arms.noise.variance_A[a]) if arms.noise.df else None,
      "interval": interval[:, a].tolist(),
    })  # fmt: skip
  return rows


def _noise(arms: Arms, runs: list[reading.RunRecord]) -> dict:
  """The seeds' noise in numbers, and whether a seed also draws its own data."""
  data_seeds = {run.seed: run.plan.get("data_seed") for run in runs}
  known = arms.noise.df > 0
  return {
    "sd": arms.noise.sd if known else None,
    "df": arms.noise.df,
    "kind_sd": math.sqrt(arms.noise.kind_variance) if arms.noise.kind_df else None,
    "kind_df": arms.noise.kind_df,
    "min_seeds": int(arms.num_seeds_A.min()),
    "max_seeds": int(arms.num_seeds_A.max()),
    "draws_data": len(data_seeds) > 1 and len(set(data_seeds.values())) == len(data_seeds),
  }


def _document_facts(arms: Arms, warnings: list[str]) -> dict:
  units_N, domain_N = arms.scores.units_N, arms.scores.domain_N
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
  df = document_noise.degrees_of_freedom(arms.nats_AN, units_N, domain_N)
  if df < FEW_DOCUMENTS:
    warnings.append(
      f"the validation documents count as {df + 1:.0f} (few, or a few long ones hold most of the "
      "text): intervals are wide and rest on little"
    )
  largest = float(units_N.max() / units_N.sum())
  return {
    "num_documents": len(units_N), "df": df, "per_domain": per_domain, "largest_share": largest
  }  # fmt: skip


def _comparisons(table: ScoreTable, base: int) -> list[dict]:
  """A row for every MoE arm against `base`; verdicts go by the simultaneous intervals."""
  arms = table.arms
  rows = averaged.differences(arms, table.moe, base) if table.moe else []
  return [
    {
      "name": table.names[a],
      "baseline": table.names[base],
      "activation_rate": float(table.rate_A[a]),
      "num_seeds": int(arms.num_seeds_A[a]),
      "baseline_seeds": int(arms.num_seeds_A[base]),
      **dataclasses.asdict(row),
    }
    for a, row in zip(table.moe, rows, strict=True)
  ]


def _by_domain(table: ScoreTable, base: int) -> list[dict]:
  """Differences to dense within each domain, each interval by itself; None for one document."""
  rows, domain_N = [], table.arms.scores.domain_N
  for domain in dict.fromkeys(domain_N.tolist()) if table.moe else ():
    members = domain_N == domain
    arms = averaged.average(table.arms.scores.within(members))
    found = averaged.differences(arms, table.moe, base)
    for a, row in zip(table.moe, found, strict=True):
      rows.append({
        "domain": domain,
        "name": table.names[a],
        "num_documents": int(members.sum()),
        "bpc": float(arms.value_A[a]),
        "baseline_bpc": float(arms.value_A[base]),
        "difference": row.difference,
        "interval": row.interval if members.sum() > 1 else None,
      })  # fmt: skip
  return rows


def _picked(table: ScoreTable, base: int) -> dict | None:
  """The lowest MoE arm: its difference to dense as it stands, and as scored by runs and documents
  that did not pick it; None where arms do not share two seeds."""
  if not table.moe:
    return None
  rng = np.random.default_rng(uncertainty.SEED)
  found = averaged.lead_of_the_picked(table.arms.scores, table.moe, base, rng)
  if found is None:
    return None
  value_A = table.arms.value_A
  best = min(table.moe, key=lambda a: value_A[a])
  return {
    "name": table.names[best],
    "difference": float(value_A[best] - value_A[base]),
    "corrected": found,
    "num_arms": len(table.moe),
  }


def _num_rates(rate_A: np.ndarray) -> int:
  """How many activation rates there are, apart from what whole numbers make of one target."""
  return 0 if not len(rate_A) else 1 + int((np.diff(np.sort(rate_A)) > RATE_TOLERANCE).sum())


def _curve(table: ScoreTable, groups: list[dict]) -> tuple[rate_curve.Curve, dict]:
  arms, moe = table.arms, table.moe
  rng = np.random.default_rng(uncertainty.SEED)
  sources = [dataclasses.replace(s, root_AM=s.root_AM[moe]) for s in arms.sources]
  deviations_BA = uncertainty.draws(len(arms.value_A), arms.sources, uncertainty.NUM_DRAWS, rng)
  fitted = rate_curve.fit(
    table.rate_A[moe], arms.value_A[moe], deviations_BA[:, moe], sources, bool(arms.noise.df), rng
  )
  report: dict[str, Any] = _curve_report(fitted)
  base = table.base
  for a in ([] if base is None else [base]) + table.references:
    below, surely, band = rate_curve.region_below(
      fitted, float(arms.value_A[a]), deviations_BA[:, a], LEVEL
    )
    surely = surely if arms.is_judged(a, a) else None
    if a == base:
      report |= {"below_dense": below, "surely_below_dense": surely}
      report["difference_band"] = band.tolist()
    report["below"].append({
      "baseline": table.names[a], "compute_multiple": groups[a]["compute_multiple"],
      "ranges": below, "surely": surely,
    })  # fmt: skip
  return fitted, report


def _curve_report(fitted: rate_curve.Curve) -> dict:
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
    "scatter_p": fitted.scatter_p,
    "misfit": fitted.misfit,
    "below_dense": None,
    "surely_below_dense": None,
    "difference_band": None,
    "below": [],
  }
