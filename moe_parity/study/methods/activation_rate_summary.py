"""What a sweep over activation rates shows: activation_rate.json from the comparisons of a study.

Each comparison gets its optimum, the region where MoE beats each dense line (from `analysis`), and
two checks against the paper: M grows linearly with r_a (Fig. 2), and loss falls as a power of r_a,
a straight line in logarithms, while tokens are held fixed (Fig. 3). Between comparisons of
different N it compares the optima; between the checks and their arms, learning rates and batches.
"""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from moe_parity.study import reading
from moe_parity.study.analysis import compare, rate_curve, uncertainty
from moe_parity.study.analysis.arms import average
from moe_parity.study.analysis.statistics import scores_of
from moe_parity.study.comparisons import Comparison, Results
from moe_parity.study.methods.activation_rate_sentences import sentences

LEVEL = uncertainty.LEVEL


def summarize(
  config: ConfigDict, folder: pathlib.Path, comparisons: Sequence[Comparison], results: Results
) -> dict:
  """Everything that activation_rate.json holds; the same folder gives the same numbers."""
  sweeps, curves = [], {}
  for comparison in comparisons:
    report, fitted = compare.analyze_with_curve(folder / comparison.folder)
    sweeps.append(_sweep(comparison, report))
    if comparison.plan.budget["held_fixed"] == "compute":
      curves[comparison.plan.budget["num_params"]] = (report, fitted)
  main = compare.analyze(folder)
  tuning = _tuning(reading.read_study(folder), main)
  value = {
    "method": "activation_rate",
    "metric": "bpc",
    "level": LEVEL,
    "sweeps": sweeps,
    "transfer": _transfer(curves),
    "tuning": tuning,
    "noise": main["noise"],
    "num_runs": _num_runs(comparisons),
    "stages": _stages(comparisons[0], sweeps[0]["not_done"]),
  }
  return value | {"sentences": sentences(value)}


def _sweep(comparison: Comparison, report: dict) -> dict:
  budget = comparison.plan.budget
  held = budget["held_fixed"]
  plans = {arm.name: arm for arm in comparison.plan.arms}
  arms = []
  for group in report["groups"]:
    arm = plans[group["name"]]
    losses = [r["train_cross_entropy"] for r in report["arms"] if r["name"] == arm.name]
    numbers = [loss for loss in losses if loss is not None]
    arms.append({
      **{name: group[name] for name in
         ("name", "kind", "role", "activation_rate", "num_seeds", "bpc", "interval", "seed_sd")},
      "loss": float(np.mean(numbers)) if numbers else None,
      **{name: getattr(arm, name) for name in
         ("train_flops_per_token", "train_flops", "num_tokens", "num_unique_tokens", "epochs",
          "compute_multiple")},
    })  # fmt: skip
  arms.sort(key=lambda arm: (arm["activation_rate"], arm["compute_multiple"]))
  moe = [arm for arm in arms if arm["kind"] == "moe" and arm["role"] == "arm"]
  fitted = report["curve"]
  return {
    "part": comparison.name,
    "held": held,
    "num_params": budget["num_params"],
    "train_flops": float(budget["train_flops"]) if held == "compute" else None,
    "dense_tokens": budget["dense_tokens"],
    "reuse": budget["reuse"],
    "arms": arms,
    "optimum": fitted["minimum"] if fitted else None,
    "below": fitted["below"] if fitted else [],
    "log_log": _log_log(moe),
    "flops_linear": _flops_linear(comparison),
    "not_done": sorted({f"{r['name']} (seed {r['seed']})" for r in report["not_done"]}),
  }


def slope(x: np.ndarray, y: np.ndarray) -> dict:
  """Least squares y = slope x + intercept; the interval of the slope from the residuals."""
  from scipy.special import stdtrit
  from scipy.stats import linregress

  line = linregress(x, y)
  df = len(x) - 2
  interval = None
  if df > 0:
    half = float(stdtrit(df, (1 + LEVEL) / 2) * line.stderr)
    interval = [float(line.slope) - half, float(line.slope) + half]
  return {
    "slope": float(line.slope),
    "intercept": float(line.intercept),
    "interval": interval,
    "r2": float(line.rvalue) ** 2 if np.ptp(y) else None,
  }


