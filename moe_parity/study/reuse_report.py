"""data_reuse.json: the schemes side by side, and Muennighoff's law fitted to their runs.

The law (arXiv 2305.16264), at one N and for each activation rate r with its tokens D:

    L(r, e) = a_r + B D_eff^-beta,   D_eff = U (1 + R* (1 - exp(-(e - 1) / R*))),   U = D / e

beta is the published one: runs at one D per rate cannot tell it from B. Fitted are a_r, B and R*,
the number of epochs over which repeated text loses its worth (15.4 for the authors' dense models).
Their second term, for models too large for their text, is left out: N is the same in all runs.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_parity.resources.laws import REUSE_EXPONENT, REUSE_TOKEN_DECAY
from moe_parity.study import bootstrap, choice, reading
from moe_parity.study.parts import Part

DECAYS = np.exp(np.linspace(math.log(0.05), math.log(2000), 161))
NUM_DRAWS = 1000


class Point(NamedTuple):
  """One arm under one scheme, averaged over seeds; cross_entropy in nats a token, validation."""

  name: str
  activation_rate: int | float
  epochs: int | float
  num_tokens: int
  cross_entropy: int | float


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
  points = _points(parts, runs)
  value = {
    "method": "data_reuse",
    "level": choice.LEVEL,
    "schemes": schemes,
    "law": fit(points),
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
    found = choice.differences(results, 0, noise)[1:]
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


def effective_tokens(tokens: np.ndarray, epochs: np.ndarray, decay: int | float) -> np.ndarray:
  """D_eff of tokens seen in so many epochs, for R* = decay."""
  return tokens / epochs * (1 + decay * (1 - np.exp(-(epochs - 1) / decay)))


def fit(points: list[Point]) -> dict | None:
  """R*, its interval from the residuals, and how much better it fits than the published R*.

  None: fewer runs than a level a rate, B, R* and one to spare; or no rate with several epochs.
  """
  names = sorted({p.name for p in points})
  if len(points) < len(names) + 3 or len({round(p.epochs, 3) for p in points}) < 3:
    return None
  loss = np.array([p.cross_entropy for p in points])
  projections = [_project(points, names, decay) for decay in DECAYS]
  squares_R = np.array([squares(loss[None])[0] for _, squares in projections])
  best = int(squares_R.argmin())
  df = len(points) - len(names) - 2
  sd = math.sqrt(squares_R[best] / df)
  rng = np.random.default_rng(choice.SEED)
  fitted = projections[best][0](loss)
  moved = fitted + bootstrap.noise_deviations(np.full(len(points), sd), df, NUM_DRAWS, rng)
  squares_RB = np.array([squares(moved) for _, squares in projections])
  tail = (1 - choice.LEVEL) / 2
  ends = np.quantile(DECAYS[squares_RB.argmin(0)], [tail, 1 - tail])
  published = _project(points, names, REUSE_TOKEN_DECAY)[1](loss[None])[0]
  return {
    "name": "Muennighoff",
    "token_decay_published": REUSE_TOKEN_DECAY,
    "token_decay": float(DECAYS[best]),
    "interval": ends.tolist(),
    "at_edge": bool(best in (0, len(DECAYS) - 1)),
    "open": [bool(ends[0] <= DECAYS[1]), bool(ends[1] >= DECAYS[-2])],
    "exponent": REUSE_EXPONENT,
    "num_runs": len(points),
    "rmse": math.sqrt(squares_R[best] / len(points)),
    "rmse_published": math.sqrt(published / len(points)),
    "curves": _curves(points, names, float(DECAYS[best]), loss),
    "points": [
      {"name": p.name, "activation_rate": p.activation_rate, "epochs": p.epochs,
       "cross_entropy": p.cross_entropy} for p in points
    ],
  }  # fmt: skip


def _design(
  tokens: np.ndarray, epochs: np.ndarray, index: np.ndarray, names: list[str], decay: int | float
) -> np.ndarray:
  levels = (index[:, None] == np.arange(len(names))).astype(float)
  worth = effective_tokens(tokens, epochs, decay) ** -REUSE_EXPONENT
  return np.concatenate([levels, worth[:, None]], -1)


def _project(points: list[Point], names: list[str], decay: int | float):
  """(loss -> fitted loss, losses [B, points] -> sums of squares [B]) for one R*.

  B below zero would mean that more text is worse; such a fit counts as the one without text.
  """
  tokens = np.array([p.num_tokens for p in points], float)
  epochs = np.array([p.epochs for p in points], float)
  index = np.array([names.index(p.name) for p in points])
  full = _design(tokens, epochs, index, names, decay)
  solve, flat = np.linalg.pinv(full), np.linalg.pinv(full[:, :-1])

  def fitted(loss: np.ndarray) -> np.ndarray:
    found = loss @ solve.T
    plain = (loss @ flat.T) @ full[:, :-1].T
    return np.where(found[..., -1:] > 0, found @ full.T, plain)

  return fitted, lambda losses: ((losses - fitted(losses)) ** 2).sum(-1)


def _curves(points: list[Point], names: list[str], decay: float, loss: np.ndarray) -> list[dict]:
  tokens = np.array([p.num_tokens for p in points], float)
  epochs = np.array([p.epochs for p in points], float)
  index = np.array([names.index(p.name) for p in points])
  grid = np.exp(np.linspace(0, math.log(max(epochs.max(), 1.01)), 41))
  rows = {}
  for label, value in (("cross_entropy", decay), ("cross_entropy_published", REUSE_TOKEN_DECAY)):
    found = np.linalg.pinv(_design(tokens, epochs, index, names, value)) @ loss
    for i, name in enumerate(names):
      first = next(p for p in points if p.name == name)
      row = rows.setdefault(name, {"name": name, "activation_rate": first.activation_rate,
                                   "epochs": grid.tolist()})  # fmt: skip
      worth = effective_tokens(np.full(len(grid), float(first.num_tokens)), grid, value)
      row[label] = (found[i] + found[-1] * worth**-REUSE_EXPONENT).tolist()
  return list(rows.values())


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
  return f"MoE arms that beat dense beyond the noise, by reuse scheme: {', '.join(told)}."


def _scheme_name(scheme: dict) -> str:
  return f"{scheme['epochs']:g} epochs" if scheme["reuse"] == "epochs" else scheme["reuse"]


def _sentences(value: dict) -> list[str]:
  lines = []
  for scheme in value["schemes"]:
    rows = scheme["comparisons"]
    if rows:
      better = [row["name"] for row in rows if row["verdict"] == "MoE better"]
      best = min(rows, key=lambda row: row["difference"])
      lines.append(
        f"{_scheme_name(scheme)}: {len(better)} of {len(rows)} MoE arms beat dense beyond the"
        f" noise; the best, {best['name']} at {best['epochs']:.2f} epochs, by"
        f" {-best['difference']:+.4f} BPC."
      )
  law = value["law"]
  if law and law["at_edge"]:
    lines.append(
      "Muennighoff's R* cannot be read off these runs: the fit of his law runs to the end of the"
      f" range tried (R* = {law['token_decay']:.3g}); its error there is"
      f" {law['rmse']:.4f} nats a token, {law['rmse_published']:.4f} with the published R* ="
      f" {law['token_decay_published']:.1f}."
    )
  elif law:
    low, high = law["interval"]
    lines.append(
      f"Muennighoff's law fits these runs with R* = {law['token_decay']:.2f}"
      f" ({'at most ' if law['open'][0] else ''}{low:.2f} to"
      f" {'at least ' if law['open'][1] else ''}{high:.2f} at 95 %), against"
      f" {law['token_decay_published']:.1f} published for dense models; its error is"
      f" {law['rmse']:.4f} nats a token, {law['rmse_published']:.4f} with the published R*."
    )
  if value["not_done"]:
    lines.append(f"Not done: {', '.join(value['not_done'])}.")
  return lines
