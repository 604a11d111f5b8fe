"""`moe-parity data`: questions about token stores and about the data that runs saw."""

import importlib

HELP = "look at a token store, prove what data runs saw, search training text for held-out text"
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
