"""architecture.json: the stages of a search with their options in the columns of the paper's Tables
5 to 8, what was chosen, and how many arms each side got."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.study import reading
from moe_parity.study.analysis.arms import differences
from moe_parity.study.analysis.statistics import ScoreTable, tabulate
from moe_parity.study.comparisons import Comparison, Results
from moe_parity.study.methods import selection
from moe_parity.study.methods.architecture import SIDES, SearchStage, stages

QUESTIONS = {
  "layout": "Which layers are MoE, and is there a shared expert?",
  "gates": "Are the chosen gates divided by their sum?",
  "granularity": "How many experts are chosen, at constant K x D_e?",
  "shape": "How wide and how deep (zeta = d / L, mu = all FFN width / d)?",
  "scale": "What is the sum of the routed experts multiplied by?",
  "dense_aspect": "How wide and how deep is the dense baseline (zeta = d / L)?",
  "dense_ffn": "How wide is the dense baseline's feed-forward part (alpha = d_ffn / d)?",
}
_PLANNED = (
  "num_params num_active_params activation_rate forward_flops_per_token train_flops_per_token"
  " train_flops num_tokens gates routed_scale peak_learning_rate"
).split()
_SHAPE = (
  "layout num_layers d_model d_ffn num_heads d_head num_experts experts_per_token d_expert d_shared"
).split()


def summarize(
  config: ConfigDict, folder: pathlib.Path, comparisons: Sequence[Comparison], results: Results
) -> dict:
  """Everything that architecture.json holds; the same folder gives the same numbers."""
  comparison = comparisons[0]
  study = reading.read_study(folder)
  all_stages = stages(config, results)
  plans = {arm.name: arm for arm in comparison.plan.arms}
  runs = {name: [run for run in study.runs if run.name == name] for name in plans}
  rows = [_stage(stage, plans, runs) for stage in all_stages if _is_planned(stage, plans)]
  arms = {kind: [] for kind in SIDES}
  for stage in all_stages:
    arms[stage.kind] += [o.arm for o in stage.options if o.arm not in arms[stage.kind]]
  finished = [run for of_arm in runs.values() for run in of_arm if run.done]
  table = tabulate(finished) if finished else None
  noise = table.arms.noise if table else None
  value = {
    "method": "architecture",
    "level": selection.LEVEL,
    "rule": selection.RULE,
    "stages": rows,
    "backbone": _last(rows, "moe"),
    "dense_backbone": _last(rows, "dense"),
    "num_arms": {kind: len(names) for kind, names in arms.items()},
    "num_runs": {kind: sum(len(runs[n]) for n in names) for kind, names in arms.items()},
    "between": _between(rows, table),
    "noise": {"sd": noise.sd, "df": noise.df} if noise and noise.df else {"sd": None, "df": 0},
  }
  return value | {"headline": _headline(value), "sentences": _sentences(value)}


def _is_planned(stage: SearchStage, plans: dict[str, ArmPlan]) -> bool:
  """Whether the learning rates of a stage's arms are known, where they are tuned."""
  return all(option.arm in plans for option in stage.options)


def _stage(
  stage: SearchStage, plans: dict[str, ArmPlan], runs: dict[str, list[reading.RunRecord]]
) -> dict:
  made = stage.selection
  options = []
  for index, option in enumerate(stage.options):
    row = {"arm": option.arm, "label": option.label} | _columns(plans[option.arm])
    row["shared_expert"] = bool(row["d_shared"])
    row |= _measured([run for run in runs[option.arm] if run.done])
    row |= {"difference": None, "simultaneous": None, "verdict": "not done"}
    if made is not None:
      row["verdict"] = made.verdict[index]
      if math.isfinite(made.difference[index]):
        row["difference"] = made.difference[index]
      if made.interval[index] is not None:
        row["simultaneous"] = list(made.interval[index])
    options.append(row)
  return {
    "name": stage.name,
    "kind": stage.kind,
    "question": QUESTIONS[stage.name],
    "complete": made is not None,
    "incumbent": stage.options[0].label,
    "chosen": stage.options[made.chosen].label if made else None,
    "tie": made.tie if made else False,
    "options": options,
    "skipped": [{"label": label, "why": why} for label, why in stage.skipped],
  }


def _columns(arm: ArmPlan) -> dict[str, Any]:
  shape = arm.architecture
  row = {name: getattr(shape, name) for name in _SHAPE}
  row |= {name: getattr(arm, name) for name in _PLANNED}
  row["kappa"] = arm.forward_flops_per_token / (2 * arm.num_active_params)
  row["aspect_ratio"], row["ffn_ratio"] = shape.aspect_ratio, shape.ffn_ratio
  row["total_ffn_ratio"] = shape.total_ffn_ratio if shape.is_moe else None
  return row


