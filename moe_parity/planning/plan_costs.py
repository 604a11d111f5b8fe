"""What a plan's arms cost beyond the plan itself: bytes of a device, executed FLOPs, bytes of
weights."""

from typing import Any

from moe_parity.planning.arm_costs import arm_costs
from moe_parity.planning.arm_plan import ComparisonPlan
from moe_parity.planning.attention_choice import attention_rows
from moe_parity.planning.memory import planned_memory


def memory_of(config: Any, plan: ComparisonPlan) -> list[dict | None]:
  """Planned bytes of a device for every arm, by what they hold; None where the mesh is open."""
  planned: dict[str, dict | None] = {}
  for arm in plan.arms:  # the seeds of an arm need the same
    if arm.name not in planned:
      memory = planned_memory(config, arm)
      planned[arm.name] = memory and memory.to_dict()
  return [planned[arm.name] for arm in plan.arms]


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


def rows_with_memory(config: Any, plan: ComparisonPlan) -> list[dict[str, Any]]:
  """`ComparisonPlan.to_rows`, each with the GiB of a device (None where the mesh is open)."""
  return [
    row | {"GiB a device": bytes_ and round(bytes_["total"] / 2**30, 2)}
    for row, bytes_ in zip(plan.to_rows(), memory_of(config, plan), strict=True)
  ]
