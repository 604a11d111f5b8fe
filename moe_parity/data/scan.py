"""First reading of a corpus: what each document is, which are duplicates, which are held out.

Only digests and counts are kept, so the corpus may be larger than memory. Everything later follows
from this table: which text trains the tokenizer, where parts begin, what a resumed run has done.
"""

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_parity import files
from moe_parity.data import checked_json, corpus
from moe_parity.data.checked_npz import read_arrays
from moe_parity.data.corpus import BUILTIN, Source, check_keys, parse_sources
from moe_parity.data.readers import BadRecords, Document
from moe_parity.errors import UserError, nearest
from moe_parity.escapes import escape, split, unescape
from moe_parity.fields.check import check_value
from moe_parity.fields.table import DOMAIN_NAME

TRAIN, VALIDATION, DROPPED = 0, 1, -1
DIGEST_BYTES = 16
_PROGRESS_DOCUMENTS = 256
_COLUMNS = ("digest", "num_bytes", "num_chars", "domain", "source", "origin", "split")
_NAMES = {
  "domains": [DOMAIN_NAME], "sources": [str], "bad_records": int, "bad_bytes": int,
  "bad_messages": [str],
}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
  """What becomes the validation split.

  One rule: `fraction` of the documents, chosen by the hash of their text; `works`, names or
  patterns of the `source` field; or another `source`. Without one, the built-in corpus's own split.
  """

  fraction: float = 0.0
  works: tuple[str, ...] = ()
  source: str = ""

  @classmethod
  def parse(cls, rule: str, sources: Sequence[Source]) -> "HeldOut":
    r"""'hash:0.01', 'works:Macbeth,The Tempest', 'source:path', or '' for the default.

    The default is the corpus's own split for 'builtin' alone, otherwise 'hash:0.01'. A name with a
    comma is written `works:Tempest\, The`; a work named `Hamlet [2nd ed.]` is found by that name or
    by a pattern.

    Raises:
      UserError: no such rule (the row of `data.held_out`), or a source that says nothing.
    """
    if rule == "":
      return cls() if [s.path for s in sources] == [BUILTIN] else cls(fraction=0.01)
    check_value("data.held_out", rule)
    kind, _, value = rule.partition(":")
    if kind == "hash":
      return cls(fraction=float(value))
    if kind == "works":
      return cls(works=tuple(unescape(name, pattern=True) for name in split(value, ",")))
    parse_sources(value)
    return cls(source=value)

  @property
  def rule(self) -> str:
    """As `parse` reads it, or what the default is."""
    if self.works:
      return f"works:{','.join(map(escape, self.works))}"
    if self.fraction:
      return f"hash:{self.fraction:g}"
    return f"source:{self.source}" if self.source else "the corpus's own split"

  def sources(self, others: Sequence[Source]) -> list[Source]:
    """The sources of rule 'source:', read by the keys of the corpus; [] for other rules."""
    if not self.source:
      return []
    names = ("text_key", "domain_key", "source_key")
    keys = {name: getattr(others[0], name) for name in names} if others else {}
    return parse_sources(self.source, **keys)


@dataclass(frozen=True)
class Scan:
  """One row a document, in reading order. `split` is TRAIN, VALIDATION or DROPPED (a duplicate)."""

  digest: np.ndarray
  num_bytes: np.ndarray
  num_chars: np.ndarray
  domain: np.ndarray
  source: np.ndarray
  origin: np.ndarray
  split: np.ndarray
  domains: tuple[str, ...]
  sources: tuple[str, ...]
  bad_records: int
  bad_bytes: int
  bad_messages: tuple[str, ...]

  def save(self, path: Path) -> None:
    names = {
      "domains": self.domains,
      "sources": self.sources,
      "bad_records": self.bad_records,
      "bad_bytes": self.bad_bytes,
      "bad_messages": self.bad_messages,
    }
    columns = {column: getattr(self, column) for column in _COLUMNS}
    text = np.frombuffer(json.dumps(names).encode(), np.uint8)
    files.write_npz(path, compressed=False, names=text, **columns)

  @classmethod
  def load(cls, path: Path) -> "Scan":
    again = f"delete {path.parent} and prepare again"
    columns = read_arrays(path, ("names", *_COLUMNS), again)
    names = checked_json.parse(columns.pop("names").tobytes(), _NAMES, str(path), again)
    names = {key: value if isinstance(value, int) else tuple(value) for key, value in names.items()}
    return cls(**columns, **names)


