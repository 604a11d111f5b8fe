"""From chat files to the rows that a run is fine-tuned and scored on, and what was left out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe_parity.data.chat_template import ChatTemplate, template_for
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError, check_choice
from moe_parity.fields.choices import POLICIES
from moe_parity.finetuning.chats import Chat, chats_digest, read_chats, split_chats
from moe_parity.finetuning.packing import PackedChats, pack


@dataclasses.dataclass(frozen=True)
class ChatRows:
  """Chats of a comparison, the same for every arm.

  Attributes:
    train_chats: as they were packed into `train`.
    validation_chats: in the order in which `validation.chat_RS` numbers them.
    counts: what a plan states of them, plain JSON; see `planning.finetuning_plan`.
  """

  template: ChatTemplate
  train: PackedChats
  validation: PackedChats
  train_chats: tuple[Chat, ...]
  validation_chats: tuple[Chat, ...]
  counts: dict[str, Any]


def open_chats(
  settings: ConfigDict, tokenizer: Tokenizer, *, seq_len: int, scored_at_a_time: int
) -> ChatRows:
  """Reads, checks, splits, encodes and packs the chats of `config.finetuning`.

  Args:
    seq_len: of the rows, what the model was pretrained with.
    scored_at_a_time: validation rows become a multiple of it.
  Raises:
    UserError: see `read_chats`, `split_chats`, `template_for`; a chat that is longer than a row.
  """
  check_choice("too_long", settings.too_long, POLICIES)
  template = template_for(tokenizer, settings.template)
  chats, num_duplicates = read_chats(
    settings.data,
    form=settings.format,
    duplicates=settings.duplicates,
    ignored_keys=tuple(settings.ignored_keys),
  )
  encoded = [template.encode(tokenizer, chat.messages) for chat in chats]
  num_too_long = _check_lengths(chats, encoded, seq_len, settings.too_long)
  fits = {c.digest: e for c, e in zip(chats, encoded, strict=True) if len(e[0]) - 1 <= seq_len}
  sides = split_chats([chat for chat in chats if chat.digest in fits], settings.held_out)
  batches = settings.batch_sequences, scored_at_a_time
  train, validation = (
    pack(
      [fits[chat.digest] for chat in side],
      seq_len=seq_len,
      batch_sequences=batch,
      pad_id=tokenizer.pad_id,
      name=name,
      location=settings.data,
    )
    for side, batch, name in zip(sides, batches, ("chats", "validation_chats"), strict=True)
  )
  counts = {
    "num_examples": len(sides[0]),
    "num_scored_tokens": int(train.columns["num_scored_tokens"].sum()),
    "num_chat_tokens": int(sum(len(fits[chat.digest][0]) for chat in sides[0])),
    "row_fill": train.fill,
    "num_validation_examples": len(sides[1]),
    "num_duplicates_left_out": num_duplicates,
    "num_too_long_left_out": num_too_long,
    "chats_sha256": train.fingerprint,
    "validation_chats_sha256": chats_digest(sides[1]),
    "template": dataclasses.asdict(template),
  }
  return ChatRows(template, train, validation, tuple(sides[0]), tuple(sides[1]), counts)


def _check_lengths(
  chats: Sequence[Chat], encoded: Sequence[tuple[np.ndarray, np.ndarray]], seq_len: int, policy: str
) -> int:
  """How many chats are longer than a row.

  Raises:
    UserError: there are some, and they are to be refused, or all are.
  """
  long = [(len(ids) - 1, c) for c, (ids, _) in zip(chats, encoded, strict=True)
          if len(ids) - 1 > seq_len]  # fmt: skip
  if long and (policy == "refuse" or len(long) == len(chats)):
    size, chat = max(long, key=lambda pair: pair[0])
    raise UserError(
      f"{len(long)} of {len(chats)} chats are longer than the {seq_len} positions that the run was"
      f" trained with, the longest ({chat.place}) takes {size}; shorten them, pretrain with a"
      " larger budget.seq_len, or --too-long=leave-out counts them"
    )
  return len(long)
