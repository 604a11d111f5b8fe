"""`moe-parity plan`."""

import json

from moe_parity.verbs.common import config_argument, json_argument, load_config
from moe_parity.verbs.printing import print_table

HELP = "derive every arm of a budget; refuse arms that are not at parity"


def arguments(parser) -> None:
  config_argument(parser)
  json_argument(parser)


def run(args) -> int:
  from moe_parity.resources.plan import make_plan

  plan = make_plan(load_config(args))
  if args.json:
    print(json.dumps(plan.to_dict(), indent=2))
  else:
    print_table(plan.to_rows())
    for note in plan.notes:
      print(f"note: {note}")
  return 0
