"""A budget and its arms -> what every arm trains on, and a refusal where they are not at parity.

C is shared, so tokens follow from it: an arm sees C / M_train tokens, and at equal N an MoE sees
1 / R_c times those of the dense arm. Steps and batch round that to whole steps; what rounding
leaves is stated per arm in percent. Which of the tokens may repeat is the scheme's (`reuse`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_parity.errors import UserError
from moe_parity.fields.check import get
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture, dense_of_active_size
from moe_parity.planning.arm_draft import ArmDraft, arm_plans, flops_of
from moe_parity.planning.arm_plan import ComparisonPlan
from moe_parity.planning.budget import ArmSpec, Budget
from moe_parity.planning.decisions import Decisions, read_decisions
from moe_parity.planning.domain_shares import check_epochs, plan_mixture
from moe_parity.planning.mesh_sizes import check_arms, read_mesh
from moe_parity.planning.plan_notes import plan_notes, vocabulary_notes
from moe_parity.planning.run_length import (
  RunLength,
  check_micro_batches,
  make_run_length,
)
from moe_parity.planning.unique_tokens import check_corpus, unique_tokens


def make_plan(
  config: Any,
  *,
  available_tokens: int | None = None,
  available_by_domain: Mapping[str, int] | None = None,
  vocab_size: int = 0,
) -> ComparisonPlan:
  """The plan of a config: an object or mapping with seed, budget, arms, and, where they are there,
  name, optimizer (final_learning_rate, warmup_steps, warmup_share), data (tokenizer, weights,
  max_epochs) and model (attention_block).

  Args:
    available_tokens: tokens of the corpus in whole windows; None does not check.
    available_by_domain: the same of each domain that data.weights names.
    vocab_size: of the token store in use; 0 takes it from data.tokenizer where that states it
      (bytes, bpe:<vocab>) and else leaves the vocabulary out. A note says which was assumed.
  Raises:
    UserError: a field that is missing or against a rule; a shape that cannot be found; arms that
      are not at parity, all of them listed; a corpus or a domain that is too small, or that would
      be read more often than data.max_epochs.
  """
  decisions = read_decisions(config, vocab_size)
  budget = decisions.budget
  drafts = _with_shapes(decisions)
  train_flops = _shared_flops(budget, drafts)
  drafts = [
    dataclasses.replace(draft, run=_run_length(budget, draft, train_flops)) for draft in drafts
  ]
  _check_parity(budget, drafts, train_flops)
  drafts = _with_data(decisions, drafts, available_by_domain)
  if available_tokens is not None:
    largest = max(drafts, key=lambda draft: draft.num_unique_tokens)
    check_corpus(budget, largest.spec, largest.num_unique_tokens, available_tokens)
  at_parity = [draft.num_unique_tokens for draft in drafts if draft.spec.is_at_parity]
  shared_unique = max(at_parity or [draft.num_unique_tokens for draft in drafts])
  arms = [
    arm for draft in drafts
    for arm in arm_plans(decisions, draft, train_flops, shared_unique, _dense(drafts))
  ]  # fmt: skip
  micro = get(get(config, "train", {}), "micro_batch_sequences", 0)
  for arm in arms:
    check_micro_batches(arm.name, arm.batch_sequences, micro)
  if mesh := get(config, "mesh", None):
    check_arms(read_mesh(mesh), arms, micro)
  spread = max(at_parity, default=0) - min(at_parity, default=0)
  equal_data = spread <= budget.flops_tolerance * shared_unique
  return ComparisonPlan(
    name=str(get(config, "name", "")),
    budget=_derived_budget(budget, train_flops, shared_unique, equal_data, _dense(drafts)),
    arms=arms,
    notes=vocabulary_notes(
      decisions.tokenizer, decisions.vocab_size, decisions.is_vocab_assumed, budget.convention
    )
    + plan_notes(budget, decisions.specs, arms, equal_data),
  )


def _with_shapes(decisions: Decisions) -> list[ArmDraft]:
  """Every arm with its shape, in order; `active_of` controls take that of their MoE arm."""
  moe = {
    spec.name: spec.architecture(decisions.budget, decisions.vocab_size)
    for spec in decisions.specs
    if spec.kind == "moe"
  }
  return [_shaped(decisions, spec, moe) for spec in decisions.specs]


def _shaped(decisions: Decisions, spec: ArmSpec, moe: Mapping[str, Architecture]) -> ArmDraft:
  """An arm with its shape and what that costs under the budget's convention.

  Args:
    moe: the shapes of the MoE arms by name.
  """
  budget = decisions.budget
  if spec.name in moe:
    architecture = moe[spec.name]
  elif not spec.active_of:
    architecture = spec.architecture(budget, decisions.vocab_size)
  elif spec.active_of in moe:
    architecture = dense_of_active_size(moe[spec.active_of])
  else:
    raise UserError(
      f"arm {spec.name!r}: active_of={spec.active_of!r} is no MoE arm of this config; use one of"
      f" {', '.join(moe) or 'none (there is none)'}"
    )
  if decisions.position == "rope" and architecture.d_head % 2:
    raise UserError(
      f"arm {spec.name!r}: d_head={architecture.d_head} is odd and model.position='rope' rotates"
      " pairs of channels; give an even d_head, or use position='alibi'"
    )
  cost = cost_of(architecture, budget.seq_len, budget.convention, decisions.attention_block)
  return ArmDraft(spec, architecture, cost)


def _with_data(
  decisions: Decisions, drafts: list[ArmDraft], available: Mapping[str, int] | None
) -> list[ArmDraft]:
  """The arms with the data each draws from, all of it and by domain."""
  budget, shares, bound = decisions.budget, decisions.shares, decisions.max_epochs
  unique = unique_tokens(budget, [(draft.spec, draft.run.num_tokens) for draft in drafts])
  complete = []
  for draft, num_unique in zip(drafts, unique, strict=True):
    name, tokens, mixture = draft.spec.name, draft.run.num_tokens, {}
    if shares is None:
      check_epochs(name, "the corpus", tokens / num_unique, bound)
    else:
      mixture = plan_mixture(
        name, budget.reuse, shares, tokens, num_unique, budget.seq_len, available, bound
      )
      num_unique = sum(entry["num_unique_tokens"] for entry in mixture.values())
    complete.append(dataclasses.replace(draft, num_unique_tokens=num_unique, mixture=mixture))
  return complete


def _derived_budget(
  budget: Budget,
  train_flops: float | int,
  shared_unique: int,
  equal_data: bool,
  dense: ArmDraft | None,
) -> dict[str, Any]:
  """`ComparisonPlan.budget`."""
  return {
    "num_params": budget.num_params,
    "train_flops": train_flops,
    "num_unique_tokens": shared_unique,
    "equal_data": equal_data,
    "dense_tokens": dense.run.num_tokens if dense else 0,
    "seq_len": budget.seq_len,
    "reuse": budget.reuse,
    "epochs": budget.epochs if budget.reuse == "epochs" else None,
    "convention": budget.convention,
    "params_tolerance": budget.params_tolerance,
    "flops_tolerance": budget.flops_tolerance,
    "batch_multiple": budget.batch_multiple,
    "held_fixed": budget.held_fixed,
  }


def _shared_flops(budget: Budget, drafts: list[ArmDraft]) -> float | int:
  """C of the budget: given, or the dense arm's FLOPs a token times the given tokens."""
  if not budget.dense_tokens:
    return budget.train_flops
  dense = _dense(drafts)
  if dense is None:
    raise UserError(
      f"budget.dense_tokens={budget.dense_tokens:,} but no arm of kind 'dense' at "
      f"compute_multiple=1; add one or give budget.train_flops"
    )
  flops = dense.cost.train_flops_per_token * budget.dense_tokens
  if budget.train_flops and abs(flops / budget.train_flops - 1) > budget.flops_tolerance:
    raise UserError(
      f"budget.train_flops={budget.train_flops:.4g} contradicts "
      f"budget.dense_tokens={budget.dense_tokens:,}, which cost {flops:.4g}; set one "
      f"of them to 0"
    )
  return budget.train_flops or flops