def _measured(runs: list[reading.RunRecord]) -> dict[str, Any]:
  """Means over the seeds that are done."""
  if not runs:
    return {"loss": None, "balance_loss": None, "bpc": None, "num_seeds": 0}
  losses = [run.result.get("train_cross_entropy") for run in runs]
  losses = [loss for loss in losses if loss is not None]
  balance = []
  for run in runs:
    lines, _, _ = reading.read_metrics(run.folder)
    lines = [line for line in lines if line.get("balance_loss") is not None]
    tail = [line["balance_loss"] for line in lines[-max(len(lines) // 20, 1) :]]
    balance += [float(np.mean(tail))] if tail and run.plan["kind"] == "moe" else []
  return {
    "loss": float(np.mean(losses)) if losses else None,
    "balance_loss": float(np.mean(balance)) if balance else None,
    "bpc": float(np.mean([run.result["validation"]["bpc"] for run in runs])),
    "num_seeds": len(runs),
  }


def _last(rows: list[dict], kind: str) -> dict | None:
  """What the side came to: the chosen option of its last complete stage."""
  done = [row for row in rows if row["kind"] == kind and row["complete"]]
  if not done:
    return None
  return next(o for o in done[-1]["options"] if o["label"] == done[-1]["chosen"])


def _between(rows: list[dict], table: ScoreTable | None) -> dict | None:
  """The MoE backbone minus the dense one, BPC, with an interval; None while one is missing."""
  arms = [_last(rows, kind) for kind in ("dense", "moe")]
  if table is None or None in arms or any(arm["bpc"] is None for arm in arms):
    return None
  dense, moe = (table.names.index(arm["arm"]) for arm in arms)
  (found,) = differences(table.arms, [moe], dense)
  return {"difference": found.difference, "interval": found.interval}


def _headline(value: dict) -> str:
  """What was locked in, in one sentence."""
  if value["between"] is None or not all(row["complete"] for row in value["stages"]):
    return "The search is not complete: no backbone is locked yet."
  moe, dense = value["backbone"], value["dense_backbone"]
  shared = " with a shared expert" if moe["d_shared"] else " without a shared expert"
  gates = f", {moe['gates']} gates" if moe["gates"] else ""
  return (
    f"The search locks the backbones. MoE: {moe['layout']}{shared}{gates}, {moe['num_layers']}"
    f" layers of width {moe['d_model']}, {moe['experts_per_token']} of {moe['num_experts']} experts"
    f" of width {moe['d_expert']} (kappa {moe['kappa']:.3f}). Dense: {dense['num_layers']} layers"
    f" of width {dense['d_model']}, feed-forward {dense['d_ffn']}."
  )


def _sentences(value: dict) -> list[str]:
  lines = [_stage_sentence(row) for row in value["stages"]]
  arms, runs = value["num_arms"], value["num_runs"]
  lines.append(
    f"The MoE side got {_arms(arms['moe'])} ({_runs(runs['moe'])}), the dense side"
    f" {_arms(arms['dense'])} ({_runs(runs['dense'])}), all at equal N and C."
  )
  if between := value["between"]:
    interval = ""
    if between["interval"]:
      low, high = between["interval"]
      interval = f" (95 % interval {low:+.4f} to {high:+.4f})"
    lines.append(
      f"The MoE backbone minus the dense one: {between['difference']:+.4f} BPC{interval}. Both were"
      " chosen on the text they are scored on, which flatters the side with more arms."
    )
  if not value["noise"]["df"]:
    lines.append(
      "Every arm ran with one seed: intervals cover the choice of validation documents and not"
      " training noise, so a choice may be an accident of the seed."
    )
  return lines


def _stage_sentence(row: dict) -> str:
  """The answer to a stage's question, and by how much."""
  question, options = row["question"], row["options"]
  if not row["complete"]:
    return f"{question} Not all of its {len(options)} arms are done."
  if len(options) == 1:
    return f"{question} {row['chosen']}; nothing else was tried."
  rivals = [o["label"] for o in options if o["verdict"] == selection.NOT_DISTINGUISHABLE]
  tied = f" Not distinguishable from it: {', '.join(rivals)}." if rivals else ""
  start = next(o for o in options if o["label"] == row["incumbent"])
  if row["chosen"] == row["incumbent"]:
    return f"{question} {row['chosen']} stays, of {len(options)} options.{tied}"
  gain = "" if start["difference"] is None else f" by {start['difference']:.4f} BPC"
  return (
    f"{question} {row['chosen']}, of {len(options)} options; it beats {row['incumbent']},"
    f" which was in place,{gain}.{tied}"
  )


def _arms(count: int) -> str:
  return f"{count} arm{'s' * (count != 1)}"


def _runs(count: int) -> str:
  return f"{count} run{'s' * (count != 1)}"