def _log_log(moe: list[dict]) -> dict | None:
  """ln loss against ln r_a over the MoE arms."""
  with_loss = [arm for arm in moe if arm["loss"]]
  if len(with_loss) < 3:
    return None
  loss = np.array([arm["loss"] for arm in with_loss])
  fitted = slope(np.log([arm["activation_rate"] for arm in with_loss]), np.log(loss))
  monotone = bool((np.diff(loss) < 0).all())
  return {"y": "loss", "num_arms": len(with_loss), "monotone": monotone} | fitted


def _flops_linear(comparison: Comparison) -> dict | None:
  """M against r_a over the planned MoE arms: linear where depth and width are the same."""
  arms = {a.name: a for a in comparison.plan.arms if a.kind == "moe" and a.role == "arm"}
  if len(arms) < 3:
    return None
  rate = np.array([arm.activation_rate for arm in arms.values()])
  return slope(rate, np.array([arm.train_flops_per_token for arm in arms.values()], float))


def _transfer(curves: dict[int, tuple[dict, rate_curve.Curve | None]]) -> dict | None:
  """Whether sizes agree on r_a*; the draws of different sizes are taken as independent."""
  fits = {n: fitted for n, (_, fitted) in curves.items() if fitted is not None}
  if len(curves) < 2:
    return None
  optima = []
  for n, fitted in fits.items():
    minimum = rate_curve.minimum_interval(fitted, LEVEL)
    names = ("activation_rate", "interval", "bracketed")
    optima.append({"num_params": n} | {name: minimum[name] for name in names})
  pairs, sizes = [], sorted(fits)
  rng = np.random.default_rng(uncertainty.SEED)
  for a, b in ((a, b) for i, a in enumerate(sizes) for b in sizes[i + 1 :]):
    draws = np.log(rng.permutation(fits[b].minimum_B)) - np.log(fits[a].minimum_B)
    tail = (1 - LEVEL) / 2
    # Both minima lie on grids: neither is known better than half a step of its own.
    step = sum(float(np.log(fits[n].grid_G[1] / fits[n].grid_G[0])) for n in (a, b)) / 2
    ends = (np.quantile(draws, [tail, 1 - tail]) + [-step, step]).tolist()
    inside = {o["num_params"]: o["bracketed"] for o in optima}
    verdict = "differs" if ends[0] > 0 or ends[1] < 0 else "not distinguishable"
    if not (inside[a] and inside[b]):
      verdict = "not known"
    ratio = math.log(fits[b].minimum / fits[a].minimum)
    pairs.append({"num_params": [a, b], "log_ratio": ratio, "interval": ends, "verdict": verdict})
  return {"sizes": sorted(curves), "optima": optima, "pairs": pairs}


def _tuning(study: reading.StudyRecord, report: dict) -> dict | None:
  """Each side's best learning rate or batch, and what the comparison is if each takes its best.

  Only first seeds are compared, so that an arm with three seeds is not set against one with one.
  """
  checks = [run for run in study.runs if run.plan.get("role") == "check"]
  if not checks:
    return None
  done = {(run.name, run.seed): run for run in study.runs if run.done}
  seeds = sorted({run.seed for run in checks})
  sides = []
  for kind in ("moe", "dense"):
    names = list(dict.fromkeys(run.name for run in checks if run.plan["kind"] == kind))
    base = names[0].rsplit("_", 1)[0] if names else ""
    arms = []
    for name in [base, *names]:
      runs = [done[name, seed] for seed in seeds if (name, seed) in done]
      if len(runs) == len(seeds):
        arms.append(_tuned_arm(name, runs, done.get((base, seeds[0]))))
    if not arms or arms[0]["name"] != base:
      return None
    best = min(arms, key=lambda arm: arm["bpc"])
    sides.append({"kind": kind, "arm": base, "arms": arms, "best": best["name"],
                  "gain": arms[0]["bpc"] - best["bpc"]})  # fmt: skip
  moe, dense = sides
  by_name = {arm["name"]: arm["bpc"] for side in sides for arm in side["arms"]}
  intervals = _tuned_intervals(sides, [[done[name, seed] for seed in seeds] for name in by_name],
                               report["noise"])  # fmt: skip
  for side in sides:
    side["gain_interval"] = intervals.get(side["kind"])
  return {
    "sides": sides,
    "difference_at_law": by_name[moe["arm"]] - by_name[dense["arm"]],
    "difference_tuned": by_name[moe["best"]] - by_name[dense["best"]],
    "tuned_interval": intervals.get("tuned"),
    "num_arms": {side["kind"]: len(side["arms"]) for side in sides},
  }


