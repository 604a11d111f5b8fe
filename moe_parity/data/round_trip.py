"""Do the ids of a text give the text back? Tested on every document while it is encoded.

Bits per character divide by the characters of the original text. Where ids do not hold all of it, a
model is never asked for the rest, and the score is too good: such a tokenizer is refused, or its
loss is counted and reported with the score.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError

ALLOW = "--allow-lossy-tokenizer (data.allow_lossy_tokenizer=true in a config)"
_TWICE = 4  # documents of a part that are encoded twice, to find a tokenizer that draws lots


def losses(
  tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[np.ndarray], allow: bool
) -> np.ndarray:
  """int64 [documents, 2]: characters and bytes of each text that its ids do not give back.

  A character is lost where the text has more of it than what the ids decode to; a text that comes
  back changed without that, such as in another order, counts as one character lost.

  Raises:
    UserError: something is lost and `allow` is false; the ids of a text hold the id that ends or
      begins a document; the same text gets other ids the second time.
  """
  lost = np.zeros((len(texts), 2), np.int64)
  if tokenizer.is_bytes:
    return lost
  _check_repeatable(tokenizer, texts[:_TWICE], encoded[:_TWICE])
  for row, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
    for name, index in (("ends", tokenizer.eos_id), ("begins", tokenizer.bos_id)):
      if np.any(ids == index):
        raise UserError(
          f"tokenizer {tokenizer.name}: the text {_excerpt(text)} itself holds the id {index} that"
          f" {name} a document; mark that token as special in its tokenizer.json"
        )
    if not tokenizer.gives_back(text, ids):
      lost[row] = _lost(text, tokenizer.decode(ids))
      if not allow:
        raise UserError(_refusal(tokenizer, text, ids))
  return lost


def lost_text(lost: np.ndarray) -> dict[str, int]:
  """Totals of a split, for its manifest, from `losses` of its documents."""
  num_chars, num_bytes = (int(total) for total in lost.sum(0))
  num_documents = int(np.count_nonzero(lost[:, 0]))
  return {"num_documents": num_documents, "num_chars": num_chars, "num_bytes": num_bytes}


def _check_repeatable(
  tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[np.ndarray]
) -> None:
  again = tokenizer.encode_batch(texts)
  if not all(map(np.array_equal, again, encoded)):
    raise UserError(
      f"tokenizer {tokenizer.name} gives the same text other ids every time; use one that does not"
      f" draw lots (dropout, sampling)"
    )


def _lost(text: str, back: str) -> tuple[int, int]:
  missing = Counter(text) - Counter(back)
  num_bytes = sum(len(letter.encode("utf-8")) * count for letter, count in missing.items())
  return max(1, missing.total()), max(1, num_bytes)


def _refusal(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> str:
  back = tokenizer.decode(ids)
  same = next((i for i, pair in enumerate(zip(text, back, strict=False)) if pair[0] != pair[1]),
              min(len(text), len(back)))  # fmt: skip
  start = max(0, same - 10)
  return (
    f"tokenizer {tokenizer.name} does not give the text back: {_excerpt(text[start:])} becomes"
    f" {_excerpt(back[start:])}, so BPC would count what no model predicts; use bytes, bpe:<vocab>"
    f" or a byte-level tokenizer, or allow and report the loss by {ALLOW}"
  )


def _excerpt(text: str) -> str:
  return ascii(text[:30]) if not text[:30].isprintable() else repr(text[:30])
