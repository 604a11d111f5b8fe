"""Tokens on disk: Megatron's .bin/.idx pair, and a manifest that says what they are.

A store is a folder: train.bin, train.idx, validation.bin, validation.idx, one .documents.npz a
split (bytes, characters, domain and source of every document), tokenizer.json and manifest.json.

A document is stored as `bos text eos` (`text eos` where the vocabulary has one separator only), all
documents of a split one after the other. Row i of a split at seq_len S is tokens i*S ... (i+1)*S,
one more than S, so that every token but the first is the target of exactly one row.

The .idx is MMapIndexedDataset version 1: b"MMIDIDX\\0\\0", uint64 version, uint8 dtype code (8
is uint16, 4 is int32), uint64 sequences, uint64 length of the last array; then int32 lengths, int64
byte offsets, int64 document boundaries. A document is one sequence. All is little endian.
"""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_parity.data.tokenizer import Tokenizer, load
from moe_parity.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
_HEADER = struct.Struct("<9sQBQQ")
FORMAT = "moe_parity token store"
VERSION = 1
SPLITS = ("train", "validation")


def sha256_of(path: str | Path) -> str:
  """Hex sha256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(path: str | Path, lengths: np.ndarray, dtype: np.dtype) -> None:
  """The .idx of documents of these lengths, stored back to back."""
  code = next(code for code, kind in DTYPES.items() if kind == np.dtype(dtype).newbyteorder("<"))
  lengths = np.asarray(lengths, np.int64)
  if lengths.size and lengths.max() > np.iinfo(np.int32).max:
    raise UserError(f"a document of {lengths.max()} tokens is over the format's 2^31 - 1; split it")
  offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * dtype.itemsize
  with open(path, "wb") as file:
    file.write(_HEADER.pack(MAGIC, 1, code, lengths.size, lengths.size + 1))
    file.write(lengths.astype("<i4").tobytes())
    file.write(offsets[: lengths.size].astype("<i8").tobytes())
    file.write(np.arange(lengths.size + 1, dtype="<i8").tobytes())


def read_index(path: str | Path) -> tuple[np.ndarray, np.dtype]:
  """Lengths int64 [documents] and dtype of a .idx; UserError if it is damaged or not contiguous."""
  data = Path(path).read_bytes()
  if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
    raise UserError(f"{path} is not a Megatron .idx (wrong magic); prepare the store again")
  _, version, code, num_sequences, num_boundaries = _HEADER.unpack_from(data)
  if version != 1 or code not in DTYPES:
    raise UserError(f"{path}: version {version}, dtype code {code}; readable are 1 and {[*DTYPES]}")
  if len(data) != _HEADER.size + 12 * num_sequences + 8 * num_boundaries:
    raise UserError(f"{path} has {len(data)} bytes, not what its header says; prepare it again")
  lengths = np.frombuffer(data, "<i4", num_sequences, _HEADER.size).astype(np.int64)
  offsets = np.frombuffer(data, "<i8", num_sequences, _HEADER.size + 4 * num_sequences)
  expected = (np.cumsum(lengths) - lengths) * DTYPES[code].itemsize
  if not np.array_equal(offsets, expected):
    raise UserError(f"{path}: documents are not stored back to back; prepare the store again")
  return lengths, DTYPES[code]


def write_documents(
  path: str | Path, columns: dict[str, np.ndarray], names: dict[str, list]
) -> None:
  """Per-document arrays, with the names that `domain` and `source` are indices into."""
  text = np.frombuffer(json.dumps(names).encode(), np.uint8)
  np.savez(path, names=text, **columns)


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
  """One stream of tokens, mapped from disk and read as rows or as documents."""

  def __init__(self, folder: Path, name: str, entry: dict, tokenizer: Tokenizer):
    self.name, self.folder, self.entry, self.tokenizer = name, folder, entry, tokenizer
    self._lengths, dtype = read_index(folder / f"{name}.idx")
    self.num_tokens = int(self._lengths.sum())
    self.tokens = np.memmap(folder / f"{name}.bin", dtype, "r", shape=(self.num_tokens,))
    self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
    self._documents: Documents | None = None

  @property
  def num_documents(self) -> int:
    return len(self._lengths)

  @property
  def fingerprint(self) -> str:
    """sha256 of the token file: two runs with the same one read the same stream."""
    return self.entry["files"][f"{self.name}.bin"]["sha256"]

  @property
  def document_starts(self) -> np.ndarray:
    """int64 [documents + 1]: where each document begins in the stream, and the end."""
    return self._starts

  @property
  def documents(self) -> Documents:
    """Bytes, characters, domain and source of every document; read on first use."""
    if self._documents is None:
      with np.load(self.folder / f"{self.name}.documents.npz") as data:
        names = json.loads(data["names"].tobytes())
        stored = ("num_bytes", "num_chars", "domain", "source", "origin")
        columns = {key: data[key] for key in stored}
      separators = 1 + (self.tokenizer.bos_id != self.tokenizer.eos_id)
      self._documents = Documents(
        num_tokens=self._lengths,
        num_text_tokens=self._lengths - separators,
        domains=tuple(names["domains"]),
        sources=tuple(names["sources"]),
        **columns,
      )
    return self._documents

  def num_windows(self, seq_len: int) -> int:
    """Whole rows of seq_len targets; the tail that fills no row is never read."""
    return max(0, (self.num_tokens - 1) // seq_len)

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
    start = self._starts[index] + (self.tokenizer.bos_id != self.tokenizer.eos_id)
    return np.asarray(self.tokens[start : self._starts[index + 1] - 1])


@dataclass(frozen=True)
class TokenStore:
  """An opened store. Build one with `open_store`, fill a folder with `prepare.prepare`."""

  folder: Path
  manifest: dict
  tokenizer: Tokenizer
  train: Split
  validation: Split


def open_store(
  folder: str | Path, tokenizer: Tokenizer | None = None, verify: bool = False
) -> TokenStore:
  """Opens a store after checking the size of every file, and with `verify` its sha256.

  Args:
    tokenizer: the one the caller means to use; must be the one the store was made with.
  Raises:
    UserError: no store, a file missing or damaged, or another tokenizer.
  """
  folder = Path(folder)
  try:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"{folder} is no token store (no manifest.json); run `moe-parity prepare`"
    ) from None
  except ValueError as error:
    raise UserError(
      f"{folder}/manifest.json is damaged ({error}); prepare the store again"
    ) from None
  if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
    raise UserError(
      f"{folder}/manifest.json is {manifest.get('format')!r} version {manifest.get('version')}; "
      f"this program reads {FORMAT!r} version {VERSION}: prepare the store again"
    )
  entries = {name: manifest["splits"][name]["files"] for name in SPLITS}
  for name, entry in [file for files in entries.values() for file in files.items()]:
    _check_file(folder / name, entry, verify)
  stored = load(folder / "tokenizer.json")
  expected = manifest["tokenizer"]["fingerprint"]
  if stored.fingerprint != expected:
    raise UserError(f"{folder}/tokenizer.json is not the store's tokenizer; prepare it again")
  stored.name = manifest["tokenizer"]["name"]
  if tokenizer is not None and tokenizer.fingerprint != expected:
    raise UserError(
      f"{folder} was made with tokenizer {stored.name} ({expected[:12]}), not {tokenizer.name} "
      f"({tokenizer.fingerprint[:12]}); use the store's own or prepare a new store"
    )
  train, validation = (Split(folder, name, manifest["splits"][name], stored) for name in SPLITS)
  return TokenStore(folder, manifest, stored, train, validation)


def _check_file(path: Path, entry: dict, verify: bool) -> None:
  if not path.is_file():
    raise UserError(f"{path} is missing; prepare the store again")
  size = os.path.getsize(path)
  if size != entry["size"]:
    raise UserError(f"{path} has {size} bytes, its manifest says {entry['size']}; prepare it again")
  if verify and sha256_of(path) != entry["sha256"]:
    raise UserError(f"{path} does not have the sha256 in its manifest; prepare the store again")
