"""`moe-parity data`: questions about token stores and about the data that runs saw."""

import importlib

HELP = "look at a token store, prove what data runs saw, search training text for held-out text"
_VERBS = ("show", "audit", "contamination")


def arguments(parser) -> None:
  subparsers = parser.add_subparsers(dest="data_verb", metavar="VERB", required=True)
  for name in _VERBS:
    verb = importlib.import_module(f"moe_parity.commands.data.{name}")
    sub = subparsers.add_parser(name, help=verb.HELP, description=verb.HELP, allow_abbrev=False)
    verb.arguments(sub)
    sub.set_defaults(run_data=verb.run)


def run(args) -> int:
  return args.run_data(args)
