"""What every arm costs beyond the budget, relative to the dense arm.

A budget makes C equal under one convention. What that convention leaves out may still differ: the
products of router and output head, how attention is computed, the parameters of vocabulary, router
and norms, the bytes of weights. This page counts them for all arms, from plans in memory or as
written by any earlier version, and says which differences a convention hides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_parity.planning.accounting import ATTENTION_BLOCK, cost_of
from moe_parity.planning.architecture import Architecture

HIDDEN_SHARE = 0.02  # difference from the dense arm, beyond the convention's, worth a sentence
BYTES_PER_PARAM = 4  # weights are stored as float32


@dataclasses.dataclass(frozen=True)
class ArmCost:
  """One arm's resources.

  Attributes:
    role: as of `ArmPlan`.
    train_flops: C by the budget's convention. executed_flops: of every matrix product of the run.
    num_params: N by the budget's convention. num_params_with_vocabulary: that, embedding and head.
    num_params_with_router: N with router and norms, whatever the convention; no vocabulary.
    weight_bytes: of all parameters of the built model, without gradients and optimizer state.
    relative: each of these over the dense arm's; empty where there is no dense arm.
  """

  name: str
  role: str
  train_flops: float | int
  executed_flops: int
  num_params: int
  num_params_with_vocabulary: int
  num_params_with_router: int
  weight_bytes: int
  relative: dict[str, float] = dataclasses.field(default_factory=dict)

  def to_dict(self) -> dict[str, Any]:
    """All fields by name, ready for JSON."""
    return dataclasses.asdict(self)


RESOURCES = ("train_flops", "executed_flops", "num_params", "num_params_with_vocabulary",
             "num_params_with_router", "weight_bytes")  # fmt: skip


def arm_costs(arms: Iterable[Mapping[str, Any]], baseline: str = "") -> list[ArmCost]:
  """Costs of every arm once (its seeds cost the same), in the plan's order.

  Args:
    arms: plans of runs as dictionaries (`ArmPlan.to_dict()`, plan.json).
    baseline: the dense arm to compare with; "" is the first one at parity.
  """
  once: dict[str, Mapping[str, Any]] = {}
  for arm in arms:
    if "architecture" in arm:
      once.setdefault(arm["name"], arm)
  costs = [_cost(arm) for arm in once.values()]
  at_parity = (name for name, arm in once.items() if _is_dense_at_parity(arm))
  baseline = baseline or next(at_parity, "")
  dense = next((cost for cost in costs if cost.name == baseline), None)
  if dense is None:
    return costs
  return [
    dataclasses.replace(
      cost, relative={name: getattr(cost, name) / getattr(dense, name) for name in RESOURCES}
    )
    for cost in costs
  ]


def cost_rows(arms: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """`arm_costs`, one flat dictionary an arm, for a printed table; `x dense` is the number before it
  over the dense arm's (None without one)."""
  return [
    {
      "arm": cost.name,
      "C": float(cost.train_flops),
      "C x dense": cost.relative.get("train_flops"),
      "executed FLOPs": float(cost.executed_flops),
      "executed x dense": cost.relative.get("executed_flops"),
      "N with vocabulary": cost.num_params_with_vocabulary,
      "N with v. x dense": cost.relative.get("num_params_with_vocabulary"),
      "N with router, norms": cost.num_params_with_router,
      "N with r. x dense": cost.relative.get("num_params_with_router"),
      "MiB of weights": cost.weight_bytes / 2**20,
      "bytes x dense": cost.relative.get("weight_bytes"),
    }
    for cost in arm_costs(arms)
  ]


def executed_flops(arm: Mapping[str, Any]) -> int:
  """FLOPs of every matrix product of a run, from its plan."""
  return _executed(arm).train_flops(arm["num_tokens"])


def hidden_differences(costs: Sequence[ArmCost], convention: str) -> list[str]:
  """A sentence for every resource in which an arm at parity differs from dense by more than
  HIDDEN_SHARE beyond what the budget's convention shows.

  Args:
    convention: of the budget's N and C.
  """
  sentences = []
  for resource, shown, words in _HIDDEN:
    differing = [
      (cost.name, cost.relative[resource])
      for cost in costs
      if cost.relative
      and cost.role not in ("reference", "control")
      and abs(cost.relative[resource] / cost.relative[shown] - 1) > HIDDEN_SHARE
    ]
    if differing:
      listed = [f"{name} {ratio:.2f}" for name, ratio in differing]
      together = f"{', '.join(listed[:-1])} and {listed[-1]}" if listed[1:] else listed[0]
      sentences.append(words.format(arms=together, convention=convention))
  return sentences


# Resource, the one that the budget or a sentence before shows, and what to say.
_HIDDEN = (
  (
    "executed_flops",
    "train_flops",
    "C by convention {convention} does not count every matrix product: with router, output head "
    "and attention as computed, arms execute this many times the FLOPs of dense: {arms}",
  ),
  (
    "num_params_with_vocabulary",
    "num_params",
    "N leaves out the vocabulary: with embedding and head, arms hold this many times the "
    "parameters of dense: {arms}",
  ),
  (
    "num_params_with_router",
    "num_params",
    "N by convention {convention} leaves out router and norms: with them, and without the "
    "vocabulary, arms hold this many times the parameters of dense: {arms}",
  ),
  (
    "weight_bytes",
    "num_params_with_vocabulary",
    "with vocabulary, router and norms, the weights of arms take this many times the bytes of "
    "dense: {arms}",
  ),
)


def _cost(arm: Mapping[str, Any]) -> ArmCost:
  exact = cost_of(_architecture(arm), arm["seq_len"], "exact")
  return ArmCost(
    name=arm["name"],
    role=arm["role"],
    train_flops=arm["train_flops"],
    executed_flops=executed_flops(arm),
    num_params=arm["num_params"],
    num_params_with_vocabulary=arm["num_params"] + exact.vocabulary_params,
    num_params_with_router=exact.num_params,
    weight_bytes=BYTES_PER_PARAM * exact.num_params_with_vocabulary,
  )


def _executed(arm: Mapping[str, Any]):
  block = arm.get("attention_block", ATTENTION_BLOCK)  # plans before it was written down
  return cost_of(_architecture(arm), arm["seq_len"], "executed", block)


def _architecture(arm: Mapping[str, Any]) -> Architecture:
  shape = arm["architecture"]
  return shape if isinstance(shape, Architecture) else Architecture.from_dict(shape)


def _is_dense_at_parity(arm: Mapping[str, Any]) -> bool:
  return arm["kind"] == "dense" and arm["role"] == "arm"
