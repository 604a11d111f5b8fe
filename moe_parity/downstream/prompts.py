"""Texts of items as ids: what `Likelihood` and `Generator` are given.

Context and continuation are encoded each by itself, as OLMES does, the continuation as it is inside
of a text, and the context begins with the token that begins a document in training. A text that is
shared by choices is encoded once.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from moe_parity.data.chat_template import ChatTemplate
from moe_parity.data.inner_text import encode_inside
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.downstream.likelihood import Continuation
from moe_parity.downstream.tasks import BenchmarkTask
from moe_parity.errors import UserError


def requests(
  task: BenchmarkTask, tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> tuple[list[Continuation], np.ndarray]:
  """(a request for every choice of every item, the item that each belongs to).

  Args:
    template: of chats: the context is the user's turn, and the choice the assistant's.
  Raises:
    UserError: a continuation of no tokens.
  """
  pairs, item_R = [], []
  for number, item in enumerate(task.items):
    for choice, continuation in enumerate(item.continuations):
      pairs.append((item.context(choice), continuation))
      item_R.append(number)
  # What a chat's template encodes by itself, in training too, begins as a text does.
  of_text = tokenizer.encode_batch if template else functools.partial(encode_inside, tokenizer)
  ids = encode([text for _, text in pairs], of_text)
  begun = contexts([context for context, _ in pairs], tokenizer, template)
  made = []
  for (context, continuation), r in zip(pairs, item_R, strict=True):
    if not len(ids[continuation]):
      raise UserError(
        f"{task.name}, item {task.items[r].name}: the choice {continuation!r} has no tokens, so it"
        " has no likelihood; leave the task out"
      )
    made.append(Continuation(begun[context], ids[continuation]))
  return made, np.array(item_R, np.int64)


def contexts(
  texts: Sequence[str], tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> dict[str, np.ndarray]:
  """Text -> ids of a prompt, which begins as a document does, or is a user's turn of a chat."""
  if template:
    return {
      text: template.encode_prompt(tokenizer, [{"role": "user", "content": text.strip()}])
      for text in dict.fromkeys(texts)
    }
  begin = np.array([tokenizer.bos_id], np.int32)
  ids = encode(texts, tokenizer.encode_batch)
  return {text: np.concatenate([begin, found]) for text, found in ids.items()}


def encode(
  texts: Sequence[str], encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
) -> dict[str, np.ndarray]:
  """Text -> ids, each text encoded once."""
  distinct = list(dict.fromkeys(texts))
  encoded = encode_batch(distinct)
  return {text: ids.astype(np.int32) for text, ids in zip(distinct, encoded, strict=True)}
