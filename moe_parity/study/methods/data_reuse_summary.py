"""data_reuse.json: the schemes side by side, what repetition costs, and the law of `reuse_law`."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_parity.study import reading
from moe_parity.study.analysis import bootstrap
from moe_parity.study.methods import selection
from moe_parity.study.methods.reuse_law import Point, fit
from moe_parity.study.parts import Part

UNIQUE = "unique"  # the part in which nothing is read twice


def summarise(folder: pathlib.Path, parts: Sequence[Part]) -> dict:
  """Everything that data_reuse.json holds; the same folder gives the same numbers."""
  studies = {part.name: reading.read_study(folder / part.folder) for part in parts}
  runs = {name: _by_arm(study) for name, study in studies.items()}
  everything = {id_: r for study in studies.values() for r in study.runs if r.done
                for id_ in [r.folder.resolve()]}  # fmt: skip
  groups: dict[Any, list[float]] = {}
  for run in everything.values():
    key = (run.folder.parent.resolve(), run.name)
    groups.setdefault(key, []).append(run.result["validation"]["bpc"])
  noise = bootstrap.seed_noise([np.array(v) for v in groups.values()])
  dense = runs[""].get("dense")
  schemes = [_scheme(part, runs[part.name], dense, noise) for part in parts]
  points, arms = _points(parts, runs), _again(parts, runs)
  of_loss = _paired(arms, "cross_entropy")
  num_seeds = min((len(of) for by_part in arms.values() for of in by_part.values()), default=1)
  of_mean = bootstrap.SeedNoise(of_loss.sd / math.sqrt(num_seeds), of_loss.df)
  value = {
    "method": "data_reuse",
    "level": selection.LEVEL,
    "schemes": schemes,
    "costs": _costs(arms),
    "law": fit(points, of_mean),
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


def _by_arm(study: reading.Study) -> dict[str, list[reading.Run]]:
  arms: dict[str, list[reading.Run]] = {}
  for run in study.runs:
    if run.done and math.isfinite(run.result["validation"]["bpc"]):
      arms.setdefault(run.name, []).append(run)
  return arms


def _scheme(
  part: Part, arms: dict[str, list[reading.Run]], dense: list | None, noise: bootstrap.SeedNoise
) -> dict:
  budget = part.plan.budget
  planned = {arm.name: arm for arm in part.plan.arms}
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
    results = [[run.result for run in runs] for runs in [dense, *(arms[name] for name in moe)]]
    found = selection.differences(results, 0, noise)[1:]
    for name, (difference, interval) in zip(moe, found, strict=True):
      comparisons.append({
        "name": name, "activation_rate": planned[name].activation_rate,
        "epochs": planned[name].epochs, "difference": difference,
        "simultaneous": list(interval) if interval else None, "verdict": _verdict(interval),
      })  # fmt: skip
  return {
    "part": part.name,
    "reuse": budget["reuse"],
    "epochs": budget["epochs"],
    "equal_data": budget["equal_data"],
    "arms": rows,
    "baseline": {"name": "dense", "bpc": _mean(dense, "bpc")} if dense else None,
    "comparisons": comparisons,
  }


def _again(parts: Sequence[Part], runs: dict[str, dict]) -> dict[str, dict[str, list]]:
  """The runs of every MoE arm by part, unique first and then by epochs, of the seeds that all of
  them have, in one order. Loose and two epochs may be one run; it is listed once."""
  arms = {}
  for name, unique in runs.get(UNIQUE, {}).items():
    if unique[0].plan["kind"] != "moe":
      continue
    found = {unique[0].folder.resolve(): (UNIQUE, unique)}
    for part in parts:
      if of := runs[part.name].get(name):
        found.setdefault(of[0].folder.resolve(), (part.name, of))
    shared = set.intersection(*({run.seed for run in of} for _, of in found.values()))
    first, *others = found.values()
    others.sort(key=lambda pair: pair[1][0].plan["epochs"])
    if shared and others:
      arms[name] = {
        part: sorted((r for r in of if r.seed in shared), key=lambda r: r.seed)
        for part, of in (first, *others)
      }
  return arms


def _paired(
  arms: dict[str, dict[str, list]], metric: str, only: str | None = None
) -> bootstrap.SeedNoise:
  """`bootstrap.paired_noise` over all schemes, or over unique and one other part."""
  tables = []
  for by_part in arms.values():
    chosen = [of for part, of in by_part.items() if only is None or part in (UNIQUE, only)]
    tables.append(np.array([[run.result["validation"][metric] for run in of] for of in chosen]))
  return bootstrap.paired_noise(tables)


def _costs(arms: dict[str, dict[str, list]]) -> list[dict]:
  """What repetition costs each MoE arm: its BPC under every other scheme minus that under unique.

  Of the same seeds, so with the noise that is left when a seed's level is taken out, pooled over
  the arms of a scheme: where text is learnt by heart it is larger. Each interval holds by itself.
  """
  rows = []
  for name, by_part in arms.items():
    unique, *others = by_part.items()
    for part, of in others:
      noise = _paired({n: b for n, b in arms.items() if part in b}, "bpc", part)
      results = [[run.result for run in runs] for runs in (unique[1], of)]
      difference, interval = selection.differences(results, 0, noise)[1]
      rows.append({
        "name": name, "part": part,
        **{field: of[0].plan[field] for field in ("activation_rate", "epochs")},
        "difference": difference, "interval": list(interval) if interval else None,
      })  # fmt: skip
  return rows


def _mean(runs: list[reading.Run], name: str) -> float:
  return float(np.mean([run.result["validation"][name] for run in runs]))


def _verdict(interval: tuple[float, float] | None) -> str:
  if interval is None or interval[0] <= 0 <= interval[1]:
    return "not distinguishable"
  return "MoE better" if interval[1] < 0 else "dense better"


def _points(parts: Sequence[Part], runs: dict[str, dict]) -> list[Point]:
  """Every MoE arm under every scheme, once."""
  found = {}
  for part in parts:
    for arm, run in zip(part.plan.arms, part.runs, strict=True):
      done = runs[part.name].get(arm.name)
      if arm.kind == "moe" and arm.role == "arm" and done:
        key = run.rsplit("-s", 1)[0]
        loss = _mean(done, "cross_entropy")
        found[key] = Point(arm.name, arm.activation_rate, arm.epochs, arm.num_tokens, loss)
  return list(found.values())


def _headline(value: dict) -> str:
  """Under which schemes MoE leads, in one sentence."""
  told = []
  for scheme in value["schemes"]:
    rows = scheme["comparisons"]
    better = sum(row["verdict"] == "MoE better" for row in rows)
    if rows:
      told.append(f"{_scheme_name(scheme)} {better} of {len(rows)}")
  if not told:
    return "No scheme can be judged yet: it takes a finished dense arm and a finished MoE arm."
  if not value["noise"]["df"]:
    return f"One seed proves nothing; MoE arms below dense, by reuse scheme: {', '.join(told)}."
  return f"MoE arms that beat dense beyond the noise, by reuse scheme: {', '.join(told)}."


def _scheme_name(scheme: dict) -> str:
  return f"{scheme['epochs']:g} epochs" if scheme["reuse"] == "epochs" else scheme["reuse"]


def _sentences(value: dict) -> list[str]:
  lines = []
  for scheme in value["schemes"]:
    rows = scheme["comparisons"]
    if rows:
      better = sum(row["verdict"] == "MoE better" for row in rows)
      best = min(rows, key=lambda row: row["difference"])
      where = "below" if best["difference"] < 0 else "above"
      lines.append(
        f"{_scheme_name(scheme)}: {better} of {len(rows)} MoE arms beat dense beyond the noise; the"
        f" best, {best['name']} at {best['epochs']:.2f} epochs, is {abs(best['difference']):.4f}"
        f" BPC {where} it."
      )
  lines += _cost_sentences(value["costs"])
  if any(scheme["comparisons"] for scheme in value["schemes"]) and not value["noise"]["df"]:
    lines.append(
      "Every arm ran with one seed: the noise here is the choice of validation documents and not"
      " that of training."
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
    unsure = " (inside the noise)" if ends and ends[0] <= 0 <= ends[1] else ""
    told = f"{row['difference']:+.4f} at {row['epochs']:.3g} epochs{unsure}"
    arms.setdefault(row["name"], []).append(told)
  return [
    f"What repetition costs {name}, BPC minus that without any: {', '.join(told)}."
    for name, told in arms.items()
  ]


def _law_sentence(law: dict) -> str:
  known = f" where seeds explain {law['noise']:.4f}" if law["noise"] is not None else ""
  fits = (
    f"its error is {law['rmse']:.4f} nats a token{known}, {law['rmse_published']:.4f} with the"
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
