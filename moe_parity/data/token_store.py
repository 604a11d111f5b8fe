"""Tokens on disk: Megatron's .bin/.idx pairs, and a manifest that says what they are.

A store is a folder: train-00000.bin, train-00000.idx and further shards, the same for validation,
one .documents.npz a split (bytes, characters, domain and source of every document), tokenizer.json
and manifest.json, which has the sha256 of each. It may lie on a bucket (gs://): then a host copies
it once and checks every hash.

A document is stored as `bos text eos` (`text eos` where the vocabulary has one separator only), all
documents of a split one after the other. Row i of a split at seq_len S is tokens i*S ... (i+1)*S,
one more than S, so that every token but the first is the target of exactly one row.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_parity.data import checked_json, storage
from moe_parity.data.checked_npz import read_arrays
from moe_parity.data.fingerprint import documents_sha256
from moe_parity.data.manifest import MANIFEST, SPLITS, files_of, read_manifest
from moe_parity.data.shards import TokenStream
from moe_parity.data.tokenizer import Tokenizer, load
from moe_parity.errors import UserError
from moe_parity.fields.table import DOMAIN_NAME


def write_documents(
  path: str | Path, columns: dict[str, np.ndarray], names: dict[str, list]
) -> None:
  """Per-document arrays, with the names that `domain` and `source` are indices into."""
  text = np.frombuffer(json.dumps(names).encode(), np.uint8)
  np.savez(path, names=text, **columns)


_NAMES = {"domains": [DOMAIN_NAME], "sources": [str]}


def read_documents(path: Path, count: int) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
  """(columns, names) that `write_documents` wrote, checked: `count` documents, numbers in range.

  Raises:
    UserError: the file is damaged or does not fit.
  """
  stored = ("num_bytes", "num_chars", "domain", "source", "origin")
  again = "prepare the store again"
  columns = read_arrays(path, ("names", *stored), again)
  text = columns.pop("names").tobytes()
  names = checked_json.parse(text, _NAMES, str(path), again)
  for key, column in columns.items():
    limit = len(names[f"{key}s"]) if f"{key}s" in names else None
    if column.shape != (count,) or column.dtype.kind not in "iu":
      raise UserError(f"{path} is damaged ({key} is not {count:,} integers); {again}")
    if count and (column.min() < 0 or (limit is not None and column.max() >= limit)):
      raise UserError(f"{path} is damaged ({key} is out of range); {again}")
  return columns, {name: tuple(listed) for name, listed in names.items()}


@dataclass(frozen=True)
class Documents:
  """What the store remembers of each document. Arrays are [documents], in stream order.

  num_tokens counts what is stored, separators included; num_text_tokens only the text's. `domain`
  and `source` index `domains` and `sources`; `origin` is the number of the corpus a document is of.
  """

  num_tokens: np.ndarray
  num_text_tokens: np.ndarray
  num_bytes: np.ndarray
  num_chars: np.ndarray
  domain: np.ndarray
  source: np.ndarray
  origin: np.ndarray
  domains: tuple[str, ...]
  sources: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.num_tokens)


class Split:
  """One stream of tokens, mapped from disk and read as rows or as documents.

  `tokens` is sliced as one array, whatever the shards; `location` is the store's path or URL.
  """

  def __init__(self, folder: Path, location: str, name: str, entry: dict, tokenizer: Tokenizer):
    self.folder, self.location = folder, location
    self.name, self.entry, self.tokenizer = name, entry, tokenizer
    self.tokens = TokenStream(folder, [shard["name"] for shard in entry["shards"]])
    self.num_tokens = len(self.tokens)
    self._lengths = self.tokens.lengths
    self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
    self._documents: Documents | None = None

  @property
  def num_documents(self) -> int:
    return len(self._lengths)

  @property
  def fingerprint(self) -> str:
    """sha256 of the stream, however it is cut into shards: equal in runs that read the same."""
    return self.entry["sha256"]

  @property
  def lost(self) -> dict[str, int]:
    """What the ids do not give back of the text: {"num_documents", "num_chars", "num_bytes"}."""
    return self.entry["lost"]

  @property
  def document_starts(self) -> np.ndarray:
    """int64 [documents + 1]: where each document begins in the stream, and the end."""
    return self._starts

  @property
  def documents(self) -> Documents:
    """Bytes, characters, domain and source of every document; read on first use."""
    if self._documents is None:
      columns, names = read_documents(
        self.folder / f"{self.name}.documents.npz", len(self._lengths)
      )
      self._documents = Documents(
        num_tokens=self._lengths,
        num_text_tokens=self._lengths - self._num_separators,
        domains=names["domains"],
        sources=names["sources"],
        **columns,
      )
    return self._documents

  @property
  def _num_separators(self) -> int:
    return 1 + (self.tokenizer.bos_id != self.tokenizer.eos_id)

  def check_content(self) -> None:
    """See `TokenStore.check_content`."""
    digest = self.tokens.sha256()
    smallest, largest = self.tokens.range()
    size = self.tokenizer.vocab_size
    documents, entry = self.documents, self.entry
    sums = {
      "num_documents": len(documents),
      "num_tokens": self.num_tokens,
      "num_bytes": int(documents.num_bytes.sum()),
      "num_chars": int(documents.num_chars.sum()),
    }
    problem = ""
    if digest != entry["sha256"]:
      problem = f"its tokens have sha256 {digest[:12]}, the manifest states {entry['sha256'][:12]}"
    elif smallest < 0 or largest >= size:
      problem = f"it holds the ids {smallest} to {largest}, its tokenizer has {size}"
    elif wrong := [name for name, total in sums.items() if total != entry[name]]:
      problem = f"{wrong[0]} is {sums[wrong[0]]:,}, the manifest states {entry[wrong[0]]:,}"
    elif not np.all(self.tokens.at(self._starts[1:] - 1) == self.tokenizer.eos_id):
      problem = "a document does not end in the id that ends documents"
    if problem:
      raise UserError(f"{self.folder}, {self.name}: {problem}; prepare the store again")

  def num_windows(self, seq_len: int) -> int:
    """Whole rows of seq_len targets; the tail that fills no row is never read."""
    return max(0, (self.num_tokens - 1) // seq_len)

  def row(self, window: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of one window: targets are the inputs' next tokens."""
    text = self.tokens[window * seq_len : (window + 1) * seq_len + 1]
    return text[:-1], text[1:]

  def rows(self, windows: np.ndarray | Sequence[int], seq_len: int) -> np.ndarray:
    """int32 [windows, seq_len + 1]: the tokens of each window."""
    windows = np.asarray(windows, np.int64)
    out = np.empty((len(windows), seq_len + 1), np.int32)
    limit = self.num_windows(seq_len)
    for row, window in zip(out, windows, strict=True):
      if not 0 <= window < limit:
        raise IndexError(f"window {window} of {limit}")
      row[:] = self.tokens[window * seq_len : (window + 1) * seq_len + 1]
    return out

  def document(self, index: int) -> np.ndarray:
    """Ids of one document's text, without separators."""
    start = self._starts[index] + self._num_separators - 1
    return np.asarray(self.tokens[start : self._starts[index + 1] - 1])


