"""`moe-parity demo`."""

import argparse
import pathlib

from moe_parity.commands.common import on_disk, place, planned
from moe_parity.commands.output import print_table
from moe_parity.commands.study import run_and_judge
from moe_parity.config import shipped

HELP = "the whole question, small, in ten minutes to half an hour on a CPU"
ABOUT = """\
Answers the question at toy scale on a CPU: one dense arm, four MoE arms and two dense controls on
a public-domain corpus that comes with the package. Run it again to resume.

  moe-parity demo
  moe-parity demo --size=gpu     # six times the parameters and tokens, in bfloat16

Writes runs/demo (runs/demo_gpu); open report/index.html in it.
"""


def arguments(parser) -> None:
  parser.add_argument(
    "--size", choices=("cpu", "gpu"), default="cpu", help="of the arms: for a laptop, or for a GPU"
  )
  parser.add_argument("--workdir", type=place, help="runs/demo, or runs/demo_gpu")
  parser.add_argument("--config", default=str(shipped("configs/demo.py")), help=argparse.SUPPRESS)
  parser.set_defaults(json=False)


def run(args) -> int:
  suffix = "" if args.size == "cpu" else f"_{args.size}"
  args.workdir = args.workdir or pathlib.Path(f"runs/demo{suffix}")
  way_out = "give a folder, or study --config=configs/demo.py --workdir=gs://bucket/name"
  on_disk(args.workdir, "the demo writes into a folder of this machine", way_out)
  if args.size != "cpu":
    args.config += f":{args.size}"
  config, plan, store = planned(args)
  print_table(plan.to_rows())
  return run_and_judge(args, config, store, [])
