"""Text that stands inside of a text: its ids, and ids that go on after others as text.

Vocabularies made by sentencepiece put a space before a text that they encode, and take one away
where they decode: right for a whole text, and one space off for the continuation of another. Here a
text is encoded behind a mark whose ids are then taken off, and decoded behind the id before it.
"""

import json
from collections.abc import Sequence

import numpy as np

from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError

_MARKS = (":", "=", ".", "\n", "0")  # that a text can follow without a token of both


def adds_space(tokenizer: Tokenizer) -> bool:
  """Whether a tokenizer puts a space before a text that it encodes by itself."""
  return not tokenizer.is_byte_level and any(map(_adds_space, _steps(tokenizer.description)))


def _steps(description: dict) -> list[dict]:
  """Normalizers and pre-tokenizers, those of sequences one by one."""
  found, open_steps = [], [description.get("normalizer"), description.get("pre_tokenizer")]
  while open_steps:
    step = open_steps.pop()
    if isinstance(step, dict):
      found.append(step)
      open_steps += [*(step.get("normalizers") or []), *(step.get("pretokenizers") or [])]
  return found


def _adds_space(step: dict) -> bool:
  if step.get("type") == "Metaspace":  # older files have the second key only
    return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
  return step.get("type") == "Prepend" or bool(step.get("add_prefix_space"))


def encode_inside(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
  """Ids of each text where other text stands before it; as `encode_batch` where that is the same.

  Raises:
    UserError: a text whose ids depend on what stands before it.
  """
  if not adds_space(tokenizer):
    return tokenizer.encode_batch(texts)
  return [_inside(tokenizer, text) for text in texts]


def _inside(tokenizer: Tokenizer, text: str) -> np.ndarray:
  for mark in _MARKS:
    alone, both = tokenizer.encode_batch([mark, mark + text])
    if len(alone) and np.array_equal(both[: len(alone)], alone):
      return both[len(alone) :]
  raise UserError(
    f"tokenizer {tokenizer.name} makes one token of {json.dumps(text[:40])} and any text before it,"
    " so it has no likelihood of its own; leave out the task that asks for it"
  )


def decode_after(tokenizer: Tokenizer, before: int, ids: np.ndarray | Sequence[int]) -> str:
  """Text that ids add to a text which ends with the id `before`; special ids are left out."""
  if tokenizer.is_byte_level:
    return tokenizer.decode(ids)
  head, whole = tokenizer.decode([before]), tokenizer.decode([before, *map(int, ids)])
  return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids)
