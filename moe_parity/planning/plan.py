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
from moe_parity.planning.accounting import Cost, account
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan, Plan
from moe_parity.planning.budget import ArmSpec, Budget, read_arms, read_budget
from moe_parity.planning.domain_shares import Shares, check_epochs, plan_mixture, read_shares
from moe_parity.planning.mesh_sizes import check_arms, read_mesh
from moe_parity.planning.run_length import Schedule, make_schedule, peak_rate, warmup
from moe_parity.planning.scaling_laws import STEP_LAW
from moe_parity.planning.unique_tokens import check_corpus, unique_tokens

_BYTE_VOCABULARY = 16 + 256  # special tokens and bytes of the built-in tokenizer


@dataclasses.dataclass(frozen=True)
class _Draft:
  """An arm on its way: shape and price first, then its run."""

  spec: ArmSpec
  architecture: Architecture
  cost: Cost
  schedule: Schedule | None = None
  num_unique_tokens: int = 0
  mixture: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def make_plan(
  config: Any,
  *,
  available_tokens: int | None = None,
  available_by_domain: Mapping[str, int] | None = None,
  vocab_size: int = 0,
) -> Plan:
  """The plan of a config: an object or mapping with seed, budget, arms, and, where they are there,
  name, optimizer (final_learning_rate, warmup_steps) and data (tokenizer, weights, max_epochs).

  Args:
    available_tokens: tokens of the corpus in whole windows; None does not check.
    available_by_domain: the same of each domain that data.weights names.
    vocab_size: of the tokenizer in use; 0 takes it from data.tokenizer where that tells it (bytes,
      bpe:<vocab>) and else leaves the vocabulary out.
  Raises:
    UserError: a field that is missing or against a rule; a shape that cannot be found; arms that
      are not at parity, all of them listed; a corpus or a domain that is too small, or that would
      be read more often than data.max_epochs.
  """
  budget = read_budget(_get(config, "budget"))
  specs = read_arms(_get(config, "arms"), _get(config, "seed", 0))
  data = _get(config, "data", {})
  shares = read_shares(_get(data, "weights", ""))
  vocab_size = vocab_size or _vocabulary(str(_get(data, "tokenizer", "")))
  drafts = []
  for spec in specs:
    architecture = spec.architecture(budget, vocab_size)
    drafts.append(
      _Draft(spec, architecture, account(architecture, budget.seq_len, budget.convention))
    )
  train_flops = _shared_flops(budget, drafts)
  drafts = [
    dataclasses.replace(draft, schedule=_schedule(budget, draft, train_flops)) for draft in drafts
  ]
  _check_parity(budget, drafts, train_flops)
  unique = unique_tokens(budget, [(draft.spec, draft.schedule.num_tokens) for draft in drafts])
  bound = _get(data, "max_epochs", 0.0)
  drafts = [
    _drawing(budget, draft, tokens, shares, available_by_domain, bound)
    for draft, tokens in zip(drafts, unique, strict=True)
  ]
  of_arms = [draft.num_unique_tokens for draft in drafts if not draft.spec.is_reference]
  shared_unique = max(of_arms or [draft.num_unique_tokens for draft in drafts])
  if available_tokens is not None:
    largest = max(drafts, key=lambda draft: draft.num_unique_tokens)
    check_corpus(budget, largest.spec, largest.num_unique_tokens, available_tokens)

  dense = _dense(drafts)
  optimizer = _get(config, "optimizer", {})
  final_rate = float(_get(optimizer, "final_learning_rate", 1e-5))
  warmup_steps = _get(optimizer, "warmup_steps", 2000)
  arms = []
  for draft in drafts:
    arms += _arm_plans(budget, draft, train_flops, shared_unique, dense, final_rate, warmup_steps)
  if mesh := _get(config, "mesh", None):
    train = _get(config, "train", {})
    check_arms(read_mesh(mesh), arms, _get(train, "micro_batch_sequences", 0))
  equal_data = max(of_arms, default=0) - min(of_arms, default=0) <= (
    budget.flops_tolerance * shared_unique
  )
  return Plan(
    name=str(_get(config, "name", "")),
    budget={
      "num_params": budget.num_params,
      "train_flops": train_flops,
      "num_unique_tokens": shared_unique,
      "equal_data": equal_data,
      "dense_tokens": dense.schedule.num_tokens if dense else 0,
      "seq_len": budget.seq_len,
      "reuse": budget.reuse,
      "epochs": budget.epochs if budget.reuse == "epochs" else None,
      "convention": budget.convention,
      "params_tolerance": budget.params_tolerance,
      "flops_tolerance": budget.flops_tolerance,
      "batch_multiple": budget.batch_multiple,
      "shared": budget.shared,
    },
    arms=arms,
    notes=_notes(budget, drafts, equal_data),
  )


