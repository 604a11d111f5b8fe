"""A corpus and a tokenizer to a token store: cached, resumable, the same bytes however it was made.

Three readings of the corpus: `scan` (digests, duplicates, splits), the tokenizer's training text,
and the tokens. Documents keep the order of the corpus: batches are shuffled by window and a budget
of unique data is a seeded subset of windows, so nothing is gained by shuffling here, while
neighbours in a window stay of one kind.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moe_parity.data import corpus, storage
from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.corpus import BUILTIN, Source, parse_sources
from moe_parity.data.encode import Documents, cut, encode, join
from moe_parity.data.scan import DROPPED, TRAIN, VALIDATION, HeldOut, Scan, scan
from moe_parity.data.token_store import (
  FORMAT,
  MANIFEST,
  SPLITS,
  VERSION,
  TokenStore,
  is_store,
  open_store,
)
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError

TOKENIZER_BYTES = (
  100_000_000  # text a BPE is trained on: twice that gains under 0.5 % bytes a token
)
Progress = Callable[[str, int, int], None]


def prepare(
  source: str | Source | Sequence[Source] = BUILTIN,
  tokenizer: str = "bytes",
  store: str = "",
  *,
  held_out: str = "",
  max_bad_records: int = 0,
  workers: int = 0,
  progress: Progress | None = None,
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
  Raises:
    UserError: bad input, or `store` holds something else.
  """
  if max_bad_records < 0 or workers < 0:
    raise UserError(f"max_bad_records={max_bad_records} and workers={workers} must be at least 0")
  if isinstance(source, str):
    sources = parse_sources(source)
  else:
    sources = [source] if isinstance(source, Source) else list(source)
  stores = [given.path for given in sources if is_store(given.path)]
  if stores and len(sources) > 1:
    raise UserError(f"{stores[0]} is a token store: give it alone, or the text it was made from")
  if stores:
    return _open_finished(stores[0], tokenizer)
  rule = HeldOut.parse(held_out, sources)
  inputs = _inputs(sources, tokenizer, rule)
  label = f"{_label(sources)}-{_key(inputs)[:16]}"
  location = store or str(storage.cache_folder() / label)
  folder = storage.cache_folder() / label if storage.is_remote(location) else Path(location)
  with storage.locked(folder):
    made = is_store(location) if storage.is_remote(location) else _is_occupied(folder)
    if not made and not is_store(folder):
      _make(folder, inputs, sources, tokenizer, rule, max_bad_records, workers, progress)
    if not made and storage.is_remote(location):
      _publish(folder, location, progress)
    shutil.rmtree(_work(folder), ignore_errors=True)
    return _reopen(location, inputs)


def open_data(data: Any, progress: Progress | None = None) -> TokenStore:
  """The store that a config's `data` section means, made first where it is not there yet."""
  keys = {name: data[name] for name in ("text_key", "domain_key", "source_key")}
  return prepare(
    parse_sources(data.source, **keys),
    data.tokenizer,
    data.store,
    held_out=data.held_out,
    max_bad_records=data.max_bad_records,
    progress=progress,
  )


def _is_occupied(folder: Path) -> bool:
  return folder.exists() and any(folder.iterdir())


def _publish(folder: Path, location: str, progress: Progress | None) -> None:
  """A finished local store to a bucket; the manifest goes last, so that half a store is none."""
  total = sum(path.stat().st_size for path in folder.iterdir())
  report = progress or (lambda stage, done, total: None)
  storage.upload(folder, location, MANIFEST, lambda done: report("copy", done, total))
  shutil.rmtree(folder)


def _open_finished(location: str, tokenizer: str) -> TokenStore:
  opened = open_store(location, verify=True)
  name = opened.tokenizer.name
  if tokenizer == "store" or tokenizer == name:
    return opened
  if Path(tokenizer).is_file():
    return open_store(location, tokenizers.load(tokenizer))
  raise UserError(
    f"{location} was made with tokenizer {name}, not {tokenizer}; set tokenizer=store"
  )


def _reopen(location: str, inputs: dict) -> TokenStore:
  try:
    found = json.loads(storage.read_text(storage.join(location, "inputs.json")))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    raise UserError(
      f"{location} exists and is no finished token store; choose another folder or delete it"
    ) from None
  wanted = json.loads(json.dumps(inputs))
  if found != wanted:
    changed = [name for name in wanted if found.get(name) != wanted[name]]
    raise UserError(
      f"{location} was made from other inputs ({', '.join(changed)}); choose another folder or "
      f"delete it, or give it as the source to use it as it is"
    )
  return open_store(location, verify=True)


def _inputs(sources: Sequence[Source], tokenizer: str, rule: HeldOut) -> dict:
  """What a store depends on, cheap to gather: files by size and time, not by content."""
  if tokenizer == "store":
    raise UserError("tokenizer=store is for a finished store as source; give bytes or bpe:<vocab>")
  described = tokenizer
  if tokenizer not in ("bytes",) and not tokenizer.startswith("bpe:"):
    described = tokenizers.load(tokenizer).fingerprint
  files = [corpus.files(source) for source in sources]
  if rule.source:
    files.append(corpus.files(Source(rule.source)))
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
  name = first.domain or Path(first.path).name.split(".")[0]
  return re.sub(r"[^\w-]+", "", name) or "corpus"


