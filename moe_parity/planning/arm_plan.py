"""Plans: of one run (`ArmPlan`), and of all runs under one budget (`ComparisonPlan`)."""

from __future__ import annotations

import dataclasses
from typing import Any

from moe_parity.planning.accounting import ATTENTION_BLOCK
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_costs import cost_rows

LATER_FIELDS = ("attention_block", "routed_scale", "tunes")  # fields that plans on disk may lack
# Roles of runs that a study's certificate leaves out of its comparison.
NOT_COMPARED = ("reference", "tuning")
FORMER_BUDGET_FIELDS = {"shared": "held_fixed"}


@dataclasses.dataclass(frozen=True)
class ArmPlan:
  """One run. Counts without vocabulary unless said; residuals in percent of the budget.

  Attributes:
    seed: of the initial weights. data_seed: of the windows that are drawn and their order.
    role: "arm"; "reference" for one that spends another compute and is not at parity; "control" for
      a dense model of another N at equal C and data; "check" for one at parity that tries another
      learning rate or batch and is not compared; "tuning" for a try that decides the learning rate
      of the arm named by `tunes`.
    num_unique_tokens: whole windows the run may draw from; epochs = num_tokens / that.
    mixture: {domain: {"share", "num_tokens", "num_unique_tokens", "epochs"}}, where data.weights
      deals them out; see `planning.domain_shares`.
    exact_num_params: every parameter of the built model, vocabulary_params of them embedding and
      head (0 while the tokenizer is not known).
    attention_block: queries that attention computes at a time, for the FLOPs executed.
    residual_unique_pct: against the plan's num_unique_tokens, so not 0 where arms differ.
  """

  name: str
  kind: str
  role: str
  seed: int
  architecture: Architecture
  convention: str
  num_params: int
  num_active_params: int
  activation_rate: float
  forward_flops_per_token: int
  train_flops_per_token: int
  train_flops: int
  num_tokens: int
  num_unique_tokens: int
  epochs: float
  seq_len: int
  batch_sequences: int
  num_steps: int
  peak_learning_rate: float
  final_learning_rate: float
  warmup_steps: int
  compute_multiple: float
  compute_ratio: float | None
  residual_params_pct: float
  residual_flops_pct: float
  residual_unique_pct: float
  exact_num_params: int
  vocabulary_params: int
  gates: str
  mixture: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  attention_block: int = ATTENTION_BLOCK
  data_seed: int = 0
  routed_scale: str = ""
  tunes: str = ""

  def to_dict(self) -> dict[str, Any]:
    """All fields by name, ready for JSON."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return fields | {"architecture": self.architecture.to_dict()}


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
  """All runs that are compared at one budget.

  Attributes:
    name: of the config. budget: the shared resources as derived: num_params, train_flops (FLOPs),
      num_unique_tokens (what the corpus must hold for the arms; the shared D^ where equal_data),
      dense_tokens, equal_data, seq_len, reuse, convention, tolerances.
    arms: one a run, seeds of an arm together. notes: what a reader should know before training.
  """

  name: str
  budget: dict[str, Any]
  arms: list[ArmPlan]
  notes: list[str]

  def to_dict(self) -> dict[str, Any]:
    """The plan ready for JSON."""
    return {
      "name": self.name,
      "budget": self.budget,
      "arms": [arm.to_dict() for arm in self.arms],
      "notes": self.notes,
    }

  def to_rows(self) -> list[dict[str, Any]]:
    """One flat dictionary an arm, all with the same keys, for a printed table."""
    rows = []
    for arm in self.arms:
      shape = arm.architecture
      experts = f"{shape.num_experts}/{shape.experts_per_token} x {shape.d_expert}"
      rows.append(
        {
          "arm": arm.name,
          "role": arm.role,
          "seed": arm.seed,
          "shape": f"{shape.num_layers} x {shape.d_model}",
          "layout": shape.layout,
          "experts": experts if shape.is_moe else "",
          "shared": shape.d_shared,
          "N": arm.num_params,
          "r_a %": round(100 * arm.activation_rate, 2),
          "M train": arm.train_flops_per_token,
          "C": float(arm.train_flops),
          "tokens": arm.num_tokens,
          "unique": arm.num_unique_tokens,
          "epochs": round(arm.epochs, 2),
          "batch": arm.batch_sequences,
          "steps": arm.num_steps,
          "warm-up": arm.warmup_steps,
          "lr": arm.peak_learning_rate,
          "N off %": round(arm.residual_params_pct, 3),
          "C off %": round(arm.residual_flops_pct, 3),
          "D^ off %": round(arm.residual_unique_pct, 3),
        }
      )
    return rows

  def cost_rows(self) -> list[dict[str, Any]]:
    """What every arm costs in all, for a printed table; see `arm_costs.cost_rows`."""
    return cost_rows(arm.to_dict() for arm in self.arms)

  def mixture_rows(self) -> list[dict[str, Any]]:
    """One flat dictionary an arm and domain, for a printed table; none without data.weights."""
    return [
      {
        "arm": arm.name,
        "seed": arm.seed,
        "domain": domain,
        "share %": round(100 * entry["num_tokens"] / arm.num_tokens, 2),
        "tokens": entry["num_tokens"],
        "unique": entry["num_unique_tokens"],
        "epochs": round(entry["epochs"], 2),
      }
      for arm in self.arms
      for domain, entry in arm.mixture.items()
    ]


def budget_of(plan: dict[str, Any]) -> dict[str, Any]:
  """The budget in a `ComparisonPlan.to_dict()`, {} where it has none; fields that an earlier
  version named otherwise have the names of today."""
  budget = dict(plan.get("budget", {}))
  return {FORMER_BUDGET_FIELDS.get(name, name): value for name, value in budget.items()}


def with_later_fields(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  """A run's plan as an earlier version wrote it, with the fields it did not know taken from the
  same run's plan of today: what a plan newly writes down does not make it another run."""
  return {name: new[name] for name in LATER_FIELDS if name in new} | old