@dataclass(frozen=True)
class TokenStore:
  """An opened store. Build one with `open_store`, fill a folder with `prepare.prepare`.

  `folder` is local; `location` is where the store was asked for, which may be on a bucket.
  """

  folder: Path
  location: str
  manifest: dict
  tokenizer: Tokenizer
  train: Split
  validation: Split

  def check_content(self) -> None:
    """Reads every token and every document's counts: do they fit the manifest and each other?

    Raises:
      UserError: a stream without the hash the manifest states, an id outside of the vocabulary, a
        document without its separators, or counts that do not add up.
    """
    for split in (self.train, self.validation):
      split.check_content()

  def fingerprint(self) -> dict[str, str]:
    """Hashes of everything in this store that a result can depend on, to be kept by a run.

    Equal dicts mean: the same tokenizer, the same training and held-out tokens, and for every
    document the same bounds, bytes, characters and domain. Where the store is, how it is cut into
    shards and when it was made play no part. `data.fingerprint.check_same_data` compares two.

    Returns:
      sha256 in hex of each part, plain JSON: {"tokenizer", "train_tokens", "train_documents",
      "validation_tokens", "validation_documents"}. The hashes of tokens are those of the manifest;
      `open_store(verify=True)`, as in `prepare` and `open_data`, proves that the files have them.
    """
    hashes = {"tokenizer": self.tokenizer.fingerprint}
    for split in (self.train, self.validation):
      table = split.documents
      sizes = (table.num_tokens, table.num_bytes, table.num_chars)
      hashes[f"{split.name}_tokens"] = split.fingerprint
      hashes[f"{split.name}_documents"] = documents_sha256(sizes, table.domain, table.domains)
    return hashes