def _tuned_intervals(
  sides: list[dict], runs: list[list[reading.RunRecord]], noise: dict
) -> dict[str, list[float] | None]:
  """Intervals of each side's gain, by its kind, and of MoE minus dense, "tuned", each side at its
  best: documents and seeds. They hold for all settings at once, for the best was picked by score.
  Empty where no seeds' noise is known.

  Args:
    runs: of every setting, in the order of the sides. noise: of the study's repeated arms.
  """
  if noise["sd"] is None:
    return {}
  names = [arm["name"] for side in sides for arm in side["arms"]]
  of_run = [(a, run) for a, of in enumerate(runs) for run in of]
  arm_R, seed_R = np.array([a for a, _ in of_run]), np.array([run.seed for _, run in of_run])
  arms = average(scores_of([run.result for _, run in of_run], arm_R, seed_R))
  sources = list(arms.document_sources)
  for a, of in enumerate(runs):
    root = np.zeros((len(runs), 1))
    root[a] = noise["sd"] / math.sqrt(len(of))
    sources.append(uncertainty.VarianceSource(root, noise["df"], "seeds"))
  if noise["kind_sd"]:
    root = np.array([[noise["kind_sd"] * (of[0].plan["kind"] == "dense")] for of in runs])
    sources.append(
      uncertainty.VarianceSource(root / math.sqrt(len(runs[0])), noise["kind_df"], "seeds")
    )
  one = dict(zip(names, np.eye(len(names)), strict=True))

  def interval(pairs: list[tuple[str, str]], wanted: tuple[str, str]) -> list[float]:
    contrast = np.array([one[a] - one[b] for a, b in pairs])
    intervals = uncertainty.intervals(contrast @ arms.value_A, contrast, sources, LEVEL)
    return intervals.joint[:, pairs.index(wanted)].tolist()

  intervals: dict[str, list[float] | None] = {}
  moe, dense = ([arm["name"] for arm in side["arms"]] for side in sides)
  for side in sides:
    others = [(side["arm"], arm["name"]) for arm in side["arms"][1:]]
    if side["best"] == side["arm"]:
      intervals[side["kind"]] = None  # its own setting is the best one: there is nothing to gain
    else:
      intervals[side["kind"]] = interval(others, (side["arm"], side["best"]))
  best = tuple(side["best"] for side in sides)
  intervals["tuned"] = interval([(a, b) for a in moe for b in dense], best)
  return intervals


def _tuned_arm(name: str, runs: list[reading.RunRecord], base: reading.RunRecord | None) -> dict:
  plan = runs[0].plan
  multiple = None
  if base is not None:
    multiple = plan["peak_learning_rate"] / base.plan["peak_learning_rate"]
  return {
    "name": name,
    "learning_rate_multiplier": multiple,
    "batch_sequences": plan["batch_sequences"],
    "peak_learning_rate": plan["peak_learning_rate"],
    "bpc": float(np.mean([run.result["validation"]["bpc"] for run in runs])),
    "num_seeds": len(runs),
  }


def _num_runs(comparisons: Sequence[Comparison]) -> dict[str, int]:
  runs = {
    run: arm.kind
    for comparison in comparisons
    for arm, run in zip(comparison.plan.arms, comparison.runs, strict=True)
  }
  return {kind: sum(k == kind for k in runs.values()) for kind in ("moe", "dense")}


def _stages(comparison: Comparison, not_done: list[str]) -> list[dict]:
  """What each stage trained, by what its arms are for."""
  first = {}
  for arm in comparison.plan.arms:
    first.setdefault(arm.name, arm.seed)
  stages = {"sweep": [], "seeds": [], "checks": []}
  for arm in comparison.plan.arms:
    if arm.tunes:
      continue
    more = arm.kind == "moe" and arm.seed != first[arm.name]
    stage = "checks" if arm.role == "check" else "seeds" if more else "sweep"
    stages[stage].append(f"{arm.name} (seed {arm.seed})")
  return [
    {"name": name, "arms": arms, "complete": bool(arms) and not set(arms) & set(not_done)}
    for name, arms in stages.items()
  ]
