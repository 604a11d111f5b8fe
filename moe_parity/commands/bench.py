"""`moe-parity bench`."""

import json
import pathlib
import textwrap

from moe_parity.commands.common import json_argument
from moe_parity.commands.output import print_table

HELP = "measure this machine: ratios from one run"
ABOUT = """\
Measures this machine with this code. Ratios within one run are more reliable than rates.

  moe-parity bench --json                     # all but gpu
  moe-parity bench --only=startup,step,layer

startup: seconds to a plan and to a first loss. step: full train steps. layer: an MoE layer against
a dense FFN of equal FLOPs. exchange: dispatchers of tokens. compile: time to compile by depth.
loader: windows a second. coverage: how often intervals hold the truth, in made-up studies. decode:
generation at equal memory. gpu: eight minutes of one GPU.

Prints tables, each below a line on its columns, or JSON with --json.
"""


def arguments(parser) -> None:
  parser.add_argument(
    "--only",
    default="",
    metavar="NAME,NAME",
    help="those of the list above; all but gpu if left out",
  )
  parser.add_argument(
    "--results",
    type=pathlib.Path,
    metavar="FOLDER",
    help="decode.json, decode.png and gpu.json go there",
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.benchmarks import suite

  rows = suite.run([name for name in args.only.split(",") if name], args.results)
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    for name, table in rows.items():
      print("\n" + textwrap.fill(f"{name}: {suite.COLUMNS[name]}", 100))
      print_table(table)
  return 0
