"""What a fine-tuning run will do: the plan of its pretraining run, with chats for text.

Every arm of a comparison is planned with the same rows, passes and batch, so examples and tokens
are equal; only the learning rate follows the arm, as a multiple of its own pretraining peak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_parity.fields.check import check_value
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan

WARMUP_SHARE = 0.1  # of the steps
FINAL_SHARE = 0.1  # of the peak learning rate, at the last step


@dataclasses.dataclass(frozen=True)
class FinetuningPlan(ArmPlan):
  """A fine-tuning run. Tokens, steps, epochs and C are those of fine-tuning.

  Attributes:
    finetuning: learning_rate_multiple; num_examples, num_scored_tokens and num_chat_tokens of one
      pass; num_validation_examples; too_long and duplicates left out; sha256 of the rows, of the
      template and of the checkpoint it starts from; and of the run before it num_tokens,
      num_unique_tokens and train_flops.
  """

  finetuning: dict[str, Any] = dataclasses.field(default_factory=dict)


def plan_finetuning(
  base: Mapping[str, Any],
  data: Mapping[str, Any],
  *,
  num_rows: int,
  learning_rate: float | int,
  epochs: int,
  batch_sequences: int,
) -> FinetuningPlan:
  """The plan of one candidate (learning rate, epochs) for one arm.

  Args:
    base: plan.json of the pretraining run.
    data: counts and hashes for `FinetuningPlan.finetuning`.
    num_rows: packed rows of one pass, a multiple of the batch.
    learning_rate: times the arm's own pretraining peak.
  Raises:
    UserError: see `check_candidate`.
  """
  check_candidate(learning_rate, epochs)
  assert num_rows % batch_sequences == 0, "packing fills whole batches"
  num_steps = epochs * num_rows // batch_sequences
  num_tokens = epochs * num_rows * base["seq_len"]
  peak = float(learning_rate * base["peak_learning_rate"])
  before = {f"base_{k}": base[k] for k in ("num_tokens", "num_unique_tokens", "train_flops")}
  names = {field.name for field in dataclasses.fields(ArmPlan)}
  fields = {name: value for name, value in base.items() if name in names} | {
    "architecture": Architecture.from_dict(base["architecture"]),
    "train_flops": base["train_flops_per_token"] * num_tokens,
    "num_tokens": num_tokens,
    "num_unique_tokens": num_rows * base["seq_len"],
    "epochs": float(epochs),
    "batch_sequences": batch_sequences,
    "num_steps": num_steps,
    "peak_learning_rate": peak,
    "final_learning_rate": FINAL_SHARE * peak,
    "warmup_steps": max(1, round(WARMUP_SHARE * num_steps)),
    "residual_flops_pct": 0.0,
    "residual_unique_pct": 0.0,
    "mixture": {},
  }
  finetuning = {"learning_rate_multiple": float(learning_rate), **data, **before}
  return FinetuningPlan(**fields, finetuning=finetuning)


def check_candidate(learning_rate: float | int, epochs: int) -> None:
  """
  Raises:
    UserError: a rate or a number of passes that cannot be.
  """
  check_value("finetuning.epochs", (epochs,))
  check_value("finetuning.learning_rates", (learning_rate,))


CANDIDATE_NAME = r"lr[\de+p-]+_e\d+"


def candidate_name(learning_rate: float | int, epochs: int) -> str:
  """lr0p1_e2 for a tenth of the pretraining peak and two passes."""
  return f"lr{learning_rate:g}_e{epochs}".replace(".", "p")
