"""What a token store holds, as hashes of its content: equal hashes mean equal data, wherever it is.

A run stores the fingerprint of its token store, and resuming, scoring and audits compare. Paths,
sizes, dates, the order of domain names and the cut into shards play no part.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from moe_parity.errors import UserError

_MEANING = {
  "tokenizer": "the tokenizer",
  "train_tokens": "the training tokens",
  "train_documents": "bounds, sizes or domains of the training documents",
  "validation_tokens": "the held-out tokens",
  "validation_documents": "bounds, sizes or domains of the held-out documents",
}


def changed_parts(kept: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
  """One phrase for every part that differs: 'the held-out tokens (0123456789ab, now fedcba987654)'.

  Empty where both name the same data. A part that only one of them has differs.
  """
  names = [name for name in (*_MEANING, *kept, *found) if kept.get(name) != found.get(name)]
  return [
    f"{_MEANING.get(name, name)} ({_short(kept.get(name))}, now {_short(found.get(name))})"
    for name in dict.fromkeys(names)
  ]


def check_same_data(
  kept: Mapping[str, str], found: Mapping[str, str], whose: str, where: str
) -> None:
  """Refuses data that is not what a run was made with.

  Args:
    kept: the fingerprint in the run's folder.
    found: that of the opened store.
    whose: what the error calls the run, such as its folder.
    where: what the error calls the store, such as its location.
  Raises:
    UserError: they differ; the message names each part.
  """
  if parts := changed_parts(kept, found):
    raise UserError(
      f"{whose} was made with other data than {where} has now: {'; '.join(parts)}; put the old text"
      f" and tokenizer back, or start a new run"
    )


def _short(value: str | None) -> str:
  return value[:12] if value else "none"


def documents_sha256(
  sizes: Sequence[np.ndarray], domain: np.ndarray, domains: Sequence[str]
) -> str:
  """sha256 over the documents of a split, in stream order.

  Args:
    sizes: tokens, bytes and characters, each int [documents].
    domain: int [documents], indices into `domains`. Names are hashed in the order in which they
      first occur: the stored numbers depend on what else was in the corpus.
  """
  digest = hashlib.sha256()
  for column in sizes:
    digest.update(np.ascontiguousarray(column, "<i8").data)
  numbers, first, inverse = np.unique(domain, return_index=True, return_inverse=True)
  by_place = np.argsort(first)
  rank = np.empty(len(numbers), "<i8")
  rank[by_place] = np.arange(len(numbers))
  digest.update(np.ascontiguousarray(rank[inverse]).data)
  for number in numbers[by_place]:
    name = domains[int(number)].encode("utf-8", "surrogatepass")
    digest.update(len(name).to_bytes(8, "little") + name)
  return digest.hexdigest()