def streams(
  sources: Sequence[Source], held_out: HeldOut
) -> list[tuple[int, Source, str, int | None]]:
  """What is read, in order: (number of the source, source, split of it, split forced on it)."""
  plan: list[tuple[int, Source, str, int | None]] = []
  for number, source in enumerate([*sources, *held_out.sources(sources)]):
    for part, own_split in (("train", TRAIN), ("validation", VALIDATION)):
      if source.path != BUILTIN and part == "validation":
        continue
      forced = None
      if number >= len(sources):
        forced = VALIDATION
      elif held_out.source:
        forced = TRAIN
      elif held_out == HeldOut():
        forced = own_split
      plan.append((number, source, part, forced))
  return plan


def read(
  sources: Sequence[Source], held_out: HeldOut, bad: BadRecords
) -> Iterator[tuple[int, int | None, Document]]:
  """Every document with the number of its source and the split forced on it, in a fixed order."""
  for number, source, part, forced in streams(sources, held_out):
    if number == len(sources):  # what is held out may have the names of what is trained on
      bad.named_after.clear()
    for document in corpus.documents(source, bad, part):
      yield number, forced, document


def digest_of(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def scan(
  sources: Sequence[Source],
  held_out: HeldOut,
  max_bad_records: int = 0,
  progress: Callable[[int], None] | None = None,
) -> Scan:
  """Reads the corpus once.

  A text that occurs again is kept once: in validation if it occurs there, else where it came first.

  Args:
    progress: called now and then with the bytes of text read so far.
  Raises:
    UserError: bad records over the limit, a named work that does not exist, an empty split.
  """
  bad = BadRecords(max_bad_records)
  digests, sizes, chars, splits = bytearray(), [], [], []
  domain, source, origin = [], [], []
  domains: dict[str, int] = {}
  works: dict[str, int] = {}
  num_bytes = 0
  for number, forced, document in read(sources, held_out, bad):
    data = document.text.encode("utf-8")
    digest = digest_of(data)
    digests += digest
    sizes.append(len(data))
    chars.append(len(document.text))
    domain.append(domains.setdefault(document.domain, len(domains)))
    source.append(works.setdefault(document.source, len(works)))
    origin.append(number)
    splits.append(forced if forced is not None else _split(document, digest, held_out))
    num_bytes += len(data)
    if progress and len(sizes) % _PROGRESS_DOCUMENTS == 0:
      progress(num_bytes)
  check_keys([*sources, *held_out.sources(sources)], bad.keys)
  _check_works(held_out.works, list(works))
  table = np.frombuffer(bytes(digests), np.uint8).reshape(-1, DIGEST_BYTES)
  split = _without_duplicates(table, np.array(splits, np.int8))
  for wanted, name in ((TRAIN, "train"), (VALIDATION, "validation")):
    if not np.any(split == wanted):
      raise UserError(
        f"the {name} split is empty (of {len(sizes)} documents, held out by {held_out.rule}); "
        f"hold out another share (hash:0.1), other works, or give more documents"
      )
  return Scan(
    digest=table,
    num_bytes=np.array(sizes, np.int64),
    num_chars=np.array(chars, np.int64),
    domain=np.array(domain, np.int32),
    source=np.array(source, np.int32),
    origin=np.array(origin, np.int32),
    split=split,
    domains=tuple(domains),
    sources=tuple(works),
    bad_records=bad.count,
    bad_bytes=bad.num_bytes,
    bad_messages=tuple(bad.messages),
  )


def _split(document: Document, digest: bytes, held_out: HeldOut) -> int:
  if held_out.works:
    named = any(_is_work(document.source, pattern) for pattern in held_out.works)
    return VALIDATION if named else TRAIN
  share = int.from_bytes(digest[:8], "little") / 2.0**64
  return VALIDATION if share < held_out.fraction else TRAIN


def _is_work(name: str, pattern: str) -> bool:
  return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _check_works(patterns: Sequence[str], names: list[str]) -> None:
  for pattern in patterns:
    if not any(_is_work(name, pattern) for name in names):
      near = nearest(pattern, names, most=3, cutoff=0.4)
      hint = f"; near it: {', '.join(map(escape, near))}" if near else ""
      raise UserError(f"held-out work {pattern!r} is no source of the corpus{hint}")


def _without_duplicates(digests: np.ndarray, split: np.ndarray) -> np.ndarray:
  """The split of each document, DROPPED for all but one of those with equal digests."""
  keys = np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}").ravel()
  order = np.argsort(split != VALIDATION, kind="stable")  # validation first, reading order within
  _, first = np.unique(keys[order], return_index=True)
  new_split = np.full(split.shape, DROPPED, np.int8)
  new_split[order[first]] = split[order[first]]
  return new_split
