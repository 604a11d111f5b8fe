"""The tokens of a scanned corpus: encoded in parts on all cores, joined into the files of a store.

A part is a run of documents whose ends follow from the scan alone. It is one file, written
atomically: a killed run resumes with the parts it finds, and the number of workers changes no byte.
Workers are threads, because the encoders release the interpreter's lock.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_parity import files
from moe_parity.data.checked_npz import read_arrays
from moe_parity.data.corpus import Source
from moe_parity.data.manifest import SPLITS
from moe_parity.data.readers import BadRecords, Document
from moe_parity.data.round_trip import losses, lost_text
from moe_parity.data.scan import DROPPED, TRAIN, VALIDATION, HeldOut, Scan, digest_of, read
from moe_parity.data.shards import write_shards
from moe_parity.data.storage import sha256_of
from moe_parity.data.token_store import write_documents
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError

PART_BYTES = 8 << 20
Progress = Callable[[str, int, int], None]


class CorpusReader:
  """The corpus once more, checked against the scan."""

  def __init__(self, sources: Sequence[Source], rule: HeldOut, table: Scan):
    self._sources, self._rule, self.table = sources, rule, table

  def read(self, wanted: np.ndarray) -> Iterator[tuple[int, Document]]:
    """(row of the scan, document) for the rows that `wanted` marks."""
    last = int(np.flatnonzero(wanted)[-1]) if wanted.any() else -1
    skipped = BadRecords(limit=self.table.bad_records)
    for row, (_, _, document) in enumerate(read(self._sources, self._rule, skipped)):
      if row > last:
        return
      if wanted[row]:
        if digest_of(document.text.encode("utf-8")) != self.table.digest[row].tobytes():
          raise UserError(
            f"document {row + 1} of the corpus ({document.source}) changed while it was being "
            f"prepared; prepare again"
          )
        yield row, document


@dataclass(frozen=True)
class Part:
  """Consecutive documents of one split: rows of the scan."""

  split: int
  number: int
  rows: np.ndarray

  def path(self, work: Path) -> Path:
    return work / f"{SPLITS[self.split]}-{self.number:06d}.npz"


def split_parts(table: Scan) -> list[Part]:
  """Each split cut after every PART_BYTES of text."""
  parts = []
  for split in (TRAIN, VALIDATION):
    rows = np.flatnonzero(table.split == split)
    group = (np.cumsum(table.num_bytes[rows]) - 1) // PART_BYTES
    _, starts = np.unique(group, return_index=True)
    pieces = np.split(rows, starts[1:])
    parts += [Part(split, number, piece) for number, piece in enumerate(pieces)]
  return parts


def encode(
  work: Path,
  parts: list[Part],
  documents: CorpusReader,
  tokenizer: Tokenizer,
  workers: int,
  report: Progress,
  allow_lossy: bool = False,
) -> None:
  """Writes the parts that are not in the work folder yet.

  Args:
    allow_lossy: measures what the ids do not give back of the text, and does not refuse it.
  Raises:
    UserError: the corpus has changed, or the tokenizer does not suit it (see `round_trip`).
  """
  table = documents.table
  total = int(table.num_bytes[table.split != DROPPED].sum())
  missing = [part for part in parts if not part.path(work).is_file()]
  done = total - sum(int(table.num_bytes[part.rows].sum()) for part in missing)
  part_of = np.full(len(table.split), -1, np.int64)
  for number, part in enumerate(missing):
    part_of[part.rows] = number
  gathered: dict[int, list[str]] = {}
  running: deque[tuple[int, Future]] = deque()
  report("tokenize", done, total)
  with ThreadPoolExecutor(workers) as pool:
    for row, document in documents.read(part_of >= 0):
      number = int(part_of[row])
      texts = gathered.setdefault(number, [])
      texts.append(document.text)
      if len(texts) < len(missing[number].rows):
        continue
      path = missing[number].path(work)
      task = pool.submit(_encode_part, gathered.pop(number), path, tokenizer, allow_lossy)
      running.append((number, task))
      while len(running) > 2 * workers:
        done += _finish(running.popleft(), missing, table)
        report("tokenize", done, total)
    while running:
      done += _finish(running.popleft(), missing, table)
      report("tokenize", done, total)
  if done < total:
    raise UserError("the corpus became shorter while it was being prepared; prepare again")


def _finish(entry: tuple[int, Future], missing: list[Part], table: Scan) -> int:
  number, future = entry
  future.result()
  return int(table.num_bytes[missing[number].rows].sum())


def _encode_part(
  texts: list[str], path: Path, tokenizer: Tokenizer, allow_lossy: bool = False
) -> None:
  bos, eos = tokenizer.bos_id, tokenizer.eos_id
  before = [] if bos == eos else [np.array([bos], tokenizer.dtype)]
  after = np.array([eos], tokenizer.dtype)
  encoded = tokenizer.encode_batch(texts)
  lost = losses(tokenizer, texts, encoded, allow_lossy)
  pieces, lengths = [], []
  for ids in encoded:
    pieces += [*before, ids, after]
    lengths.append(len(ids) + len(before) + 1)
  arrays = {"tokens": np.concatenate(pieces), "lengths": np.array(lengths, np.int64), "lost": lost}
  files.write_npz(path, compressed=False, **arrays)


def join(
  work: Path, done: Path, name: str, parts: list[Part], table: Scan, tokenizer: Tokenizer
) -> dict:
  """Writes the shards and .documents.npz of one split; returns its entry in the manifest."""
  num_tokens = np.concatenate([_of_part(part, work, "lengths") for part in parts])
  tokens = (_of_part(part, work, "tokens") for part in parts)
  stream = write_shards(done, name, num_tokens, tokens, tokenizer.dtype)
  rows = np.concatenate([part.rows for part in parts])
  columns = {
    key: getattr(table, key)[rows]
    for key in ("num_bytes", "num_chars", "domain", "source", "origin")
  }
  columns["digest"] = table.digest[rows]
  names = {"domains": list(table.domains), "sources": list(table.sources)}
  write_documents(done / f"{name}.documents.npz", columns, names)
  files = {}
  for shard in stream["shards"]:
    files[f"{shard['name']}.bin"] = shard.pop("sha256")
    files[f"{shard['name']}.idx"] = sha256_of(done / f"{shard['name']}.idx")
  files[f"{name}.documents.npz"] = sha256_of(done / f"{name}.documents.npz")
  return {
    **_totals(columns, num_tokens, np.ones(len(rows), bool)),
    "by_domain": {
      domain: _totals(columns, num_tokens, columns["domain"] == index)
      for index, domain in enumerate(table.domains)
      if np.any(columns["domain"] == index)
    },
    "by_origin": [
      _totals(columns, num_tokens, columns["origin"] == index)
      for index in range(int(table.origin.max()) + 1)
    ],
    "lost": lost_text(np.concatenate([_of_part(part, work, "lost") for part in parts])),
    "dtype": tokenizer.dtype.name,
    **stream,
    "files": {
      file: {"size": (done / file).stat().st_size, "sha256": sha256}
      for file, sha256 in files.items()
    },
  }


def _of_part(part: Part, work: Path, name: str) -> np.ndarray:
  path = part.path(work)
  return read_arrays(path, (name,), f"delete {work} and prepare again")[name]


def _totals(columns: dict[str, np.ndarray], num_tokens: np.ndarray, chosen: np.ndarray) -> dict:
  return {
    "num_documents": int(chosen.sum()),
    "num_bytes": int(columns["num_bytes"][chosen].sum()),
    "num_chars": int(columns["num_chars"][chosen].sum()),
    "num_tokens": int(num_tokens[chosen].sum()),
  }
