"""The chats that a fine-tuned run was trained on, read again and compared with its plan."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from moe_parity.data.readers import Document
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError
from moe_parity.finetuning.chat_rows import open_chats

_STATED = ("num_examples", "chats_sha256")


@dataclasses.dataclass(frozen=True)
class SeenChats:
  """Chats of training, without those held out. `fingerprint` names them by content."""

  fingerprint: dict[str, str]
  documents: list[Document]


def seen_chats(
  folder: pathlib.Path, config: ConfigDict, plan: Mapping[str, Any], tokenizer: Tokenizer
) -> SeenChats | None:
  """
  Args:
    folder, config, plan: of the run.
  Returns:
    None for a run that was not fine-tuned.
  Raises:
    UserError: the files are not there any more, or hold other chats today.
  """
  stated = plan.get("finetuning")
  if not stated:
    return None
  source = config.finetuning.data
  way_out = f"put back what finetuning.data={source} in {folder / 'config.json'} named"
  try:
    rows = open_chats(
      config.finetuning,
      tokenizer,
      seq_len=plan["seq_len"],
      scored_at_a_time=config.evaluation.batch_sequences,
    )
  except UserError as error:
    raise UserError(f"its chats cannot be read any more ({error}); {way_out}") from None
  for name in _STATED:
    if rows.counts[name] != stated[name]:
      raise UserError(
        f"its chats changed ({name} is {rows.counts[name]}, the plan states {stated[name]});"
        f" {way_out}"
      )
  documents = [
    Document("\n".join(message["content"] for message in chat.messages), "chats", chat.place)
    for chat in rows.train_chats
  ]
  return SeenChats({"chats_sha256": stated["chats_sha256"]}, documents)
