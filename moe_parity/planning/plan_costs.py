"""What a plan's arms cost beyond the plan itself: bytes of a device, executed FLOPs, bytes of
weights."""

from typing import Any

from moe_parity.planning.arm_costs import arm_costs
from moe_parity.planning.arm_plan import ComparisonPlan
from moe_parity.planning.attention_choice import FUSED, Device, attention_rows, choose_attention
from moe_parity.planning.memory import planned_memory


def memory_of(config: Any, plan: ComparisonPlan, device: Device | None = None) -> list[dict | None]:
  """Planned bytes of a device for every arm, by what they hold; None where the mesh is open.

  Args:
    device: whose attention is counted; None counts blocks, which store scores, unless the config
      names a fused implementation.
  Raises:
    UserError: the attention that the config names cannot run on `device`.
  """
  planned: dict[str, dict | None] = {}
  for arm in plan.arms:  # the seeds of an arm need the same
    if arm.name not in planned:
      memory = planned_memory(config, arm, fused=device and _is_fused(config, arm, device))
      planned[arm.name] = memory and memory.to_dict()
  return [planned[arm.name] for arm in plan.arms]


def _is_fused(config: Any, arm: Any, device: Device) -> bool:
  """Whether attention stores no scores where an arm trains on `device`."""
  model, width = config.model, arm.architecture.d_head
  choice = choose_attention(
    model.attention, device, model.dtype, arm.seq_len, width, model.position
  )
  return choice.implementation in FUSED


def with_costs(config: Any, plan: ComparisonPlan) -> dict[str, Any]:
  """The plan ready for JSON, each arm with its `device_memory_bytes`, its `costs` (executed FLOPs,
  parameters with vocabulary, bytes of weights, all relative to dense too) and `attention`, the
  implementation that known devices take."""
  model, values = config.model, plan.to_dict()
  costs = {cost.name: cost.to_dict() for cost in arm_costs(values["arms"])}
  for arm, memory in zip(values["arms"], memory_of(config, plan), strict=True):
    arm |= {"device_memory_bytes": memory, "costs": costs[arm["name"]]}
    width = arm["architecture"]["d_head"]
    arm["attention"] = attention_rows(
      model.attention, model.dtype, arm["seq_len"], width, model.position
    )
  return values


def rows_with_memory(
  config: Any, plan: ComparisonPlan, device: Device | None = None
) -> list[dict[str, Any]]:
  """`ComparisonPlan.to_rows`, each with the GiB of a device (None where the mesh is open);
  arguments as of `memory_of`."""
  return [
    row | {"GiB a device": bytes_ and round(bytes_["total"] / 2**30, 2)}
    for row, bytes_ in zip(plan.to_rows(), memory_of(config, plan, device), strict=True)
  ]
