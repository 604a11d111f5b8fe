"""`moe-parity data show`."""

import json

from moe_parity.commands.common import json_argument
from moe_parity.commands.output import print_table

HELP = "what a token store holds: documents, bytes, characters and tokens of each domain"


def arguments(parser) -> None:
  parser.add_argument("store", metavar="STORE", help="a folder, local or with a scheme (gs://)")
  parser.add_argument("--verify", action="store_true", help="also hash every file of the store")
  json_argument(parser)


def run(args) -> int:
  from moe_parity.data.token_store import open_store

  store = open_store(args.store, verify=args.verify)
  if args.json:
    print(json.dumps(store.manifest, indent=2))
  else:
    print_store(store)
  return 0


def print_store(store) -> None:
  """Tables of a store: its splits by domain, its sources, and what is true of all of it."""
  manifest = store.manifest
  print_table(domain_rows(manifest))
  print()
  print_table(source_rows(manifest))
  tokenizer, splits = manifest["tokenizer"], manifest["splits"].values()
  num_shards = sum(len(split["shards"]) for split in splits)
  size = sum(file["size"] for split in splits for file in split["files"].values())
  print(
    f"\ntokenizer {tokenizer['name']}, {tokenizer['vocab_size']:,} ids; {size / 1e6:,.1f} MB in"
    f" {num_shards} shards\n"
    f"held out: {_rule(manifest['held_out'])}; {manifest['duplicates']['num_documents']:,}"
    f" duplicate documents left out, {_bad_records(manifest['bad_records'])}\n"
    f"{_left_out(manifest['origins'])}"
    f"{_lost(manifest['splits'])}"
    f"train stream sha256 {manifest['splits']['train']['sha256']}\n"
    f"token store: {store.location}"
  )


def _bad_records(bad: dict) -> str:
  lost = f" ({bad['num_bytes']:,} bytes)" if bad["count"] else ""
  return f"{bad['count']:,} bad records{lost} skipped"


def _lost(splits: dict) -> str:
  """A line for each split of which the tokenizer lost text."""
  return "".join(
    f"{name}: the tokenizer loses {split['lost']['num_chars']:,} of {split['num_chars']:,}"
    f" characters in {split['lost']['num_documents']:,} documents\n"
    for name, split in splits.items()
    if split["lost"]["num_documents"]
  )


def _left_out(origins: list[dict]) -> str:
  """A line for each source of which something was left out, or whose files are of several kinds."""
  lines = []
  for origin in origins:
    notes = []
    if origin["num_hidden"]:
      notes.append(f"{origin['num_hidden']:,} names with a dot in front left out")
    notes += [f"the token store {store} left out" for store in origin["stores"]]
    if len(origin["formats"]) > 1:
      counts = (f"{count:,} as {kind}" for kind, count in origin["formats"].items())
      notes.append(f"files read {', '.join(counts)}")
    if notes:
      lines.append(f"{origin['path']}: {'; '.join(notes)}\n")
  return "".join(lines)


def domain_rows(manifest: dict) -> list[dict]:
  """A row a split and domain, and one for all of a split."""
  rows = []
  for name, split in manifest["splits"].items():
    domains = list(split["by_domain"].items())
    for domain, totals in domains if len(domains) == 1 else [*domains, ("all", split)]:
      counts = {key: totals[f"num_{key}"] for key in ("documents", "bytes", "chars", "tokens")}
      tokens = totals["num_tokens"]
      ratio = {"bytes_per_token": totals["num_bytes"] / tokens if tokens else None}
      rows.append({"split": name, "domain": domain, **counts, **ratio})
  return rows


def source_rows(manifest: dict) -> list[dict]:
  """A row a source, in the order they were given."""
  train, validation = (manifest["splits"][name]["by_origin"] for name in ("train", "validation"))
  rows = []
  for number, origin in enumerate(manifest["origins"]):
    counts = {
      "train_documents": train[number]["num_documents"] if number < len(train) else 0,
      "train_tokens": train[number]["num_tokens"] if number < len(train) else 0,
      "validation_tokens": validation[number]["num_tokens"] if number < len(validation) else 0,
    }
    rows.append({"source": origin["path"], "files": len(origin["files"]), **counts})
  return rows


def _rule(held_out: dict) -> str:
  if held_out["fraction"]:
    return f"{100 * held_out['fraction']:g} % of documents by the hash of their text"
  if held_out["works"]:
    return f"the works {', '.join(held_out['works'])}"
  return held_out["source"] or "the corpus's own split"
