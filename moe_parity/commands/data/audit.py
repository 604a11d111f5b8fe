"""`moe-parity data audit`."""

import json
import pathlib

from moe_parity.commands.common import json_argument
from moe_parity.commands.output import print_table

HELP = "prove what data runs saw, how often, and whether it was the same"


def arguments(parser) -> None:
  parser.add_argument("runs", type=pathlib.Path, nargs="+", metavar="RUN")
  parser.add_argument("--store", default=None, help="the token store, where it has moved")
  parser.add_argument("--verify", action="store_true", help="also hash the token store's files")
  json_argument(parser)


def run(args) -> int:
  from moe_parity.data.audit import audit_run, compare_runs

  audits = [audit_run(run, args.store, args.verify) for run in args.runs]
  pairs = [{"with": str(run)} | compare_runs(args.runs[0], run) for run in args.runs[1:]]
  if args.json:
    print(json.dumps({"runs": audits, "against_first": pairs}, indent=2))
  else:
    names = ("run", "num_tokens", "num_unique_tokens", "epochs", "passed")
    print_table([{name: audit[name] for name in names} for audit in audits])
    for heading in ("domain", "origin"):
      print()
      print_table(data_rows(audits, heading))
    for audit in audits:
      for failed in (check for check in audit["checks"] if not check["passed"]):
        print(f"{audit['run']}: {failed['name']}: {failed['expected']} expected, {failed['found']}")
    for pair in pairs:
      print(f"{args.runs[0]} and {pair['with']}: {pair['verdict']}")
  return 0 if all(audit["passed"] for audit in audits) else 1


def data_rows(audits: list[dict], heading: str) -> list[dict]:
  """Seen and unique tokens of each run and domain (or origin: a source of the store)."""
  return [
    {"run": audit["run"], {"origin": "source"}.get(heading, heading): name, **counts}
    for audit in audits
    for name, counts in audit[f"by_{heading}"].items()
  ]
