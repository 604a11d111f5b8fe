"""A study's second stage: every trained arm is fine-tuned on the same chats by the same candidates.

A candidate (learning rate, passes) is a comparison of its own, `parts/sft_<candidate>`, whose arms
are those of the study itself and whose runs have the same names. A study of data reuse has other
comparisons of the same arms, and each of them has its candidates, `parts/sft_<scheme>.<candidate>`.
An arm joins once its own run is finished and certified, so the stage follows from results, as every
stage of a study does. `finetuning.json` then states, for every arm, its candidates and the one with
the lowest loss on held-out chats.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from moe_parity.data.token_store import TokenStore
from moe_parity.finetuning import sweep
from moe_parity.finetuning.base_run import BaseRun, is_ready, open_base
from moe_parity.finetuning.chat_rows import ChatRows
from moe_parity.finetuning.finetune import chat_rows, finetune_arm, plan_candidate
from moe_parity.planning.arm_plan import ArmPlan, ComparisonPlan
from moe_parity.planning.finetuning_plan import FinetuningPlan, candidate_name
from moe_parity.study.analysis import chats
from moe_parity.study.comparisons import Comparison, Results
from moe_parity.study.reading import COMPARISONS_FOLDER, FINETUNING_PREFIX, is_finetuning
from moe_parity.training import run_folder
from moe_parity.training.control import RunControl
from moe_parity.training.loop import Progress, train_arm


def finetuning_comparisons(
  config: ConfigDict, pretrained: Sequence[Comparison], folder: pathlib.Path, rows: ChatRows
) -> list[Comparison]:
  """A comparison a candidate, with the arms whose runs are ready by now; [] before there is one.

  Args:
    pretrained: the study's comparisons. folder: of the study.
  Raises:
    UserError: candidates that cannot be.
  """
  pairs = sweep.candidates(config.finetuning)
  found = []
  for comparison in fine_tuned(config, pretrained):
    bases = [
      (arm, run, open_base(folder / run))
      for arm, run in compared(comparison)
      if is_ready(folder / run)
    ]
    if bases:
      found += [_comparison(config, comparison, bases, rows, *pair) for pair in pairs]
  return found


def fine_tuned(config: ConfigDict, comparisons: Sequence[Comparison]) -> list[Comparison]:
  """Those whose arms are fine-tuned: the study's own, and all reuse schemes."""
  pretrained = [c for c in comparisons if not is_finetuning(c.name)]
  return pretrained if config.study.method == "data_reuse" else pretrained[:1]


def compared(comparison: Comparison) -> list[tuple[ArmPlan, str]]:
  """(arm, run folder) of what is compared: all but the tries of learning rates."""
  pairs = zip(comparison.plan.arms, comparison.runs, strict=True)
  return [(arm, run) for arm, run in pairs if arm.role not in ("tuning", "check")]


def _arms(config: ConfigDict, comparisons: Sequence[Comparison]) -> dict[str, tuple[str, ArmPlan]]:
  """Pretrained run -> (the first comparison that has it, its arm there)."""
  found: dict[str, tuple[str, ArmPlan]] = {}
  for comparison in fine_tuned(config, comparisons):
    for arm, run in compared(comparison):
      found.setdefault(run, (comparison.name, arm))
  return found


def _comparison(
  config: ConfigDict,
  main: Comparison,
  bases: Sequence[tuple[ArmPlan, str, BaseRun]],
  rows: ChatRows,
  learning_rate: float | int,
  epochs: int,
) -> Comparison:
  own = ConfigDict(config.to_dict())
  own.evaluation.ablations = ()
  arms = [
    # A run may be another arm's too, whose name its own plan then has.
    dataclasses.replace(
      plan_candidate(own, base, rows, learning_rate, epochs), name=arm.name, role=arm.role
    )
    for arm, _, base in bases
  ]
  budget = main.plan.budget | {
    "held_fixed": "tokens",
    "dense_tokens": arms[0].num_tokens,
    "num_unique_tokens": arms[0].num_unique_tokens,
    "equal_data": True,
    "reuse": "epochs",
    "epochs": float(epochs),
  }
  candidate = candidate_name(learning_rate, epochs)
  runs = tuple(_run_of(run, candidate) for _, run, _ in bases)
  name = _folder_of(main.name, candidate)
  return Comparison(name, own.lock(), ComparisonPlan(main.plan.name, budget, list(arms), []), runs)


def pending_note(config: ConfigDict, comparisons: Sequence[Comparison]) -> str:
  """What this stage will add to a queue, in words; "" for nothing."""
  number = len(_arms(config, comparisons)) * len(sweep.candidates(config.finetuning))
  waiting = number - len({run for c in comparisons if is_finetuning(c.name) for run in c.runs})
  return f"then {waiting} runs more: fine-tuning of every arm on chats" if waiting else ""


def _folder_of(comparison: str, candidate: str) -> str:
  """The folder below parts/ of what is fine-tuned of a comparison, "" being the study's own."""
  return FINETUNING_PREFIX + ".".join(filter(None, (comparison, candidate)))