def _dense(drafts: list[ArmDraft]) -> ArmDraft | None:
  """The dense arm at the budget's compute that is first by name. A try of a learning rate counts
  under the name of its arm, so that the same arm sets C before and after all are tuned."""
  at_parity = [d for d in drafts if d.spec.kind == "dense" and d.spec.is_at_parity]
  return min(at_parity, key=lambda draft: draft.spec.tunes or draft.spec.name, default=None)


def _run_length(budget: Budget, draft: ArmDraft, train_flops: float | int) -> RunLength:
  spec = draft.spec
  try:
    return make_run_length(
      flops_of(budget, draft, train_flops),
      draft.cost.train_flops_per_token,
      budget.seq_len,
      batch_sequences=spec.batch_sequences,
      num_steps=spec.num_steps,
      batch_multiple=budget.batch_multiple,
      num_params=draft.cost.num_params,
      tolerance=budget.flops_tolerance,
    )
  except UserError as error:
    raise UserError(f"arm {spec.name!r}: {error}") from None


def _check_parity(budget: Budget, drafts: list[ArmDraft], train_flops: float | int) -> None:
  """Refuses arms that differ in N or C, and names every arm with its numbers."""
  lines, failed = [], False
  for draft in drafts:
    flops = flops_of(budget, draft, train_flops)
    params_off = draft.cost.num_params / budget.num_params - 1
    flops_off = draft.run.train_flops / flops - 1
    bad = [
      name
      for name, off, tolerance in (
        ("N", params_off, budget.params_tolerance),
        ("C", flops_off, budget.flops_tolerance),
      )
      if abs(off) > tolerance and not (name == "N" and draft.spec.is_control)
    ]
    failed = failed or bool(bad)
    lines.append(
      f"{draft.spec.name} N={draft.cost.num_params:,} ({100 * params_off:+.3f} %) "
      f"C={draft.run.train_flops:.4g} ({100 * flops_off:+.3f} %)"
      + (f" <- {' and '.join(bad)} out" if bad else "")
    )
  if failed:
    raise UserError(
      f"arms are not at parity with num_params={budget.num_params:,} within "
      f"{100 * budget.params_tolerance:g} % and train_flops={train_flops:.4g} (times an arm's "
      f"compute_multiple) within {100 * budget.flops_tolerance:g} %: {'; '.join(lines)}; change "
      f"the shape, batch_sequences or num_steps of those marked, or leave them 0"
    )