def _drawing(
  budget: Budget,
  draft: _Draft,
  num_unique_tokens: int,
  shares: Shares | None,
  available: Mapping[str, int] | None,
  max_epochs: float | int,
) -> _Draft:
  """The arm with the data it draws from, all of it and by domain."""
  name, tokens = draft.spec.name, draft.schedule.num_tokens
  if shares is None:
    check_epochs(name, "the corpus", tokens / num_unique_tokens, max_epochs)
    return dataclasses.replace(draft, num_unique_tokens=num_unique_tokens)
  mixture = plan_mixture(
    name, budget.reuse, shares, tokens, num_unique_tokens, budget.seq_len, available, max_epochs
  )
  total = sum(entry["num_unique_tokens"] for entry in mixture.values())
  return dataclasses.replace(draft, num_unique_tokens=total, mixture=mixture)


def _shared_flops(budget: Budget, drafts: list[_Draft]) -> float | int:
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


def _dense(drafts: list[_Draft]) -> _Draft | None:
  """The first dense arm at the budget's compute."""
  return next(
    (draft for draft in drafts if draft.spec.kind == "dense" and not draft.spec.is_reference), None
  )


def _flops_of(budget: Budget, draft: _Draft, train_flops: float | int) -> float | int:
  """What an arm spends: the shared C, or what the shared tokens cost it; times its multiple."""
  if budget.shared == "tokens":
    train_flops = draft.cost.train_flops_per_token * budget.dense_tokens
  return train_flops * draft.spec.compute_multiple


