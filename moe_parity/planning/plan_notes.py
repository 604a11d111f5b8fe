"""What a reader of a plan should know before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from moe_parity.planning.arm_costs import arm_costs, hidden_differences
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.budget import ArmSpec, Budget
from moe_parity.planning.scaling_laws import STEP_LAW


def plan_notes(
  budget: Budget, specs: Sequence[ArmSpec], arms: Sequence[ArmPlan], equal_data: bool
) -> list[str]:
  """Sentences on everything that is not equal, not measured or not in a law's range.

  Args:
    specs: the arms as decided. arms: the runs as planned.
    equal_data: whether the arms at parity see the same number of unique tokens.
  """
  notes = []
  if budget.held_fixed == "tokens":
    notes.append(
      "the arms share N and D and differ in compute: a sweep at fixed data, not at parity"
    )
  if not equal_data:
    notes.append(_unequal_data(budget))
  notes += _uneven_reuse(arms)
  notes += [
    f"{spec.name} spends {spec.compute_multiple:g} times the budget's compute: a reference, not at"
    f" parity"
    for spec in specs
    if spec.is_reference
  ]
  notes += [
    f"{arm.name} has {arm.num_params:,} parameters at the budget's compute and data: a control, not"
    f" at parity"
    for arm in arms
    if arm.role == "control" and arm.seed == _first_seed(specs, arm.name)
  ]
  notes += hidden_differences(arm_costs(arm.to_dict() for arm in arms), budget.convention)
  return notes + _extrapolation(budget, specs, arms)


def _first_seed(specs: Sequence[ArmSpec], name: str) -> int:
  return next(spec.seeds[0] for spec in specs if spec.name == name)


def vocabulary_notes(
  tokenizer: str, vocab_size: int, is_assumed: bool, convention: str
) -> list[str]:
  """Which vocabulary a plan without a token store counts with."""
  if not is_assumed:
    return []
  if vocab_size:
    return [
      f"no token store yet: a vocabulary of {vocab_size:,} is assumed, as of "
      f"data.tokenizer={tokenizer!r}"
    ]
  left_out = "embedding and output head are in no number"
  if convention == "executed":
    left_out += ", nor in C: tokens and steps will change once it is"
  return [f"the vocabulary is not known before the token store is read: {left_out}"]


def _unequal_data(budget: Budget) -> str:
  how = {
    "unique": "every arm reads its tokens once",
    "loose": "MoE arms read their tokens twice, the dense arm once, as in the paper's Table 17",
    "epochs": f"every arm reads its tokens {budget.epochs:g} times",
    "strict": "arms draw from unique tokens of their own",
  }[budget.reuse]
  return (
    f"reuse={budget.reuse!r}: {how}, so the arms see different numbers of unique tokens and only"
    f" N and C are equal; reuse='strict' makes D^ equal too"
  )


def _uneven_reuse(arms: Sequence[ArmPlan]) -> list[str]:
  """Which domains are read more often than others, because they hold less than their share."""
  notes = {}
  for arm in arms:
    fewest = min((entry["epochs"] for entry in arm.mixture.values() if entry["share"]), default=0)
    for name, entry in arm.mixture.items():
      if entry["epochs"] > 1.05 * fewest:
        notes[name] = (
          f"{name!r} holds less than its share: {entry['num_unique_tokens']:,} unique tokens, read"
          f" {entry['epochs']:.2f} times by {arm.name}, others {fewest:.2f} times"
        )
  return list(notes.values())


def _extrapolation(budget: Budget, specs: Sequence[ArmSpec], arms: Sequence[ArmPlan]) -> list[str]:
  """Whether StepLaw set a rate or a batch outside the range it was fitted on."""
  by_law = {s.name: s for s in specs if not (s.batch_sequences and s.peak_learning_rate)}

  def outside_of(are_controls: bool) -> set[str]:
    return {
      line
      for arm in arms
      if arm.name in by_law and by_law[arm.name].is_control == are_controls
      for line in STEP_LAW.extrapolates(
        num_params=arm.num_params if are_controls else budget.num_params,
        num_tokens=arm.num_tokens,
      )
    }

  outside = outside_of(False) or outside_of(True)
  return [f"learning rates and batches extrapolate: {min(outside)}"] if outside else []
