"""A corpus and a tokenizer to a token store: cached, resumable, the same bytes however it was made.

Three readings of the corpus: `scan` (digests, duplicates, splits), the tokenizer's training text,
and the tokens. Documents keep the order of the corpus: batches are shuffled by window and a budget
of unique data is a seeded subset of windows, so nothing is gained by shuffling here, while
neighbours in a window stay of one kind.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from moe_parity.data import corpus
from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.corpus import BUILTIN, Source
from moe_parity.data.encode import Documents, cut, encode, join
from moe_parity.data.readers import open_binary
from moe_parity.data.scan import DROPPED, TRAIN, VALIDATION, HeldOut, Scan, scan
from moe_parity.data.token_store import (
  FORMAT,
  SPLITS,
  VERSION,
  TokenStore,
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

  Args:
    source: 'builtin', a file, a folder, several sources, or a finished store's folder.
    tokenizer: 'bytes', 'bpe:<vocab>' (trained on this corpus's training split), a tokenizer.json,
      or 'store' for the one a finished store has.
    store: folder to make or reuse; '' is a folder in the cache, named by content.
    held_out: 'hash:<share>', 'works:<name>,<name>' or 'source:<path>'; '' is the built-in corpus's
      own split, or hash:0.01 for others.
    max_bad_records: unreadable records before this stops; the manifest counts them.
    workers: threads that encode; 0 is one a core.
    progress: called with (stage, bytes of text done, bytes in all or 0 where unknown).
  Raises:
    UserError: bad input, or `store` holds something else.
  """
  if isinstance(source, str) and (Path(source) / "manifest.json").is_file():
    return _open_finished(Path(source), tokenizer)
  sources = [source] if isinstance(source, str | Source) else list(source)
  sources = [Source(s) if isinstance(s, str) else s for s in sources]
  rule = HeldOut.parse(held_out, sources)
  inputs = _inputs(sources, tokenizer, rule)
  folder = Path(store) if store else cache_folder() / f"{_label(sources)}-{_key(inputs)[:16]}"
  folder.parent.mkdir(parents=True, exist_ok=True)
  with _locked(folder.parent / f".{folder.name}.lock"):
    if not folder.exists() or not any(folder.iterdir()):
      _make(folder, inputs, sources, tokenizer, rule, max_bad_records, workers, progress)
    shutil.rmtree(_work(folder), ignore_errors=True)
    return _reopen(folder, inputs)


def cache_folder() -> Path:
  """Where stores without a name live: $MOE_PARITY_CACHE, or moe_parity in the user's cache."""
  base = os.environ.get("MOE_PARITY_CACHE")
  if base:
    return Path(base)
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_parity"


def _open_finished(folder: Path, tokenizer: str) -> TokenStore:
  opened = open_store(folder)
  name = opened.tokenizer.name
  if tokenizer == "store" or tokenizer == name:
    return opened
  if Path(tokenizer).is_file():
    return open_store(folder, tokenizers.load(tokenizer))
  raise UserError(f"{folder} was made with tokenizer {name}, not {tokenizer}; set tokenizer=store")


def _reopen(folder: Path, inputs: dict) -> TokenStore:
  try:
    found = json.loads((folder / "inputs.json").read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    raise UserError(
      f"{folder} exists and is no finished token store; choose another folder or delete it"
    ) from None
  if found != json.loads(json.dumps(inputs)):
    changed = [name for name in inputs if found.get(name) != json.loads(json.dumps(inputs[name]))]
    raise UserError(
      f"{folder} was made from other inputs ({', '.join(changed)}); choose another folder or "
      f"delete it"
    )
  return open_store(folder)


def _inputs(sources: Sequence[Source], tokenizer: str, rule: HeldOut) -> dict:
  """What a store depends on, cheap to gather: files by size and time, not by content."""
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
  return sources[0].path if sources[0].path == BUILTIN else Path(sources[0].path).name.split(".")[0]


def _work(folder: Path) -> Path:
  return folder.parent / f".{folder.name}.work"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  """One process at a time; the others wait and then find the finished store."""
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


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
  splits = {
    name: join(work, done, name, [p for p in parts if p.split == split], table, tokenizer)
    for name, split in zip(SPLITS, (TRAIN, VALIDATION), strict=True)
  }
  manifest = _manifest(sources, rule, table, tokenizer, splits)
  (done / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
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
    trained = tokenizers.train_bpe(_sample(documents, report), vocab_size)
    trained.save(saved.with_suffix(".part"))
    saved.with_suffix(".part").replace(saved)
  found = tokenizers.load(saved)
  found.name = spec
  return found


def _sample(documents: Documents, report: Progress) -> Iterator[str]:
  """Training documents chosen by hash, about TOKENIZER_BYTES in all."""
  table = documents.table
  train = table.split == TRAIN
  share = TOKENIZER_BYTES / max(1, int(table.num_bytes[train].sum()))
  place = np.ascontiguousarray(table.digest[:, 8:]).view("<u8").ravel() / 2.0**64
  wanted = train & (place < share)
  if not wanted.any():
    wanted = train
  total, done = int(table.num_bytes[wanted].sum()), 0
  for row, document in documents.read(wanted):
    yield document.text
    done += int(table.num_bytes[row])
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
    with open_binary(file["path"]) as data:
      sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    found.append({"path": file["path"], "bytes": file["bytes"], "sha256": sha256})
  return found
