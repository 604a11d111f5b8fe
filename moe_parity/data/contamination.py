"""Does training text contain evaluation text? Overlap of n-grams of words or characters, exact.

Words are runs of letters and digits in lower case, so layout and punctuation do not hide a copy.
Where words are not set apart by spaces, in Chinese, Japanese or Thai and in any run of over 40
letters, each character counts as half a word: an n-gram is n words, 2n such characters, or the
shortest mixture of them that weighs as much. Candidates are found by a 64-bit hash and then
compared letter by letter. A text too short for one n-gram is counted apart: nothing is said of it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from moe_parity.data.readers import Document
from moe_parity.data.token_store import Split
from moe_parity.errors import UserError

LONGEST_WORD = 40
_WORD = re.compile(r"[^\W_]+")
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai and neighbors,
# kana and bopomofo, Han, Yi, Javanese, Cham, half-width kana.
_UNSPACED = (
  "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
  "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf"
  "\ua980-\ua9df\uaa00-\uaaef\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U0003ffff"
)
_PIECE = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")
_ONE = re.compile(f"[{_UNSPACED}]")
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_KEPT_SOURCES = 3


@dataclass(frozen=True, slots=True)
class Grams:
  """The n-grams of a text: gram i is units[start ... end[i] - 1], start = i."""

  units: list[str]
  ends: np.ndarray

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, start: int) -> tuple[str, ...]:
    return tuple(self.units[start : int(self.ends[start])])


def overlap(
  train: Iterable[Document],
  evaluation: Iterable[Document],
  n: int = 13,
  progress: Callable[[int], None] | None = None,
) -> dict:
  """Counts the n-grams of each evaluation document that occur anywhere in the training text.

  Args:
    n: words in an n-gram; 13 is the usual choice (GPT-3).
    progress: called with the characters of training text read so far.
  Returns:
    {"n", "num_documents", "num_contaminated" (at least one n-gram shared), "num_too_short" (have no
    n-gram, so nothing can be said of them), "share" (of all evaluation n-grams; None where there is
    none), "by_domain": {domain: {the same}}, "documents": contaminated ones, worst first: {"index",
    "domain", "source", "num_ngrams", "num_shared", "share", "train_sources" (up to three),
    "example" (one shared n-gram)}}.
  Raises:
    UserError: n is under 1, or there is nothing to compare.
  """
  if n < 1:
    raise UserError(f"n={n} words make no n-gram; use at least 1, usually 13")
  wanted = list(evaluation)
  if not wanted:
    raise UserError("there is no evaluation text to look for; give at least one document")
  places, totals, hashes = _evaluation_grams(wanted, n)
  matches: dict[tuple[str, ...], str] = {}
  sources: list[dict[str, None]] = [{} for _ in wanted]
  num_chars = 0
  for document in train:
    grams = grams_of(document.text, n)
    for start in np.flatnonzero(np.isin(_hashes(grams), hashes)).tolist():
      gram = grams[start]
      if gram in places:
        matches[gram] = document.source
        for index in places[gram]:
          if len(sources[index]) < _KEPT_SOURCES:
            sources[index].setdefault(document.source)
    num_chars += len(document.text)
    if progress:
      progress(num_chars)
  shared = np.zeros(len(wanted), np.int64)
  example: dict[int, str] = {}
  for gram in matches:
    for index in places[gram]:
      shared[index] += 1
      example[index] = min(example.get(index, "\uffff"), " ".join(gram))
  return _report(wanted, n, totals, shared, sources, example)


def _evaluation_grams(
  documents: list[Document], n: int
) -> tuple[dict[tuple[str, ...], list[int]], np.ndarray, np.ndarray]:
  """The documents each n-gram is in, distinct n-grams of each document, and hashes of all."""
  places: dict[tuple[str, ...], list[int]] = {}
  totals = np.zeros(len(documents), np.int64)
  hashes = [np.zeros(0, np.uint64)]
  for index, document in enumerate(documents):
    grams = grams_of(document.text, n)
    distinct = {grams[start] for start in range(len(grams))}
    totals[index] = len(distinct)
    hashes.append(_hashes(grams))
    for gram in distinct:
      places.setdefault(gram, []).append(index)
  return places, totals, np.unique(np.concatenate(hashes))


def units_of(text: str) -> tuple[list[str], np.ndarray]:
  """(words and single characters in order, weight of each: 2 for a word, 1 for a character)."""
  units: list[str] = []
  weights: list[int] = []
  for run in _WORD.findall(text.lower()):
    for piece in _PIECE.findall(run):
      if len(piece) > LONGEST_WORD:
        units += piece
        weights += [1] * len(piece)
      else:
        units.append(piece)
        weights.append(1 if _is_unspaced(piece) else 2)
  return units, np.array(weights, np.int64)


def grams_of(text: str, n: int) -> Grams:
  """From every unit on, the shortest run of units that weighs n words."""
  units, weights = units_of(text)
  before = np.concatenate([[0], np.cumsum(weights)])
  ends = np.searchsorted(before, before[:-1] + 2 * n)
  return Grams(units, ends[ends <= len(units)])


def _is_unspaced(piece: str) -> bool:
  return _ONE.fullmatch(piece) is not None


def documents_of(split: Split) -> Iterator[Document]:
  """The texts of a store's split, decoded."""
  table = split.documents
  for index in range(split.num_documents):
    yield Document(
      split.tokenizer.decode(split.document(index)),
      table.domains[table.domain[index]],
      table.sources[table.source[index]],
    )


def _hashes(grams: Grams) -> np.ndarray:
  """uint64 [n-grams]: sum of unit * base^place modulo 2^64, places counted from its start."""
  if not len(grams):
    return np.zeros(0, np.uint64)
  values = np.fromiter(map(hash, grams.units), np.int64, len(grams.units)).astype(np.uint64)
  power, inverse = (
    np.cumprod(np.full(len(values), base, np.uint64), dtype=np.uint64) for base in (_BASE, _INVERSE)
  )
  before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * power, dtype=np.uint64)])
  return (before[grams.ends] - before[: len(grams)]) * inverse[: len(grams)]


def _report(
  wanted: list[Document],
  n: int,
  totals: np.ndarray,
  shared: np.ndarray,
  sources: list[dict[str, None]],
  example: dict[int, str],
) -> dict:
  def counts(rows: list[int]) -> dict:
    all_grams = int(totals[rows].sum())
    return {
      "num_documents": len(rows),
      "num_contaminated": int(np.count_nonzero(shared[rows])),
      "num_too_short": int(np.sum(totals[rows] == 0)),
      "share": int(shared[rows].sum()) / all_grams if all_grams else None,
    }

  domains: dict[str, list[int]] = {}
  for index, document in enumerate(wanted):
    domains.setdefault(document.domain, []).append(index)
  hits = sorted(np.flatnonzero(shared).tolist(), key=lambda i: (-shared[i] / totals[i], i))
  return {
    "n": n,
    **counts(list(range(len(wanted)))),
    "by_domain": {domain: counts(rows) for domain, rows in domains.items()},
    "documents": [
      {
        "index": index,
        "domain": wanted[index].domain,
        "source": wanted[index].source,
        "num_ngrams": int(totals[index]),
        "num_shared": int(shared[index]),
        "share": float(shared[index] / totals[index]),
        "train_sources": list(sources[index]),
        "example": example[index],
      }
      for index in hits
    ],
  }
