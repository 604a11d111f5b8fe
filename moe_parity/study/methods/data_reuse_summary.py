"""data_reuse.json: the schemes side by side, what repetition costs, and the law of `reuse_law`."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from moe_parity.study import reading
from moe_parity.study.analysis.arms import ONE_SEED, Arms, average, differences
from moe_parity.study.analysis.statistics import are_dense, scores_of
from moe_parity.study.analysis.uncertainty import LEVEL
from moe_parity.study.comparisons import Comparison, Results
from moe_parity.study.methods.reuse_law import Noise, Point, fit

UNIQUE = "unique"  # the comparison in which nothing is read twice


def summarize(
  config: ConfigDict, folder: pathlib.Path, comparisons: Sequence[Comparison], results: Results
) -> dict:
  """Everything that data_reuse.json holds; the same folder gives the same numbers."""
  studies = {
    comparison.name: reading.read_study(folder / comparison.folder) for comparison in comparisons
  }
  runs = {name: _by_arm(study) for name, study in studies.items()}
  everything = {id_: r for study in studies.values() for r in study.runs if r.done
                for id_ in [r.folder.resolve()]}  # fmt: skip
  schemes = [
    _scheme(comparison, runs[comparison.name], runs[""].get("dense")) for comparison in comparisons
  ]
  points, arms = _points(comparisons, runs), _repeated(comparisons, runs)
  noise = _noise(comparisons, runs)
  value = {
    "method": "data_reuse",
    "level": LEVEL,
    "schemes": schemes,
    "costs": _costs(arms),
    "law": fit(points, _noise_of_points(arms)),
    "noise": {"sd": noise.sd if noise.df else None, "df": noise.df},
    "num_runs": {
      kind: sum(run.plan["kind"] == kind for run in everything.values())
      for kind in ("moe", "dense")
    },
    "not_done": sorted(
      {run.label for study in studies.values() for run in study.runs if not run.done}
    ),
  }
  return value | {"headline": _headline(value), "sentences": _sentences(value)}


def _by_arm(study: reading.StudyRecord) -> dict[str, list[reading.RunRecord]]:
  arms: dict[str, list[reading.RunRecord]] = {}
  for run in study.runs:
    if run.done and math.isfinite(run.result["validation"]["bpc"]):
      arms.setdefault(run.name, []).append(run)
  return arms


def _scheme(
  comparison: Comparison, arms: dict[str, list[reading.RunRecord]], dense: list | None
) -> dict:
  budget = comparison.plan.budget
  planned = {arm.name: arm for arm in comparison.plan.arms}
  rows = []
  for name, runs in arms.items():
    arm = planned[name]
    rows.append({
      **{field: getattr(arm, field) for field in
         ("name", "kind", "role", "activation_rate", "num_tokens", "num_unique_tokens", "epochs")},
      "bpc": _mean(runs, "bpc"),
      "cross_entropy": _mean(runs, "cross_entropy"),
      "num_seeds": len(runs),
    })  # fmt: skip
  rows.sort(key=lambda row: row["activation_rate"])
  moe = [row["name"] for row in rows if row["kind"] == "moe"]
  comparisons = []
  if dense and moe:
    minus_dense = differences(
      _average([dense, *(arms[name] for name in moe)]), range(1, len(moe) + 1), 0
    )
    for name, row in zip(moe, minus_dense, strict=True):
      comparisons.append({
        "name": name, "activation_rate": planned[name].activation_rate,
        "epochs": planned[name].epochs, "difference": row.difference,
        "simultaneous": row.simultaneous, "verdict": row.verdict,
      })  # fmt: skip
  return {
    "part": comparison.name,
    "reuse": budget["reuse"],
    "epochs": budget["epochs"],
    "equal_data": budget["equal_data"],
    "arms": rows,
    "baseline": {"name": "dense", "bpc": _mean(dense, "bpc")} if dense else None,
    "comparisons": comparisons,
  }


def _repeated(
  comparisons: Sequence[Comparison], runs: dict[str, dict]
) -> dict[str, dict[str, list]]:
  """The runs of every MoE arm by scheme, unique first and then by epochs, of the seeds that all of
  them have, in one order. Loose and two epochs may be one run; it is listed once."""
  arms = {}
  for name, unique in runs.get(UNIQUE, {}).items():
    if unique[0].plan["kind"] != "moe":
      continue
    by_folder = {unique[0].folder.resolve(): (UNIQUE, unique)}
    for comparison in comparisons:
      if of := runs[comparison.name].get(name):
        by_folder.setdefault(of[0].folder.resolve(), (comparison.name, of))
    shared = set.intersection(*({run.seed for run in of} for _, of in by_folder.values()))
    first, *others = by_folder.values()
    others.sort(key=lambda pair: pair[1][0].plan["epochs"])
    if shared and others:
      arms[name] = {
        scheme: sorted((r for r in of if r.seed in shared), key=lambda r: r.seed)
        for scheme, of in (first, *others)
      }
  return arms


def _average(arms: Sequence[list[reading.RunRecord]]) -> Arms:
  """Arms from their runs, with the noise of these runs alone: of one scheme, so that a seed that
  runs under every scheme counts once."""
  runs = [(a, run) for a, of in enumerate(arms) for run in of]
  arm_R, seed_R = np.array([a for a, _ in runs]), np.array([run.seed for _, run in runs])
  first = [of[0] for of in arms]
  return average(scores_of([run.result for _, run in runs], arm_R, seed_R, are_dense(first)))


def _noise(comparisons: Sequence[Comparison], runs: dict[str, dict]) -> Noise:
  """Between seeds of one arm under one scheme: squares are averaged over schemes, and degrees of
  freedom are those of one scheme, for all schemes share their seeds."""
  noises = [
    _average(list(runs[comparison.name].values())).noise
    for comparison in comparisons
    if runs[comparison.name]
  ]
  with_df = [noise for noise in noises if noise.df]
  if not with_df:
    return Noise(math.nan, 0)
  square = sum(noise.df * noise.sd**2 for noise in with_df) / sum(noise.df for noise in with_df)
  return Noise(math.sqrt(square), max(noise.df for noise in with_df))


def _noise_of_points(arms: dict[str, dict[str, list]]) -> Noise:
  """Of an arm's mean loss under one scheme, against its other schemes: what is left between seeds
  when each seed's own level is taken out. A seed counts once an arm, however many schemes it ran
  under."""
  squares, counts, df, num_seeds = 0.0, 0, 0, 1
  for by_scheme in arms.values():
    table = np.array(
      [[run.result["validation"]["cross_entropy"] for run in of] for of in by_scheme.values()]
    )
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    squares += float((left**2).sum())
    counts += (table.shape[0] - 1) * (table.shape[1] - 1)
    df += table.shape[1] - 1
    num_seeds = table.shape[1]
  return Noise(math.sqrt(squares / counts / num_seeds), df) if df else Noise(math.nan, 0)


def _costs(arms: dict[str, dict[str, list]]) -> list[dict]:
  """What repetition costs each MoE arm: its BPC under every other scheme minus that under unique.

  Differences of the same seeds: what all schemes of a seed share is no noise of theirs. The noise
  is of one scheme, over its arms, for where text is memorized it is larger. Each interval
  holds by itself.
  """
  rows = []
  schemes = dict.fromkeys(scheme for by_scheme in arms.values() for scheme in list(by_scheme)[1:])
  for scheme in schemes:
    names = [name for name, by_scheme in arms.items() if scheme in by_scheme]
    pairs = [
      pair for name in names
      for pair in zip(arms[name][scheme], next(iter(arms[name].values())), strict=True)
    ]  # fmt: skip
    arm_R = np.concatenate([np.full(len(arms[name][scheme]), a) for a, name in enumerate(names)])
    seed_R = np.array([run.seed for run, _ in pairs])
    repeated, unique = (scores_of([run.result for run in side], arm_R, seed_R)
                        for side in zip(*pairs, strict=True))  # fmt: skip
    costs = average(repeated.minus(unique))
    intervals = costs.own_intervals() if costs.sources else None
    for a, name in enumerate(names):
      rows.append({
        "name": name, "part": scheme,
        **{field: arms[name][scheme][0].plan[field] for field in ("activation_rate", "epochs")},
        "difference": float(costs.value_A[a]),
        "interval": None if intervals is None else intervals[:, a].tolist(),
      })  # fmt: skip
  order = {name: i for i, name in enumerate(arms)}
  return sorted(rows, key=lambda row: (order[row["name"]], row["epochs"]))


def _mean(runs: list[reading.RunRecord], name: str) -> float:
  return float(np.mean([run.result["validation"][name] for run in runs]))


def _points(comparisons: Sequence[Comparison], runs: dict[str, dict]) -> list[Point]:
  """Every MoE arm under every scheme, once."""
  points = {}
  for comparison in comparisons:
    for arm, run in zip(comparison.plan.arms, comparison.runs, strict=True):
      done = runs[comparison.name].get(arm.name)
      if arm.kind == "moe" and arm.role == "arm" and done:
        key = run.rsplit("-s", 1)[0]
        loss = _mean(done, "cross_entropy")
        points[key] = Point(arm.name, arm.activation_rate, arm.epochs, arm.num_tokens, loss)
  return list(points.values())


def _headline(value: dict) -> str:
  """Under which schemes MoE leads, in one sentence."""
  parts = []
  for scheme in value["schemes"]:
    rows = scheme["comparisons"]
    better = sum(row["verdict"] == "MoE better" for row in rows)
    if rows:
      parts.append(f"{_scheme_name(scheme)} {better} of {len(rows)}")
  if not parts:
    return "No scheme can be judged yet: it takes a finished dense arm and a finished MoE arm."
  if not value["noise"]["df"]:
    return "One seed proves nothing, so no scheme is judged: every arm has to be repeated."
  return f"MoE arms significantly better than dense, by reuse scheme: {', '.join(parts)}."


def _scheme_name(scheme: dict) -> str:
  return f"{scheme['epochs']:g} epochs" if scheme["reuse"] == "epochs" else scheme["reuse"]


def _sentences(value: dict) -> list[str]:
  lines = []
  for scheme in value["schemes"]:
    rows = scheme["comparisons"]
    if rows:
      judged = [row for row in rows if row["verdict"] != ONE_SEED]
      better = sum(row["verdict"] == "MoE better" for row in rows)
      count = f"{better} of {len(rows)} MoE arms are significantly better than dense; "
      best = min(rows, key=lambda row: row["difference"])
      where = "below" if best["difference"] < 0 else "above"
      lines.append(
        f"{_scheme_name(scheme)}: {count if judged else ''}the lowest, {best['name']} at"
        f" {best['epochs']:.2f} epochs, is {abs(best['difference']):.4f} BPC {where} dense."
      )
  lines += _cost_sentences(value["costs"])
  if any(scheme["comparisons"] for scheme in value["schemes"]) and not value["noise"]["df"]:
    lines.append(
      "Every arm ran with one seed: intervals hold the choice of validation documents and not"
      " training noise, and rows have no verdict."
    )
  if law := value["law"]:
    lines.append(_law_sentence(law))
  if value["not_done"]:
    lines.append(f"Not done: {', '.join(value['not_done'])}.")
  return lines


def _cost_sentences(costs: list[dict]) -> list[str]:
  """A sentence an arm: what each number of epochs cost it."""
  arms: dict[str, list[str]] = {}
  for row in costs:
    ends = row["interval"]
    unsure = " (not distinguishable from 0)" if ends and ends[0] <= 0 <= ends[1] else ""
    cost = f"{row['difference']:+.4f} at {row['epochs']:.3g} epochs{unsure}"
    arms.setdefault(row["name"], []).append(cost)
  return [
    f"What repetition costs {name}, BPC minus that without any: {', '.join(costs)}."
    for name, costs in arms.items()
  ]


def _law_sentence(law: dict) -> str:
  noise = f" where seeds explain {law['noise']:.4f}" if law["noise"] is not None else ""
  fits = (
    f"its error is {law['rmse']:.4f} nats a token{noise}, {law['rmse_published']:.4f} with the"
    f" published R* = {law['token_decay_published']:.1f}"
  )
  if law["misfit"]:
    low, high = law["interval"]
    return (
      "Muennighoff's law does not describe these runs: at the best R*,"
      f" {law['token_decay']:.3g} ({low:.3g} to {high:.4g} at 95 %), {fits}."
    )
  if law["at_edge"]:
    return (
      "Muennighoff's R* cannot be read off these runs: the fit of his law runs to the end of the"
      f" range tried (R* = {law['token_decay']:.3g}); {fits}."
    )
  low, high = law["interval"]
  if all(law["open"]):
    return (
      "Muennighoff's R* cannot be read off these runs: his law fits them best with"
      f" {law['token_decay']:.2f}, but at 95 % any from {low:.3g} to {high:.4g} may be; {fits}."
    )
  return (
    f"Muennighoff's law fits these runs with R* = {law['token_decay']:.2f}"
    f" ({'at most ' if law['open'][0] else ''}{low:.2f} to"
    f" {'at least ' if law['open'][1] else ''}{high:.2f} at 95 %); {fits}."
  )
