"""Scores a model on held-out chats: what the assistant said, given all before it."""

import math

import numpy as np

from moe_parity.errors import NotFiniteError
from moe_parity.evaluation.bits_per_character import Score
from moe_parity.finetuning.chat_rows import ChatRows
from moe_parity.finetuning.packing import PADDING
from moe_parity.model.documents import NOT_SCORED


def score_chats(score: Score, rows: ChatRows, batch_sequences: int) -> dict:
  """Loss of the assistant's turns, with the token that ends each.

  Args:
    score: with attention kept within chats.
    batch_sequences: rows in a call of `score`; divides the number of rows.
  Returns:
    {"cross_entropy" (nats a scored token), "bpc" (bits a character of the answers, their end tokens
    paid for), "nats", "num_tokens", "num_chars", "num_examples", "examples": [{"digest", "nats",
    "num_tokens", "num_chars"}]}; sums in float64 with one division at the end.
  Raises:
    NotFiniteError: nats that are not finite.
  """
  packed = rows.validation
  assert len(packed.inputs_RS) % batch_sequences == 0, "rows were packed for whole calls"
  nats = np.zeros(len(rows.validation_chats))
  tokens = np.zeros(len(nats), np.int64)
  for start in range(0, len(packed.inputs_RS), batch_sequences):
    part = slice(start, start + batch_sequences)
    inputs, targets, chat = packed.inputs_RS[part], packed.targets_RS[part], packed.chat_RS[part]
    mask = targets != NOT_SCORED
    nats_BS = np.asarray(score(inputs, np.maximum(targets, 0), mask), np.float64)
    assert (chat[mask] != PADDING).all()
    np.add.at(nats, chat[mask], nats_BS[mask])
    np.add.at(tokens, chat[mask], 1)
  if not np.isfinite(nats).all():
    raise NotFiniteError(
      "the loss on held-out chats is not finite; the run diverged: lower finetuning.learning_rates"
    )
  chars = [
    sum(len(m["content"]) for m in chat.messages if m["role"] == "assistant")
    for chat in rows.validation_chats
  ]
  examples = [
    {"digest": chat.digest, "nats": float(n), "num_tokens": int(t), "num_chars": c}
    for chat, n, t, c in zip(rows.validation_chats, nats, tokens, chars, strict=True)
  ]
  total = math.fsum(nats)
  return {
    "cross_entropy": total / int(tokens.sum()),
    "bpc": total / math.log(2) / sum(chars),
    "nats": total,
    "num_tokens": int(tokens.sum()),
    "num_chars": sum(chars),
    "num_examples": len(examples),
    "examples": examples,
  }
