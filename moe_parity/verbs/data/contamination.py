"""`moe-parity data contamination`."""

import json
import pathlib

from moe_parity.verbs.common import json_argument
from moe_parity.verbs.printing import print_table

HELP = "find held-out text that training text contains"


def arguments(parser) -> None:
  parser.add_argument("store", type=pathlib.Path, metavar="STORE")
  parser.add_argument("--ngram", type=int, default=13, help="words in a row that count as seen")
  json_argument(parser)


def run(args) -> int:
  from moe_parity.data.contamination import documents_of, overlap
  from moe_parity.data.token_store import open_store

  store = open_store(args.store)
  found = overlap(documents_of(store.train), documents_of(store.validation), args.ngram)
  if args.json:
    print(json.dumps(found, indent=2))
  else:
    print_table([{"domain": name, **row} for name, row in found["by_domain"].items()])
    print(
      f"{found['num_contaminated']} of {found['num_documents']} held-out documents share a run"
      f" of {args.ngram} words with training text; {100 * found['share']:.2f} % of all runs"
    )
  return 0
