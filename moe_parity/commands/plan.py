"""`moe-parity plan`."""

import json

from moe_parity.commands.common import config_argument, json_argument, load_config
from moe_parity.commands.output import print_table

HELP = "derive every arm of a budget; refuse arms that are not at parity"


def arguments(parser) -> None:
  config_argument(parser)
  json_argument(parser)


def run(args) -> int:
  from moe_parity.study.parts import Results, method_of, plan_parts

  config = load_config(args)
  parts = plan_parts(config, Results(None))
  if args.json:
    plans = {part.name: with_memory(config, part.plan) for part in parts}
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
    if part.plan.mixture_rows():
      print()
      print_table(part.plan.mixture_rows())
    for note in part.plan.notes:
      print(f"note: {note}")
  if method := method_of(config):
    for note in method.still_to_come(config, parts):
      print(f"note: {note}")
  return 0


def memory_of(config, plan) -> list[dict | None]:
  """Planned bytes of a device for every arm, by what they hold; None where the mesh is open."""
  from moe_parity.planning.memory import planned_memory

  planned = {}
  for arm in plan.arms:  # the seeds of an arm need the same
    if arm.name not in planned:
      memory = planned_memory(config, arm)
      planned[arm.name] = memory and memory.to_dict()
  return [planned[arm.name] for arm in plan.arms]


def with_memory(config, plan) -> dict:
  """The plan ready for JSON, each arm with its `device_memory_bytes`."""
  found = plan.to_dict()
  for arm, memory in zip(found["arms"], memory_of(config, plan), strict=True):
    arm["device_memory_bytes"] = memory
  return found