def _schedule(budget: Budget, draft: _Draft, train_flops: float | int) -> Schedule:
  spec = draft.spec
  try:
    return make_schedule(
      _flops_of(budget, draft, train_flops),
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


def _check_parity(budget: Budget, drafts: list[_Draft], train_flops: float | int) -> None:
  """Refuses arms that differ in N or C, and names every arm with its numbers."""
  told, failed = [], False
  for draft in drafts:
    flops = _flops_of(budget, draft, train_flops)
    params_off = draft.cost.num_params / budget.num_params - 1
    flops_off = draft.schedule.train_flops / flops - 1
    bad = [
      name
      for name, off, tolerance in (
        ("N", params_off, budget.params_tolerance),
        ("C", flops_off, budget.flops_tolerance),
      )
      if abs(off) > tolerance
    ]
    failed = failed or bool(bad)
    told.append(
      f"{draft.spec.name} N={draft.cost.num_params:,} ({100 * params_off:+.3f} %) "
      f"C={draft.schedule.train_flops:.4g} ({100 * flops_off:+.3f} %)"
      + (f" <- {' and '.join(bad)} out" if bad else "")
    )
  if failed:
    raise UserError(
      f"arms are not at parity with num_params={budget.num_params:,} within "
      f"{100 * budget.params_tolerance:g} % and train_flops={train_flops:.4g} (times an arm's "
      f"compute_multiple) within {100 * budget.flops_tolerance:g} %: {'; '.join(told)}; change the "
      f"shape, batch_sequences or num_steps of those marked, or leave them 0"
    )


def _arm_plans(
  budget: Budget,
  draft: _Draft,
  train_flops: float | int,
  shared_unique: int,
  dense: _Draft | None,
  final_rate: float,
  warmup_steps: int,
) -> list[ArmPlan]:
  """The runs of one arm, one a seed."""
  spec, cost, run = draft.spec, draft.cost, draft.schedule
  peak = float(spec.peak_learning_rate) or peak_rate(cost.num_params, run.num_tokens)
  peak *= spec.learning_rate_multiplier
  if peak <= final_rate:
    raise UserError(
      f"arm {spec.name!r}: the peak learning rate {peak:.3g} is not above the final "
      f"{final_rate:.3g}; raise peak_learning_rate or lower final_learning_rate"
    )
  exact = account(draft.architecture, budget.seq_len, "exact")
  own_flops = _flops_of(budget, draft, train_flops)
  ratio = None
  if dense is not None:
    ratio = cost.train_flops_per_token / dense.cost.train_flops_per_token
  return [
    ArmPlan(
      name=spec.name,
      kind=spec.kind,
      role="reference" if spec.is_reference else spec.role or "arm",
      seed=seed,
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
      peak_learning_rate=peak,
      final_learning_rate=final_rate,
      warmup_steps=warmup(run.num_steps, warmup_steps),
      compute_multiple=float(spec.compute_multiple),
      compute_ratio=ratio,
      residual_params_pct=100 * (cost.num_params / budget.num_params - 1),
      residual_flops_pct=100 * (run.train_flops / (own_flops / spec.compute_multiple) - 1),
      residual_unique_pct=100 * (draft.num_unique_tokens / shared_unique - 1),
      exact_num_params=exact.num_params + exact.vocabulary_params,
      vocabulary_params=exact.vocabulary_params,
      gates=spec.gates,
      mixture=draft.mixture,
    )
    for seed in spec.seeds
  ]


def _notes(budget: Budget, drafts: list[_Draft], equal_data: bool) -> list[str]:
  notes = []
  if budget.shared == "tokens":
    notes.append(
      "the arms share N and D and differ in compute: a sweep at fixed data, not at parity"
    )
  if not equal_data:
    how = {
      "unique": "every arm reads its tokens once",
      "loose": "MoE arms read their tokens twice, the dense arm once, as in the paper's Table 17",
      "epochs": f"every arm reads its tokens {budget.epochs:g} times",
      "strict": "arms draw from unique tokens of their own",
    }[budget.reuse]
    notes.append(
      f"reuse={budget.reuse!r}: {how}, so the arms see different numbers of unique tokens and only"
      f" N and C are equal; reuse='strict' makes D^ equal too"
    )
  notes += _uneven_reuse(drafts)
  for draft in drafts:
    if draft.spec.is_reference:
      notes.append(
        f"{draft.spec.name} spends {draft.spec.compute_multiple:g} times the budget's "
        f"compute: a reference, not at parity"
      )
  by_law = [
    draft for draft in drafts if not (draft.spec.batch_sequences and draft.spec.peak_learning_rate)
  ]
  outside = {
    line
    for draft in by_law
    for line in STEP_LAW.extrapolates(
      num_params=budget.num_params, num_tokens=draft.schedule.num_tokens
    )
  }
  if outside:
    notes.append(f"learning rates and batches extrapolate: {min(outside)}")
  return notes


def _uneven_reuse(drafts: list[_Draft]) -> list[str]:
  """Which domains are read more often than others, because they hold less than their share."""
  notes = {}
  for draft in drafts:
    fewest = min((entry["epochs"] for entry in draft.mixture.values() if entry["share"]), default=0)
    for name, entry in draft.mixture.items():
      if entry["epochs"] > 1.05 * fewest:
        notes[name] = (
          f"{name!r} holds less than its share: {entry['num_unique_tokens']:,} unique tokens, read"
          f" {entry['epochs']:.2f} times by {draft.spec.name}, others {fewest:.2f} times"
        )
  return list(notes.values())


def _vocabulary(tokenizer: str) -> int:
  """Vocabulary of a tokenizer by its name, 0 where only its file would tell."""
  if tokenizer == "bytes":
    return _BYTE_VOCABULARY
  size = tokenizer.removeprefix("bpe:")
  return int(size) if tokenizer.startswith("bpe:") and size.isdigit() else 0


_REQUIRED = object()


def _get(section: Any, name: str, default: Any = _REQUIRED) -> Any:
  """A value of a mapping, a config dictionary or a plain object."""
  if hasattr(section, "keys"):
    if name in section:
      return section[name]
  elif hasattr(section, name):
    return getattr(section, name)
  if default is _REQUIRED:
    raise UserError(f"the config has no {name!r}; it needs seed, budget and arms")
  return default
