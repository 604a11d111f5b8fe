"""`moe-parity data`: questions about token stores and about the data that runs saw."""

import importlib

HELP = "inspect a token store, prove what data runs saw, search training text for held-out text"
ABOUT = """\
Inspects token stores and what runs read of them: what a store holds (show), whether runs saw
the same tokens equally often in the same order (audit), whether training text contains held-out
text (contamination).

  moe-parity data show stores/mine
  moe-parity data audit runs/mine/runs/dense-s0 runs/mine/runs/moe_20-s0
"""
_VERBS = ("show", "audit", "contamination")


def arguments(parser) -> None:
  subparsers = parser.add_subparsers(dest="data_subcommand", metavar="COMMAND", required=True)
  for name in _VERBS:
    module = importlib.import_module(f"moe_parity.commands.data.{name}")
    sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
    module.arguments(sub)
    sub.set_defaults(run_data=module.run)


def run(args) -> int:
  return args.run_data(args)
