"""An arm on its way from what a config decides to its runs, one a seed."""

from __future__ import annotations

import dataclasses
from typing import Any

from moe_parity.errors import UserError
from moe_parity.planning.accounting import Cost, cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.budget import ArmSpec, Budget
from moe_parity.planning.decisions import Decisions
from moe_parity.planning.run_length import RunLength, peak_learning_rate, warmup_steps


@dataclasses.dataclass(frozen=True)
class ArmDraft:
  """Shape and cost come first, then the length of the run, then its data."""

  spec: ArmSpec
  architecture: Architecture
  cost: Cost
  run: RunLength | None = None
  num_unique_tokens: int = 0
  mixture: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def flops_of(budget: Budget, draft: ArmDraft, train_flops: float | int) -> float | int:
  """What an arm spends: the shared C, or what the shared tokens cost it; times its multiple."""
  if budget.held_fixed == "tokens":
    train_flops = draft.cost.train_flops_per_token * budget.dense_tokens
  return train_flops * draft.spec.compute_multiple


def arm_plans(
  decisions: Decisions,
  draft: ArmDraft,
  train_flops: float | int,
  shared_unique: int,
  dense: ArmDraft | None,
) -> list[ArmPlan]:
  """The runs of one arm, one a seed."""
  budget, spec, cost, run = decisions.budget, draft.spec, draft.cost, draft.run
  exact = cost_of(draft.architecture, budget.seq_len, "exact")
  own_flops = flops_of(budget, draft, train_flops)
  ratio = None
  if dense is not None:
    ratio = cost.train_flops_per_token / dense.cost.train_flops_per_token
  return [
    ArmPlan(
      name=spec.name,
      kind=spec.kind,
      role=_role(spec),
      seed=seed,
      data_seed=decisions.data_seed + (seed if decisions.draw_per_seed else 0),
      architecture=draft.architecture,
      convention=budget.convention,
      num_params=cost.num_params,
      num_active_params=cost.num_active_params,
      activation_rate=cost.activation_rate,
      forward_flops_per_token=cost.forward_flops_per_token,
      train_flops_per_token=cost.train_flops_per_token,
      train_flops=run.train_flops,
      num_tokens=run.num_tokens,
      num_unique_tokens=draft.num_unique_tokens,
      epochs=run.num_tokens / draft.num_unique_tokens,
      seq_len=budget.seq_len,
      batch_sequences=run.batch_sequences,
      num_steps=run.num_steps,
      peak_learning_rate=_peak_learning_rate(decisions, draft),
      final_learning_rate=decisions.final_learning_rate,
      warmup_steps=warmup_steps(run.num_steps, decisions.warmup_steps, decisions.warmup_share),
      compute_multiple=float(spec.compute_multiple),
      compute_ratio=ratio,
      residual_params_pct=100 * (cost.num_params / budget.num_params - 1),
      residual_flops_pct=100 * (run.train_flops / (own_flops / spec.compute_multiple) - 1),
      residual_unique_pct=100 * (draft.num_unique_tokens / shared_unique - 1),
      exact_num_params=exact.num_params_with_vocabulary,
      vocabulary_params=exact.vocabulary_params,
      gates=spec.gates,
      routed_scale=spec.routed_scale,
      tunes=spec.tunes,
      mixture=draft.mixture,
      attention_block=decisions.attention_block,
    )
    for seed in spec.seeds
  ]


def _role(spec: ArmSpec) -> str:
  """`ArmPlan.role`."""
  if spec.tunes:
    return spec.role
  if spec.is_reference:
    return "reference"
  return "control" if spec.is_control else spec.role or "arm"


def _peak_learning_rate(decisions: Decisions, draft: ArmDraft) -> float:
  """As given, or StepLaw's; times the arm's multiplier."""
  spec, final = draft.spec, decisions.final_learning_rate
  peak = float(spec.peak_learning_rate)
  peak = peak or peak_learning_rate(draft.cost.num_params, draft.run.num_tokens)
  peak *= spec.learning_rate_multiplier
  if peak <= final:
    raise UserError(
      f"arm {spec.name!r}: the peak learning rate {peak:.3g} is not above the final "
      f"{final:.3g}; raise peak_learning_rate or lower final_learning_rate"
    )
  return peak
