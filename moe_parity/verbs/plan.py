"""`moe-parity plan`."""

import json

from moe_parity.verbs.common import config_argument, json_argument, load_config
from moe_parity.verbs.printing import print_table

HELP = "derive every arm of a budget; refuse arms that are not at parity"


def arguments(parser) -> None:
  config_argument(parser)
  json_argument(parser)


def run(args) -> int:
  from moe_parity.study.parts import Results, method_of, plan_parts

  config = load_config(args)
  parts = plan_parts(config, Results(None))
  if args.json:
    plans = {part.name: part.plan.to_dict() for part in parts}
    print(json.dumps(plans[""] if len(parts) == 1 else plans, indent=2))
    return 0
  for part in parts:
    if part.name:
      print(f"\npart {part.name}")
    print_table(part.plan.to_rows())
    if part.plan.mixture_rows():
      print()
      print_table(part.plan.mixture_rows())
    for note in part.plan.notes:
      print(f"note: {note}")
  if method := method_of(config):
    for note in method.still_to_come(config, parts):
      print(f"note: {note}")
  return 0
