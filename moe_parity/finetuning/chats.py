"""Chats from files, checked: every one is whole, answered, and there once.

A chat has at most one system turn, which comes first, then turns of user and assistant in turn,
from the first user's to the last assistant's. Some are held out for validation, by the hash of
their content: the same ones for every arm, whatever else is in the file.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from moe_parity.data import corpus
from moe_parity.data.compressed import DamagedFileError, chunks, lines
from moe_parity.errors import UserError, check_choice
from moe_parity.escapes import split, unescape
from moe_parity.fields.check import check_value
from moe_parity.fields.choices import POLICIES
from moe_parity.files import parse_json
from moe_parity.finetuning.chat_formats import KEYS, Messages, detect, to_messages

BUILTIN = corpus.BUILTIN
BUILTIN_FILE = pathlib.Path(corpus.__file__).parent / "builtin" / "chats.jsonl"


@dataclasses.dataclass(frozen=True)
class Chat:
  """One chat. `place` says where it was read, `digest` is the sha256 of its roles and contents."""

  messages: tuple[dict[str, str], ...]
  place: str
  digest: str

  def is_held_out(self, share: float) -> bool:
    """Whether it is of the share of chats that are held out."""
    return int(self.digest[:15], 16) < share * 16**15


def read_chats(
  source: str, *, form: str = "", duplicates: str = "refuse", ignored_keys: Collection[str] = ()
) -> tuple[list[Chat], int]:
  """(all chats of one or several files in their order, how many duplicates were left out).

  Args:
    source: "builtin", or paths with commas between; JSON lines or one JSON array, also compressed.
    form: "messages", "sharegpt", "alpaca"; "" is what the first record of a file shows.
    duplicates: "refuse" a chat that is there twice, or "leave-out" the second and count it.
  Raises:
    UserError: a file that cannot be read, or the first chat that breaks a rule; names its line.
  """
  check_choice("duplicates", duplicates, POLICIES)
  if form:
    check_choice("format", form, KEYS)
  chats: dict[str, Chat] = {}
  num_duplicates = 0
  for path in _paths(source):
    used = form
    for place, record in _records(path):
      used = used or detect(record, place, ignored_keys)
      chat = _checked(to_messages(record, used, place, ignored_keys), place)
      if chat.digest in chats:
        if duplicates == "refuse":
          raise UserError(
            f"{place} is the same chat as {chats[chat.digest].place}; take one out, or"
            " --duplicates=leave-out counts them"
          )
        num_duplicates += 1
      chats.setdefault(chat.digest, chat)
  if not chats:
    raise UserError(f"{source} holds no chat; give one JSON record a chat")
  return list(chats.values()), num_duplicates


def split_chats(chats: Sequence[Chat], held_out: float) -> tuple[list[Chat], list[Chat]]:
  """(chats to train on, chats held out).

  Raises:
    UserError: a share that is none, or that leaves one side empty.
  """
  check_value("finetuning.held_out", held_out)
  sides = tuple([c for c in chats if c.is_held_out(held_out) == side] for side in (False, True))
  if not all(sides):
    raise UserError(
      f"held_out={held_out} of {len(chats)} chats leaves none"
      f" {'to train on' if not sides[0] else 'for validation'}; use more chats or another share"
    )
  return sides


def chats_digest(chats: Sequence[Chat]) -> str:
  """sha256 of chats in their order."""
  return hashlib.sha256("".join(chat.digest for chat in chats).encode()).hexdigest()


def _paths(source: str) -> list[str]:
  paths = [unescape(part) for part in split(source, ",") if part]
  if not paths:
    raise UserError(f"data={source!r} names no file; give chats.jsonl, or 'builtin'")
  return [str(BUILTIN_FILE) if path == BUILTIN else path for path in paths]


def _records(path: str) -> Iterator[tuple[str, Any]]:
  """(place, value) of every record of a file.

  Raises:
    UserError: the file is not there, is damaged, or a line is not JSON.
  """
  try:
    content = list(lines(chunks(path)))
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
    raise UserError(f"{path} is no file; give one with a chat a line (JSON lines)") from None
  except DamagedFileError as error:
    raise UserError(f"{path} is damaged ({error}); copy it again") from None
  whole = b"".join(content).removeprefix(b"\xef\xbb\xbf")
  if whole.lstrip().startswith(b"["):
    records = _parsed(whole, path)
    for number, record in enumerate(records, 1):
      yield f"{path}, record {number}", record
    return
  for number, line in enumerate(whole.split(b"\n"), 1):
    if line.strip():
      yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: bytes, place: str) -> Any:
  try:
    return parse_json(text, strict=False)
  except ValueError as error:
    reason = " ".join(str(error).split())[:120]
    raise UserError(f"{place} is not JSON ({reason}); write one record a line") from None


def _checked(messages: Messages, place: str) -> Chat:
  """
  Raises:
    UserError: roles out of order, an empty text, no answer.
  """
  roles = [message["role"] for message in messages]
  turns = roles[1:] if roles[:1] == ["system"] else roles
  for number, message in enumerate(messages, 1):
    if message["role"] not in ("system", "user", "assistant"):
      raise UserError(
        f"{place}, turn {number} has the role {message['role']!r}; use system, user or assistant"
      )
    if not message["content"].strip():
      raise UserError(
        f"{place}, turn {number} ({message['role']}) is empty; give it a text or take the chat out"
      )
  if "assistant" not in roles:
    raise UserError(f"{place} has no assistant turn, so there is nothing to learn; take it out")
  expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
  if turns != expected:
    first = next(i for i, (a, b) in enumerate(zip(turns, expected, strict=True)) if a != b)
    number = first + 1 + len(roles) - len(turns)
    raise UserError(
      f"{place}, turn {number} is the {turns[first]}'s and should be the {expected[first]}'s; user"
      " and assistant take turns, after at most one system turn"
    )
  if turns[-1] != "assistant":
    raise UserError(
      f"{place} ends with the user's turn, which has no answer; add the answer or take the turn out"
    )
  text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
  return Chat(tuple(messages), place, hashlib.sha256(text.encode()).hexdigest())