def open_store(
  location: str | Path, tokenizer: Tokenizer | None = None, verify: bool = False
) -> TokenStore:
  """Opens a store after checking names, shapes and the size of every file.

  With `verify` the sha256 of every file too, and `TokenStore.check_content`.

  Args:
    location: a folder, or one with a scheme such as gs://, which is copied to the cache and
      verified the first time.
    tokenizer: the one the caller means to use; must be the one the store was made with.
  Raises:
    UserError: no store, a file missing or damaged, or another tokenizer.
  """
  folder = _fetch(str(location)) if storage.is_remote(location) else Path(location)
  manifest = read_manifest(folder)
  check_files(folder, manifest, verify)
  stored = load(folder / "tokenizer.json")
  expected = manifest["tokenizer"]["fingerprint"]
  if stored.fingerprint != expected:
    raise UserError(f"{folder}/tokenizer.json is not the store's tokenizer; prepare it again")
  ids = ("vocab_size", "bos_id", "eos_id", "pad_id")
  if wrong := [name for name in ids if getattr(stored, name) != manifest["tokenizer"][name]]:
    raise UserError(
      f"{folder}: the tokenizer's {wrong[0]} is {getattr(stored, wrong[0])}, the manifest states"
      f" {manifest['tokenizer'][wrong[0]]}; prepare the store again"
    )
  stored.name = manifest["tokenizer"]["name"]
  if tokenizer is not None and tokenizer.fingerprint != expected:
    raise UserError(
      f"{location} was made with tokenizer {stored.name} ({expected[:12]}), not {tokenizer.name} "
      f"({tokenizer.fingerprint[:12]}); use the store's own or prepare a new store"
    )
  splits = [Split(folder, str(location), name, manifest["splits"][name], stored) for name in SPLITS]
  opened = TokenStore(folder, str(location), manifest, stored, *splits)
  if verify:
    opened.check_content()
  return opened


def is_store(location: str | Path) -> bool:
  """Whether there is a finished store: its manifest is written last."""
  return storage.is_token_store(location)


def check_files(folder: Path, manifest: dict, verify: bool) -> None:
  """Compares the files with the manifest; hashing reads all of them, on every core."""
  listed = [file for name in SPLITS for file in files_of(manifest, name).items()]
  for name, entry in listed:
    _check_size(folder / name, entry["size"])
  if verify:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      digests = pool.map(lambda file: storage.sha256_of(folder / file[0]), listed)
      for (name, entry), sha256 in zip(listed, digests, strict=True):
        if sha256 != entry["sha256"]:
          raise UserError(
            f"{folder / name} does not have the sha256 in its manifest; prepare the store again"
          )


def _check_size(path: Path, expected: int) -> None:
  if not path.is_file():
    raise UserError(f"{path} is missing; prepare the store again")
  size = os.path.getsize(path)
  if size != expected:
    raise UserError(f"{path} has {size} bytes, its manifest says {expected}; prepare it again")


def _fetch(location: str) -> Path:
  """The local copy of a store on a bucket: made and verified once a host, then reused."""
  manifest = read_manifest(location)
  name = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
  folder = storage.cache_folder() / f"copy-{name[:16]}"
  with storage.locked(folder):
    if not folder.exists():
      part = folder.with_name(f".{folder.name}.part")
      files = [file for split in SPLITS for file in files_of(manifest, split)]
      storage.download(location, [*files, "tokenizer.json", "inputs.json", MANIFEST], part)
      check_files(part, manifest, verify=True)
      os.rename(part, folder)
  return folder
