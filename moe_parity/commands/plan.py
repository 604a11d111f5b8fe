"""`moe-parity plan`."""

import json

from moe_parity.commands.common import config_argument, json_argument, load_config
from moe_parity.commands.output import print_table

HELP = "derive every arm of a budget; refuse arms that are not at parity"


def arguments(parser) -> None:
  config_argument(parser)
  json_argument(parser)


def run(args) -> int:
  from moe_parity.study.methods.method import method_of
  from moe_parity.study.parts import Results, plan_parts

  config = load_config(args)
  parts = plan_parts(config, Results(None), **store_inputs(config))
  if args.json:
    plans = {part.name: with_costs(config, part.plan) for part in parts}
    print(json.dumps(plans[""] if len(parts) == 1 else plans, indent=2))
    return 0
  for part in parts:
    if part.name:
      print(f"\npart {part.name}")
    print_table(
      [
        row | {"GiB a device": bytes_ and round(bytes_["total"] / 2**30, 2)}
        for row, bytes_ in zip(part.plan.to_rows(), memory_of(config, part.plan), strict=True)
      ]
    )
    print()
    print_table(part.plan.cost_rows())
    if part.plan.mixture_rows():
      print()
      print_table(part.plan.mixture_rows())
    for note in [*part.plan.notes, *attention_notes(config, part.plan)]:
      print(f"note: {note}")
  if method := method_of(config):
    for note in method.pending_notes(config, parts):
      print(f"note: {note}")
  return 0


def attention_notes(config, plan) -> list[str]:
  """Which implementation computes attention on which device; one sentence, or one for each width
  of heads where arms differ."""
  from moe_parity.planning.attention_choice import attention_rows

  model, notes = config.model, {}
  for arm in plan.arms:
    width = arm.architecture.d_head
    rows = attention_rows(model.attention, model.dtype, arm.seq_len, width, model.position)
    devices = {}
    for row in rows:
      devices.setdefault((row["attention"], row["reason"]), []).append(row["device"])
    taken = (
      f"{implementation} on {', '.join(names)}" + (f" ({reason})" if reason else "")
      for (implementation, reason), names in devices.items()
    )
    notes.setdefault("; ".join(taken), []).append(width)
  return [
    f"attention of heads of {', '.join(map(str, sorted(set(widths))))} channels: {taken}"
    for taken, widths in notes.items()
  ]


def memory_of(config, plan) -> list[dict | None]:
  """Planned bytes of a device for every arm, by what they hold; None where the mesh is open."""
  from moe_parity.planning.memory import planned_memory

  planned = {}
  for arm in plan.arms:  # the seeds of an arm need the same
    if arm.name not in planned:
      memory = planned_memory(config, arm)
      planned[arm.name] = memory and memory.to_dict()
  return [planned[arm.name] for arm in plan.arms]


def with_costs(config, plan) -> dict:
  """The plan ready for JSON, each arm with its `device_memory_bytes`, its `costs` (executed FLOPs,
  parameters with vocabulary, bytes of weights, all relative to dense too) and `attention`, the
  implementation that known devices take."""
  from moe_parity.planning.arm_costs import arm_costs
  from moe_parity.planning.attention_choice import attention_rows

  model = config.model
  values = plan.to_dict()
  costs = {cost.name: cost.to_dict() for cost in arm_costs(values["arms"])}
  for arm, memory in zip(values["arms"], memory_of(config, plan), strict=True):
    arm |= {"device_memory_bytes": memory, "costs": costs[arm["name"]]}
    width = arm["architecture"]["d_head"]
    arm["attention"] = attention_rows(
      model.attention, model.dtype, arm["seq_len"], width, model.position
    )
  return values


def store_inputs(config) -> dict:
  """What a finished token store on this machine tells the planner; nothing where the config's
  source is text, or elsewhere."""
  source = config.data.source
  if "," in source or "://" in source or source == "builtin":
    return {}
  from moe_parity.data.mixture import planner_inputs
  from moe_parity.data.token_store import is_store, open_store

  return planner_inputs(open_store(source), config) if is_store(source) else {}
