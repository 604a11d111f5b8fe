"""`moe-parity demo`."""

import argparse
import pathlib

from moe_parity.commands.common import planned
from moe_parity.commands.output import print_table
from moe_parity.commands.study import run_and_judge
from moe_parity.config import shipped

HELP = "the whole question in a few minutes on a CPU"
ABOUT = """\
Answers the question at toy scale on a CPU: one dense arm, four MoE arms and two dense controls on
a public-domain corpus that comes with the package. Run it again to resume.

  moe-parity demo

Writes runs/demo; open runs/demo/report/index.html.
"""


def arguments(parser) -> None:
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo"))
  parser.add_argument("--config", default=str(shipped("configs/demo.py")), help=argparse.SUPPRESS)
  parser.set_defaults(json=False)


def run(args) -> int:
  config, plan, store = planned(args)
  print_table(plan.to_rows())
  return run_and_judge(args, config, store, [])
