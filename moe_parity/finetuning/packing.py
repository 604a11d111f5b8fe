"""Chats packed into rows of one length, without a chat cut and without attention across chats.

A chat of n tokens takes n - 1 positions: inputs are all but its last token, targets all but its
first. Chats are placed once, the longest first, each into the row with the most room, so rows are
evenly full; the number of rows is the smallest that holds them all and fills whole batches. The
rest of a row is padding, and so is a row without a chat. What is shuffled from pass to pass is the
rows. In the model, `ChatSeparators` keep attention within a chat, by the token that begins one.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from moe_parity.errors import UserError
from moe_parity.model.documents import NOT_SCORED

PADDING = -1  # of `chat_RS`


@dataclasses.dataclass(frozen=True)
class PackedChats:
  """Rows as a `Loader` reads them.

  Attributes:
    name, location: for the ledger: which split, read from where.
    inputs_RS, targets_RS: tokens; a target that is not scored is NOT_SCORED.
    chat_RS: number of the chat that a position belongs to, PADDING for none.
  """

  name: str
  location: str
  inputs_RS: Int[np.ndarray, "R S"]
  targets_RS: Int[np.ndarray, "R S"]
  chat_RS: Int[np.ndarray, "R S"]

  @property
  def fingerprint(self) -> str:
    """sha256 of inputs and targets."""
    rows = np.stack([self.inputs_RS, self.targets_RS]).astype("<i4")
    return hashlib.sha256(rows.tobytes()).hexdigest()

  @property
  def columns(self) -> dict[str, np.ndarray]:
    """Examples and scored tokens of each row, for the ledger."""
    return {
      "num_examples": np.array([np.unique(r[r != PADDING]).size for r in self.chat_RS], np.int64),
      "num_scored_tokens": (self.targets_RS != NOT_SCORED).sum(axis=1),
    }

  @property
  def fill(self) -> float:
    """Share of positions that are no padding."""
    return float((self.chat_RS != PADDING).mean())

  def num_windows(self, seq_len: int) -> int:
    assert seq_len == self.inputs_RS.shape[1], "rows are packed for one length"
    return len(self.inputs_RS)

  def row(self, window: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a row."""
    return self.inputs_RS[window], self.targets_RS[window]


def pack(
  encoded: Sequence[tuple[np.ndarray, np.ndarray]],
  *,
  seq_len: int,
  batch_sequences: int,
  pad_id: int,
  name: str,
  location: str,
) -> PackedChats:
  """Rows of whole chats.

  Args:
    encoded: (ids, is_scored) of each chat, as `ChatTemplate.encode` gives them.
    batch_sequences: the number of rows becomes a multiple of it.
  Raises:
    UserError: a chat that is longer than a row.
  """
  sizes = np.array([len(ids) - 1 for ids, _ in encoded])
  if sizes.max() > seq_len:
    raise UserError(
      f"a chat of {sizes.max() + 1} tokens is longer than the {seq_len + 1} that a row holds"
    )
  rows = _placed(sizes, seq_len, batch_sequences)
  shape = len(rows), seq_len
  inputs, targets = np.full(shape, pad_id, np.int32), np.full(shape, NOT_SCORED, np.int32)
  chat = np.full(shape, PADDING, np.int32)
  for row, members in enumerate(rows):
    start = 0
    for number in members:
      ids, is_scored = encoded[number]
      part = slice(start, start + len(ids) - 1)
      inputs[row, part] = ids[:-1]
      targets[row, part] = np.where(is_scored[1:], ids[1:], NOT_SCORED)
      chat[row, part] = number
      start = part.stop
  return PackedChats(name, location, inputs, targets, chat)


def _placed(sizes: np.ndarray, seq_len: int, batch_sequences: int) -> list[list[int]]:
  """Numbers of the chats in each row: the longest first, each into the emptiest row."""
  order = sorted(range(len(sizes)), key=lambda number: (-sizes[number], number))
  least = -(-int(sizes.sum()) // seq_len)
  num_rows = -(-least // batch_sequences) * batch_sequences
  while True:
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    used = [(0, row) for row in range(num_rows)]
    for number in order:
      size, row = used[0]
      if size + sizes[number] > seq_len:
        break
      heapq.heapreplace(used, (size + int(sizes[number]), row))
      rows[row].append(number)
    else:
      return rows
    num_rows += batch_sequences
