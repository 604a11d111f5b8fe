"""A study's second stage: every trained arm is fine-tuned on the same chats by the same candidates.

A candidate (learning rate, passes) is a comparison of its own, `parts/sft_<candidate>`, whose arms
are those of the study itself and whose runs have the same names. An arm joins it once its own run
is finished and certified, so the stage follows from results, as every stage of a study does.
`finetuning.json` then states, for every arm, its candidates and the one with the lowest loss on
held-out chats.
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
from moe_parity.study.comparisons import Comparison, Results
from moe_parity.study.reading import COMPARISONS_FOLDER, FINETUNING_PREFIX, is_finetuning
from moe_parity.training import run_folder
from moe_parity.training.control import RunControl
from moe_parity.training.loop import Progress, train_arm


def finetuning_comparisons(
  config: ConfigDict, main: Comparison, folder: pathlib.Path, rows: ChatRows
) -> list[Comparison]:
  """A comparison a candidate, with the arms whose runs are ready by now; [] before there is one.

  Args:
    main: the study's own comparison. folder: of the study.
  Raises:
    UserError: candidates that cannot be.
  """
  pairs = sweep.candidates(config.finetuning)
  bases = [(arm, open_base(folder / run)) for arm, run in compared(main) if is_ready(folder / run)]
  if not bases:
    return []
  return [_comparison(config, main, bases, rows, *pair) for pair in pairs]


def compared(main: Comparison) -> list[tuple[ArmPlan, str]]:
  """(arm, run folder) of what a study compares: all but the tries of its learning rates."""
  pairs = zip(main.plan.arms, main.runs, strict=True)
  return [(arm, run) for arm, run in pairs if arm.role not in ("tuning", "check")]


def _comparison(
  config: ConfigDict,
  main: Comparison,
  bases: Sequence[tuple[ArmPlan, BaseRun]],
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
    for arm, base in bases
  ]
  budget = main.plan.budget | {
    "held_fixed": "tokens",
    "dense_tokens": arms[0].num_tokens,
    "num_unique_tokens": arms[0].num_unique_tokens,
    "equal_data": True,
    "reuse": "epochs",
    "epochs": float(epochs),
  }
  name = FINETUNING_PREFIX + candidate_name(learning_rate, epochs)
  runs = tuple(_run_of(base.folder.name, name) for _, base in bases)
  return Comparison(name, own.lock(), ComparisonPlan(main.plan.name, budget, list(arms), []), runs)


def pending_note(config: ConfigDict, comparisons: Sequence[Comparison]) -> str:
  """What this stage will add to a queue, in words; "" for nothing."""
  number = len(compared(comparisons[0])) * len(sweep.candidates(config.finetuning))
  waiting = number - sum(len(c.runs) for c in comparisons if is_finetuning(c.name))
  return f"then {waiting} runs more: fine-tuning of every arm on chats" if waiting else ""


def _run_of(base: str, comparison: str) -> str:
  """The fine-tuned run of a comparison that begins with a pretrained run of this folder name."""
  return f"{COMPARISONS_FOLDER}/{comparison}/runs/{pathlib.PurePosixPath(base).name}"


def base_of(run: str) -> str:
  """The pretrained run that a fine-tuned one begins with, both relative to the study folder."""
  return f"runs/{pathlib.PurePosixPath(run).name}"


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
  base = open_base(folder.parents[3] / base_of(folder.name))
  rows = chat_rows(config, store, plan.seq_len)
  return finetune_arm(config, plan, store, base, rows, folder, report, warn, control)


def summarize(
  config: ConfigDict, main: Comparison, folder: pathlib.Path, results: Results
) -> dict[str, Any]:
  """What finetuning.json holds.

  Returns:
    {"candidates": [names], "complete": whether every arm has tried all, "passed": whether the
    certificate of every candidate passed (None before it is there), "arms": [{"name", "seed",
    "kind", "role", "base": its run folder, "tried": [a row a candidate, see `sweep.row_of`], and
    once all are known "chosen", "edges" (see `sweep.edges`), "folder", "before" and "after" (the
    score on held-out chats without its examples), "text_bpc_before", "text_bpc_after"}], "chosen":
    the arms that have one}.
  """
  pairs = sweep.candidates(config.finetuning)
  arms = [_summary_of(arm, run, pairs, results) for arm, run in compared(main)]
  names = [candidate_name(*pair) for pair in pairs]
  return {
    "candidates": names,
    "complete": all("chosen" in arm for arm in arms),
    "passed": _passed(folder, names),
    "arms": arms,
    "chosen": [arm for arm in arms if "chosen" in arm],
  }


def _passed(folder: pathlib.Path, names: Sequence[str]) -> bool | None:
  paths = [
    folder / COMPARISONS_FOLDER / f"{FINETUNING_PREFIX}{name}" / "certificate.json"
    for name in names
  ]
  verdicts = [run_folder.read_json(path)["passed"] for path in paths if path.exists()]
  return None if all(verdicts) and len(verdicts) < len(paths) else all(verdicts)


def _summary_of(arm: ArmPlan, run: str, pairs: Sequence[tuple], results: Results) -> dict:
  row: dict[str, Any] = {"name": arm.name, "seed": arm.seed, "kind": arm.kind, "role": arm.role}
  row |= {"base": run, "activation_rate": arm.activation_rate, "tried": []}
  for pair in pairs:
    tuned = _run_of(run, FINETUNING_PREFIX + candidate_name(*pair))
    record = results.of_run(tuned)
    if record is not None or results.bpc_of_run(tuned) == math.inf:
      row["tried"].append(sweep.row_of(*pair, record))
  finite = [tried for tried in row["tried"] if math.isfinite(tried["cross_entropy"])]
  if len(row["tried"]) < len(pairs) or not finite:
    return row
  best = sweep.best(finite)
  folder = _run_of(run, FINETUNING_PREFIX + best["candidate"])
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
