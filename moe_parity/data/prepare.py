"""The store of a corpus and a tokenizer: found where it was made before, made where it was not.

A store is named by what it depends on, so that two runs with the same text share one and a changed
file gives another. One process makes it, others wait; on a bucket it is made locally and copied.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_parity.data import checked_json, corpus, storage
from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.bpe_training import vocab_size_of
from moe_parity.data.build import build, work_folder
from moe_parity.data.corpus import BUILTIN, Source, parse_sources
from moe_parity.data.encode import Progress
from moe_parity.data.formats import file_label
from moe_parity.data.manifest import MANIFEST, VERSION
from moe_parity.data.round_trip import ALLOW
from moe_parity.data.scan import HeldOut
from moe_parity.data.token_store import TokenStore, is_store, open_store
from moe_parity.errors import UserError

PREPARE_DATA = "--prepare-data"  # lets `evaluate` make what a run's config names
TRAINED_HERE = re.compile(r"bytes|bpe:\d+")


def prepare(
  source: str | Source | Sequence[Source] = BUILTIN,
  tokenizer: str = "bytes",
  store: str = "",
  *,
  held_out: str = "",
  max_bad_records: int = 0,
  workers: int = 0,
  progress: Progress | None = None,
  allow_lossy_tokenizer: bool = False,
  make: bool = True,
) -> TokenStore:
  """Opens the store of this corpus and tokenizer, making it first where it is not there yet.

  Every file of the store is hashed: what this returns is what its manifest says.

  Args:
    source: sources, or the text that `corpus.parse_sources` reads ('builtin', a file, a folder, a
      pattern, several with commas between, 'name=path' for a domain); or a finished store.
    tokenizer: 'bytes', 'bpe:<vocab>' (trained on this corpus's training split), a tokenizer.json,
      or 'store' for the one a finished store has.
    store: folder to make or reuse, local or with a scheme such as gs://; '' is a folder in the
      cache, named by content.
    held_out: 'hash:<share>', 'works:<name>,<name>' or 'source:<path>'; '' is the built-in corpus's
      own split, or hash:0.01 for others.
    max_bad_records: unreadable records before this stops; the manifest counts them.
    workers: threads that encode; 0 is one a core.
    progress: called with (stage, bytes of text done, bytes in all or 0 where unknown).
    allow_lossy_tokenizer: takes a tokenizer whose ids do not give all of the text back; what is
      lost is in the manifest and is printed with every BPC.
    make: False reaches for nothing remote and makes no store but that of the built-in corpus in
      the cache: for configs that others wrote.
  Raises:
    UserError: bad input, `store` holds something else, or there is none and none may be made.
  """
  if max_bad_records < 0 or workers < 0:
    raise UserError(f"max_bad_records={max_bad_records} and workers={workers} must be at least 0")
  sources = _sources(source)
  if not make:
    _check_local([*(given.path for given in sources), tokenizer, store, held_out])
  if finished := _finished_store(sources):
    return check_lossless(_open_finished(finished, tokenizer), allow_lossy_tokenizer)
  rule = HeldOut.parse(held_out, sources)
  inputs = _inputs(sources, tokenizer, rule)
  location, folder = _place(store, f"{_label(sources)}-{_key(inputs)[:16]}")
  is_remote = storage.is_remote(location)
  is_ours = [given.path for given in sources] == [BUILTIN] and not (store or rule.source)
  if not make and not (is_ours and TRAINED_HERE.fullmatch(tokenizer)) and not is_store(folder):
    raise _not_prepared(sources)
  with storage.locked(folder):
    made = is_store(location) if is_remote else _is_occupied(folder)
    if not made and not is_store(folder):
      _check_replaceable(folder)
      build(
        folder, inputs, sources, tokenizer, rule, max_bad_records, workers, progress,
        allow_lossy_tokenizer,
      )  # fmt: skip
    if not made and is_remote:
      _publish(folder, location, progress)
    shutil.rmtree(work_folder(folder), ignore_errors=True)
    return check_lossless(_reopen(location, inputs), allow_lossy_tokenizer)


def _sources(source: str | Source | Sequence[Source]) -> list[Source]:
  if isinstance(source, str):
    return parse_sources(source)
  return [source] if isinstance(source, Source) else list(source)


def _not_prepared(sources: Sequence[Source]) -> UserError:
  places = ", ".join(given.path for given in sources)
  return UserError(
    f"no token store of {places!r} is on this machine, and none is made for a run folder unasked:"
    f" the text changed, or was prepared elsewhere; {PREPARE_DATA} reads it and compares"
  )


def open_data(data: Any, progress: Progress | None = None, make: bool = True) -> TokenStore:
  """The store that a config's `data` section means, made first where it is not there yet.

  Args:
    make: as of `prepare`.
  """
  keys = {name: data[name] for name in ("text_key", "domain_key", "source_key")}
  return prepare(
    parse_sources(data.source, **keys),
    data.tokenizer,
    data.store,
    held_out=data.held_out,
    max_bad_records=data.max_bad_records,
    progress=progress,
    make=make,
    allow_lossy_tokenizer=data.get("allow_lossy_tokenizer", False),  # configs of older runs
  )


def _check_local(places: Sequence[str]) -> None:
  """
  Raises:
    UserError: one of the places is remote.
  """
  for place in places:
    if storage.is_remote(place):
      raise UserError(
        f"{place!r} in the config of a run folder is remote, and nothing is fetched for it unless"
        f" you say so; if you trust it, add {PREPARE_DATA}"
      )


def check_lossless(store: TokenStore, allow_lossy: bool) -> TokenStore:
  """The store, unless its tokenizer lost text and the caller did not allow it."""
  for split in (store.train, store.validation):
    if split.lost["num_documents"] and not allow_lossy:
      raise UserError(
        f"{store.location}: the ids of tokenizer {store.tokenizer.name} do not give back"
        f" {split.lost['num_chars']:,} characters of {split.name}; use another tokenizer, or allow"
        f" the loss by {ALLOW}"
      )
  return store


def _is_occupied(folder: Path) -> bool:
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder} is a file; a store is a folder: choose another name")
  return folder.exists() and any(folder.iterdir())


def _place(store: str, label: str) -> tuple[str, Path]:
  """(where the store is, the folder of this machine in which it is made)."""
  cached = storage.cache_folder() / label
  location = store or str(cached)
  # Where a link leads: the store is made next to that place and appears there by a rename.
  return location, cached if storage.is_remote(location) else Path(os.path.realpath(location))


def _check_replaceable(folder: Path) -> None:
  """
  Raises:
    UserError: the empty folder is one that no finished store can replace.
  """
  is_current = folder.is_dir() and os.path.samefile(folder, os.curdir)
  if is_current or os.path.ismount(folder):
    what = "the folder that this was started in" if is_current else "where a disk is mounted"
    raise UserError(
      f"{folder} is {what}, and a store appears by a rename; name a folder in it, such as"
      f" {folder / 'store'}"
    )


def _publish(folder: Path, location: str, progress: Progress | None) -> None:
  """A finished local store to a bucket; the manifest goes last, so that half a store is none."""
  total = sum(path.stat().st_size for path in folder.iterdir())
  report = progress or (lambda stage, done, total: None)
  storage.upload(folder, location, MANIFEST, lambda done: report("copy", done, total))
  shutil.rmtree(folder)


def _finished_store(sources: Sequence[Source]) -> str:
  """The source that is a token store; "" where all are text."""
  stores = [given.path for given in sources if is_store(given.path)]
  if stores and len(sources) > 1:
    raise UserError(f"{stores[0]} is a token store: give it alone, or the text it was made from")
  return stores[0] if stores else ""


def _open_finished(location: str, tokenizer: str) -> TokenStore:
  opened = open_store(location, verify=True)
  name = opened.tokenizer.name
  if tokenizer == "store" or tokenizer == name:
    return opened
  if storage.is_file(tokenizer):
    return open_store(location, tokenizers.load(tokenizer))
  raise UserError(
    f"{location} was made with tokenizer {name}, not {tokenizer}; set tokenizer=store"
  )


def _reopen(location: str, inputs: dict) -> TokenStore:
  try:
    old_inputs = checked_json.read(storage.join(location, "inputs.json"), {})
  except (FileNotFoundError, NotADirectoryError, ValueError):
    raise UserError(
      f"{location} exists and is no finished token store; choose another folder or delete it"
    ) from None
  wanted = json.loads(json.dumps(inputs))
  if old_inputs != wanted:
    changed = [name for name in wanted if old_inputs.get(name) != wanted[name]]
    raise UserError(
      f"{location} was made from other inputs ({', '.join(changed)}); choose another folder or "
      f"delete it, or give it as the source to use it as it is"
    )
  return open_store(location, verify=True)


def _inputs(sources: Sequence[Source], tokenizer: str, rule: HeldOut) -> dict:
  """What a store depends on: the content of every local file, remote ones by size and version."""
  if tokenizer == "store":
    raise UserError("tokenizer=store is for a finished store as source; give bytes or bpe:<vocab>")
  described = tokenizer
  if tokenizer.startswith("bpe:"):
    vocab_size_of(tokenizer)
  elif tokenizer != "bytes":
    described = tokenizers.load(tokenizer).fingerprint
  files = [corpus.content_of(source) for source in [*sources, *rule.sources(sources)]]
  return {
    "version": VERSION,
    "sources": [source.to_dict() for source in sources],
    "files": files,
    "tokenizer": described,
    "held_out": asdict(rule),
  }


def _key(inputs: dict) -> str:
  return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _label(sources: Sequence[Source]) -> str:
  """A name for people: what the first source is called, in letters that any file system takes."""
  first = sources[0]
  name = first.domain or file_label(first.path)
  return re.sub(r"[^\w-]+", "", name)[:40] or "corpus"