def _work(folder: Path) -> Path:
  return folder.parent / f".{folder.name}.work"


def _make(
  folder: Path,
  inputs: dict,
  sources: Sequence[Source],
  spec: str,
  rule: HeldOut,
  max_bad_records: int,
  workers: int,
  progress: Progress | None,
) -> None:
  work = _work(folder)
  _claim(work, inputs)
  report = progress or (lambda stage, done, total: None)
  if (work / "scan.npz").is_file():
    table = Scan.load(work / "scan.npz")
  else:
    table = scan(sources, rule, max_bad_records, lambda done: report("read", done, 0))
    table.save(work / "scan.npz")
  kept = int(table.num_bytes[table.split != DROPPED].sum())
  report("read", kept, kept)
  documents = Documents(sources, rule, table)
  tokenizer = _tokenizer(spec, work, documents, report)
  parts = cut(table)
  encode(work, parts, documents, tokenizer, workers or os.cpu_count() or 1, report)
  done = work / "store"
  shutil.rmtree(done, ignore_errors=True)
  done.mkdir()
  tokenizer.save(done / "tokenizer.json")
  report("write", 0, kept)
  splits = {
    name: join(work, done, name, [p for p in parts if p.split == split], table, tokenizer)
    for name, split in zip(SPLITS, (TRAIN, VALIDATION), strict=True)
  }
  manifest = _manifest(sources, rule, table, tokenizer, splits)
  report("write", kept, kept)
  (done / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
  (done / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n", "utf-8")
  os.rename(done, folder)


def _claim(work: Path, inputs: dict) -> None:
  """The work folder of these inputs; leftovers of other inputs are removed."""
  record = work / "inputs.json"
  if not record.is_file() or record.read_text() != json.dumps(inputs):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    record.write_text(json.dumps(inputs))


def _tokenizer(spec: str, work: Path, documents: Documents, report: Progress) -> Tokenizer:
  if spec == "bytes":
    return tokenizers.byte_tokenizer()
  if not spec.startswith("bpe:"):
    return tokenizers.load(spec)
  saved = work / "tokenizer.json"
  if not saved.is_file():
    try:
      vocab_size = int(spec.removeprefix("bpe:"))
    except ValueError:
      raise UserError(f"tokenizer={spec!r}: use bpe:<vocab>, such as bpe:32768") from None
    wanted = _sample(documents.table)
    total = int(documents.table.num_bytes[wanted].sum())
    trained = tokenizers.train_bpe(_texts(documents, wanted, total, report), vocab_size)
    report("train tokenizer", total, total)
    trained.save(saved.with_suffix(".part"))
    saved.with_suffix(".part").replace(saved)
  found = tokenizers.load(saved)
  found.name = spec
  return found


def _sample(table: Scan) -> np.ndarray:
  """Training documents chosen by hash, about TOKENIZER_BYTES in all: bool [documents]."""
  train = table.split == TRAIN
  share = TOKENIZER_BYTES / max(1, int(table.num_bytes[train].sum()))
  place = np.ascontiguousarray(table.digest[:, 8:]).view("<u8").ravel() / 2.0**64
  wanted = train & (place < share)
  return wanted if wanted.any() else train


def _texts(documents: Documents, wanted: np.ndarray, total: int, report: Progress) -> Iterator[str]:
  done = 0
  for row, document in documents.read(wanted):
    yield document.text
    done += int(documents.table.num_bytes[row])
    report("train tokenizer", done, total)


def _manifest(
  sources: Sequence[Source], rule: HeldOut, table: Scan, tokenizer: Tokenizer, splits: dict
) -> dict:
  dropped = table.split == DROPPED
  origins = [*sources, *([Source(rule.source)] if rule.source else [])]
  return {
    "format": FORMAT,
    "version": VERSION,
    "tokenizer": {
      "name": tokenizer.name,
      "fingerprint": tokenizer.fingerprint,
      "vocab_size": tokenizer.vocab_size,
      "bos_id": tokenizer.bos_id,
      "eos_id": tokenizer.eos_id,
      "pad_id": tokenizer.pad_id,
    },
    "origins": [{**origin.to_dict(), "files": _hashed(origin)} for origin in origins],
    "held_out": asdict(rule),
    "duplicates": {
      "num_documents": int(dropped.sum()),
      "num_bytes": int(table.num_bytes[dropped].sum()),
    },
    "bad_records": {"count": table.bad_records, "messages": list(table.bad_messages)},
    "splits": splits,
  }


def _hashed(source: Source) -> list[dict]:
  """Files of a source by content: what the manifest vouches for."""
  if source.path == BUILTIN:
    return corpus.files(source)
  found = []
  for file in corpus.files(source):
    sha256 = storage.sha256_of(file["path"])
    found.append({"path": file["path"], "bytes": file["bytes"], "sha256": sha256})
  return found
