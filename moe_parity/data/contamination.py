"""Does training text contain evaluation text? Overlap of word n-grams, exact.

Words are runs of letters and digits in lower case, so layout and punctuation do not hide a copy.
Candidates are found by a 64-bit rolling hash and then compared word by word.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from moe_parity.data.readers import Document
from moe_parity.data.token_store import Split
from moe_parity.errors import UserError

_WORD = re.compile(r"[^\W_]+")
_BASE = 0x9E3779B97F4A7C15
_KEPT_SOURCES = 3


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
    {"n", "num_documents", "num_contaminated" (at least one n-gram shared), "num_too_short" (under n
    words, so never found), "share" (of all evaluation n-grams), "by_domain": {domain: {the same}},
    "documents": contaminated ones, worst first: {"index", "domain", "source", "num_ngrams",
    "num_shared", "share", "train_sources" (up to three), "example" (one shared n-gram)}}.
  Raises:
    UserError: n is under 1, or there is nothing to compare.
  """
  if n < 1:
    raise UserError(f"n={n} words make no n-gram; use at least 1, usually 13")
  wanted = list(evaluation)
  if not wanted:
    raise UserError("there is no evaluation text to look for; give at least one document")
  places: dict[tuple[str, ...], list[int]] = {}
  totals = np.zeros(len(wanted), np.int64)
  for index, document in enumerate(wanted):
    words = words_of(document.text)
    grams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    totals[index] = len(grams)
    for gram in grams:
      places.setdefault(gram, []).append(index)
  known = np.unique(np.array([_rolling(list(gram), n)[0] for gram in places], np.uint64))
  found: dict[tuple[str, ...], str] = {}
  sources: list[dict[str, None]] = [{} for _ in wanted]
  num_chars = 0
  for document in train:
    words = words_of(document.text)
    hashes = _rolling(words, n)
    at = np.searchsorted(known, hashes)
    hit = np.flatnonzero(known[np.minimum(at, known.size - 1)] == hashes) if known.size else ()
    for start in hit:
      gram = tuple(words[start : start + n])
      if gram in places:
        found[gram] = document.source
        for index in places[gram]:
          if len(sources[index]) < _KEPT_SOURCES:
            sources[index].setdefault(document.source)
    num_chars += len(document.text)
    if progress:
      progress(num_chars)
  shared = np.zeros(len(wanted), np.int64)
  example: dict[int, str] = {}
  for gram in found:
    for index in places[gram]:
      shared[index] += 1
      example[index] = min(example.get(index, "\uffff"), " ".join(gram))
  return _report(wanted, n, totals, shared, sources, example)


def words_of(text: str) -> list[str]:
  """Runs of letters and digits, in lower case."""
  return _WORD.findall(text.lower())


def documents_of(split: Split) -> Iterator[Document]:
  """The texts of a store's split, decoded."""
  table = split.documents
  for index in range(split.num_documents):
    yield Document(
      split.tokenizer.decode(split.document(index)),
      table.domains[table.domain[index]],
      table.sources[table.source[index]],
    )


def _rolling(words: list[str], n: int) -> np.ndarray:
  """uint64 hash of every run of n words: sum of word * base^place modulo 2^64."""
  count = len(words) - n + 1
  if count < 1:
    return np.zeros(0, np.uint64)
  values = np.fromiter(map(hash, words), np.int64, len(words)).astype(np.uint64)
  total = np.zeros(count, np.uint64)
  for place in range(n):
    total = total * np.uint64(_BASE) + values[place : place + count]
  return total


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
      "share": int(shared[rows].sum()) / all_grams if all_grams else 0.0,
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
