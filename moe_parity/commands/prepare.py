"""`moe-parity prepare`."""

import json

from moe_parity.commands.common import json_argument, place
from moe_parity.commands.data.show import print_store
from moe_parity.commands.output import print_table
from moe_parity.errors import UserError

HELP = "turn text into a token store with a manifest"
ABOUT = """\
Turns text (files, folders, patterns, archives, Parquet, JSON lines; gs:// too) into a token store
with a manifest: tokens, documents, domains, hashes.

Writes the store. A config reads it by --config.data.source=stores/mine and, if its tokenizer is not
bytes, --config.data.tokenizer=store.
"""
EXAMPLE = r"""
moe-parity prepare --source prose=books/ code=text:src/ 'web=crawl/*.jsonl.zst' \
                   --tokenizer bpe:65536 --held-out hash:0.01 --store stores/mine

A format before the path (text: json: parquet: arrow: arrayrecord:) is that of every file; without
one the ending of each name says it. A comma, = or : in a name has a backslash before it: 'a\,b.md'
The same command resumes after a kill, and opens the store once it is there. Paths may have a scheme
(gs://bucket/folder). The same sources in a config: data.source = "prose=books/,code=src/"
"""


def arguments(parser) -> None:
  import argparse

  parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLE
  parser.add_argument(
    "--source",
    nargs="+",
    default=["builtin"],
    metavar="[DOMAIN=][FORMAT:]PATH",
    help="files, folders, patterns; text, .jsonl, .parquet, .arrayrecord, .arrow, or builtin."
    " A domain named here is that of every document; otherwise records or file names say it."
    " Default: builtin, the text that comes with the package",
  )
  parser.add_argument(
    "--tokenizer", default="bytes", help="bytes (default) | bpe:<vocab> | a tokenizer.json"
  )
  parser.add_argument(
    "--store", default=None, type=place, help="folder to make; default: one in the cache"
  )
  parser.add_argument(
    "--held-out",
    default="",
    help="hash:<share> | works:<name>,<name> | source:<path>; default hash:0.01",
  )
  parser.add_argument(
    "--max-bad-records",
    type=int,
    default=0,
    help="unreadable records that may be skipped; the manifest counts them",
  )
  for name in ("text", "domain", "source"):
    parser.add_argument(f"--{name}-key", default=name, help=f"field of a record; default {name}")
  parser.add_argument("--workers", type=int, default=0, help="threads; default: one a core")
  parser.add_argument(
    "--allow-lossy-tokenizer",
    action="store_true",
    help="take a tokenizer whose ids do not give all of the text back; the manifest says how much",
  )
  json_argument(parser)


def _check_is_used(args, path: str) -> None:
  """
  Raises:
    UserError: the source is a finished store, and an option says how to make one.
  """
  from moe_parity.data.token_store import is_store

  given = {"--store": args.store, "--held-out": args.held_out}
  name = next((name for name, value in given.items() if value), "")
  if name and is_store(path):
    raise UserError(
      f"{name}={given[name]}: {path} is a finished token store, which is opened as it is; leave"
      f" {name} out, or give the text that it was made from"
    )


def run(args) -> int:
  from moe_parity.console import Stages, bytes_bar
  from moe_parity.data.corpus import parse_sources
  from moe_parity.data.prepare import prepare

  keys = {f"{name}_key": getattr(args, f"{name}_key") for name in ("text", "domain", "source")}
  sources = [source for text in args.source for source in parse_sources(text, **keys)]
  _check_is_used(args, sources[0].path)
  with bytes_bar() as show:
    stages = Stages(show)
    store = prepare(
      sources,
      args.tokenizer,
      str(args.store or ""),
      held_out=args.held_out,
      max_bad_records=args.max_bad_records,
      workers=args.workers,
      allow_lossy_tokenizer=args.allow_lossy_tokenizer,
      progress=stages.progress,
    )
  if args.json:
    print(json.dumps({"stages": stages.rows(), **store.manifest}, indent=2))
  else:
    if rows := stages.rows():
      print_table(rows)
      print()
    print_store(store)
  return 0