def _run_of(base: str, candidate: str) -> str:
  """The fine-tuned run that begins with a pretrained one, both relative to the study folder."""
  *above, _, name = pathlib.PurePosixPath(base).parts
  return f"{COMPARISONS_FOLDER}/{_folder_of(above[-1] if above else '', candidate)}/runs/{name}"


def base_of(run: str) -> str:
  """The pretrained run that a fine-tuned one begins with, both relative to the study folder."""
  _, folder, _, name = pathlib.PurePosixPath(run).parts
  comparison = folder.removeprefix(FINETUNING_PREFIX).rpartition(".")[0]
  return f"{COMPARISONS_FOLDER}/{comparison}/runs/{name}" if comparison else f"runs/{name}"


def train_run(
  config: ConfigDict,
  plan: ArmPlan,
  store: TokenStore,
  folder: pathlib.Path,
  report: Callable[[Progress], None] = lambda progress: None,
  warn: Callable[[str], None] = print,
  control: RunControl | None = None,
) -> dict:
  """`train_arm` for a run of a study, or `finetune_arm` where its plan is of that."""
  if not isinstance(plan, FinetuningPlan):
    return train_arm(config, plan, store, folder, report, warn, control)
  study = folder.parents[3]
  base = open_base(study / base_of(folder.relative_to(study).as_posix()))
  rows = chat_rows(config, store, plan.seq_len)
  return finetune_arm(config, plan, store, base, rows, folder, report, warn, control)


def summarize(
  config: ConfigDict, comparisons: Sequence[Comparison], folder: pathlib.Path, results: Results
) -> dict[str, Any]:
  """What finetuning.json holds.

  Returns:
    {"candidates": [names], "complete": whether every arm has tried all, "passed": whether the
    certificate of every candidate passed (None before it is there), "arms": [{"name", "comparison"
    ("" for the study's own), "seed", "kind", "role", "base": its run folder, "tried": [a row a
    candidate, see `sweep.row_of`], and once all are known "chosen", "edges" (see `sweep.edges`),
    "folder", "before" and "after" (the score on held-out chats without its examples),
    "text_bpc_before", "text_bpc_after"}], "chosen": the arms that have one, "chats": MoE against
    dense on held-out chats, see `analysis.chats`}.
  """
  pairs = sweep.candidates(config.finetuning)
  arms = [
    {"name": arm.name, "comparison": name} | _summary_of(arm, run, pairs, results)
    for run, (name, arm) in _arms(config, comparisons).items()
  ]
  names = [candidate_name(*pair) for pair in pairs]
  folders = [_folder_of(c.name, name) for c in fine_tuned(config, comparisons) for name in names]
  chosen = [arm for arm in arms if "chosen" in arm]
  return {
    "candidates": names,
    "complete": len(chosen) == len(arms),
    "passed": _passed(folder, folders),
    "arms": arms,
    "chosen": chosen,
    "chats": chats.compare([_tuned_run(arm, results) for arm in chosen]),
  }


def _tuned_run(arm: dict, results: Results) -> chats.TunedRun:
  score = (results.of_run(arm["folder"]) or {})["finetuning"]["validation"]
  return chats.TunedRun(sweep.label(arm), arm["kind"], arm["role"], arm["seed"], score)


def _passed(folder: pathlib.Path, names: Sequence[str]) -> bool | None:
  paths = [folder / COMPARISONS_FOLDER / name / "certificate.json" for name in names]
  verdicts = [run_folder.read_json(path)["passed"] for path in paths if path.exists()]
  return None if all(verdicts) and len(verdicts) < len(paths) else all(verdicts)


def _summary_of(arm: ArmPlan, run: str, pairs: Sequence[tuple], results: Results) -> dict:
  row: dict[str, Any] = {"seed": arm.seed, "kind": arm.kind, "role": arm.role}
  row |= {"base": run, "activation_rate": arm.activation_rate, "tried": []}
  for pair in pairs:
    tuned = _run_of(run, candidate_name(*pair))
    record = results.of_run(tuned)
    if record is not None or results.bpc_of_run(tuned) == math.inf:
      row["tried"].append(sweep.row_of(*pair, record))
  finite = [tried for tried in row["tried"] if math.isfinite(tried["cross_entropy"])]
  if len(row["tried"]) < len(pairs) or not finite:
    return row
  best = sweep.best(finite)
  folder = _run_of(run, best["candidate"])
  result, before = results.of_run(folder) or {}, results.of_run(run)
  scores = {
    when: {k: v for k, v in result["finetuning"][key].items() if k != "examples"}
    for when, key in (("before", "before"), ("after", "validation"))
  }
  return (
    row
    | scores
    | {
      "chosen": best["candidate"],
      "edges": sweep.edges(best, row["tried"]),
      "learning_rate": best["learning_rate"],
      "epochs": best["epochs"],
      "folder": folder,
      "text_bpc_before": before["validation"]["bpc"] if before else None,
      "text_bpc_after": result["validation"]["bpc"],
    }
  )
