"""`moe-parity data contamination`."""

import json

from moe_parity.commands.common import json_argument
from moe_parity.commands.output import print_table

HELP = "find evaluation text, the store's held-out split or any other, that training text contains"


def arguments(parser) -> None:
  parser.add_argument("store", metavar="STORE", help="a folder, local or with a scheme (gs://)")
  parser.add_argument(
    "--against",
    nargs="+",
    default=[],
    metavar="[DOMAIN=][FORMAT:]PATH",
    help="evaluation text, as for prepare --source; default: the store's held-out split",
  )
  parser.add_argument("--text-key", default="text", help="field of a record of that text")
  parser.add_argument("--ngram", type=int, default=13, help="words in a row that count as seen")
  json_argument(parser)


def run(args) -> int:
  from moe_parity.console import bytes_bar
  from moe_parity.data.contamination import documents_of, overlap
  from moe_parity.data.token_store import open_store

  store = open_store(args.store)
  evaluation = _given(args) if args.against else documents_of(store.validation)
  total = store.manifest["splits"]["train"]["num_chars"]
  with bytes_bar() as show:
    overlaps = overlap(
      documents_of(store.train), evaluation, args.ngram, lambda done: show("search", done, total)
    )
  if args.json:
    print(json.dumps(overlaps, indent=2))
  else:
    print_table([{"domain": name, **row} for name, row in overlaps["by_domain"].items()])
    if args.against:
      train, held_out = store.train.num_documents, store.validation.num_documents
      print(
        f"searched: {train:,} training documents; the store's {held_out:,} held-out ones are not"
        f" trained on and not searched"
      )
    print(_in_words(overlaps, store.train.lost))
  return 0


def _in_words(found: dict, lost: dict) -> str:
  n, too_short = found["n"], found["num_too_short"]
  judged = found["num_documents"] - too_short
  unit = f"a run of {n} words (or {2 * n} characters where words have no spaces)"
  parts = []
  if judged:
    parts.append(
      f"{found['num_contaminated']} of {judged} evaluation documents share {unit} with training"
      f" text; {100 * found['share']:.2f} % of all runs"
    )
  if too_short:
    parts.append(f"{too_short} documents are shorter than {unit}: cannot tell; lower --ngram")
  if lost["num_documents"]:
    parts.append(
      f"the store's tokenizer lost text of {lost['num_documents']:,} training documents, in which"
      f" copies may go unnoticed"
    )
  return "\n".join(parts)


def _given(args):
  """Documents of the evaluation text that the command names."""
  from moe_parity.data.corpus import check_keys, documents, parse_sources
  from moe_parity.data.readers import BadRecords

  sources = [s for text in args.against for s in parse_sources(text, text_key=args.text_key)]
  keys: set[str] = set()
  for source in sources:
    bad = BadRecords()
    yield from documents(source, bad, "validation")
    keys |= bad.keys
  check_keys(sources, keys)
