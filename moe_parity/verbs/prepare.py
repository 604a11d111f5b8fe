"""`moe-parity prepare`."""

import json

from moe_parity.verbs.common import json_argument
from moe_parity.verbs.printing import print_table

HELP = "turn text into a token store with a manifest"


def arguments(parser) -> None:
  parser.add_argument("--source", default="builtin", help="builtin | file | folder")
  parser.add_argument("--tokenizer", default="bytes", help="bytes | bpe:<vocab> | a tokenizer.json")
  parser.add_argument("--store", default="", help="folder to make; default: one in the cache")
  parser.add_argument(
    "--held-out", default="", help="hash:<share> | works:<name>,<name> | source:<path>"
  )
  parser.add_argument(
    "--max-bad-records",
    type=int,
    default=0,
    help="unreadable records that may be skipped; the manifest counts them",
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.console import bytes_bar
  from moe_parity.data.prepare import prepare

  with bytes_bar() as progress:
    store = prepare(
      args.source,
      args.tokenizer,
      args.store,
      held_out=args.held_out,
      max_bad_records=args.max_bad_records,
      progress=progress,
    )
  if args.json:
    print(json.dumps(store.manifest, indent=2))
  else:
    print_table(store_rows(store))
    print(f"token store: {store.folder}")
  return 0


def store_rows(store) -> list[dict]:
  """What a store holds, a row a split and domain."""
  rows = []
  for name in ("train", "validation"):
    for domain, totals in store.manifest["splits"][name]["by_domain"].items():
      rows.append({"split": name, "domain": domain, **totals})
  return rows
