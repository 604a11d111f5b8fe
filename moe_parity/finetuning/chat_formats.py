"""One record of a chat file to a list of messages: three formats, distinguished by their keys.

    messages   {"messages": [{"role": "user", "content": "..."}, ...]}
    sharegpt   {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}
    alpaca     {"instruction": "...", "input": "...", "output": "...", "system": "..."}

A key that a format does not have is refused, because leaving it out might change what a chat says;
keys that say where a chat is from (NOTES) are taken, further ones if the caller names them.
"""

from collections.abc import Collection, Mapping
from typing import Any

from moe_parity.errors import UserError, suggest

NOTES = ("id", "source", "license")  # about a chat, no part of it
KEYS = {  # format -> keys that tell it, keys that it may have
  "messages": (("messages",), ()),
  "sharegpt": (("conversations",), ("system",)),
  "alpaca": (("instruction", "output"), ("input", "system")),
}
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
                  "system": "system"}  # fmt: skip
Messages = list[dict[str, str]]


def detect(record: Any, place: str, ignored_keys: Collection[str] = ()) -> str:
  """The format of a record, read without the keys that are ignored.

  Raises:
    UserError: it is of none, or of two.
  """
  keys = set(record) - set(ignored_keys) if isinstance(record, Mapping) else set()
  formats = [name for name, (needed, _) in KEYS.items() if keys >= set(needed)]
  if len(formats) == 1:
    return formats[0]
  rule = "; or ".join(f"{name}: {' and '.join(needed)}" for name, (needed, _) in KEYS.items())
  what = f"keys of {' and '.join(formats)}" if formats else f"the keys {sorted(keys)}"
  raise UserError(f"{place} has {what}; a chat has those of one format ({rule})")


def to_messages(record: Any, form: str, place: str, ignored_keys: Collection[str] = ()) -> Messages:
  """The messages of a record, roles not yet checked.

  Args:
    place: file and line, for errors.
    ignored_keys: keys of a record that do not matter: it is read without them.
  Raises:
    UserError: a record of another format, an unknown key, a text that is no string.
  """
  needed, optional = KEYS[form]
  if isinstance(record, Mapping):
    record = {key: value for key, value in record.items() if key not in ignored_keys}
  _check_keys(record, needed, (*optional, *NOTES), place, "--ignore-keys")
  if form == "alpaca":
    return _alpaca(record, place)
  messages = _system(record, place)
  key, role, content = {"messages": ("messages", "role", "content")}.get(
    form, ("conversations", "from", "value")
  )
  if not isinstance(record[key], list):
    raise UserError(f"{place}: {key} is a {type(record[key]).__name__}; give a list of turns")
  for number, turn in enumerate(record[key], 1):
    where = f"{place}, turn {number}"
    _check_keys(turn, (role, content), (), where)
    name = turn[role]
    if form == "sharegpt":
      if not isinstance(name, str) or name not in SHAREGPT_ROLES:
        raise UserError(f"{where} is from {name!r}; use {', '.join(SHAREGPT_ROLES)}")
      name = SHAREGPT_ROLES[name]
    messages.append({"role": name, "content": _text(turn[content], where, content)})
  return messages


def _alpaca(record: Mapping[str, Any], place: str) -> Messages:
  instruction = _text(record["instruction"], place, "instruction")
  if record.get("input") not in (None, ""):
    instruction += "\n\n" + _text(record["input"], place, "input")
  answer = _text(record["output"], place, "output")
  return [
    *_system(record, place),
    {"role": "user", "content": instruction},
    {"role": "assistant", "content": answer},
  ]


def _system(record: Mapping[str, Any], place: str) -> Messages:
  """The system turn; none where a record has no such text."""
  if record.get("system") in (None, ""):
    return []
  return [{"role": "system", "content": _text(record["system"], place, "system")}]


def _text(value: Any, place: str, name: str) -> str:
  if not isinstance(value, str):
    raise UserError(f"{place}: {name} is a {type(value).__name__}; give a text")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError:
    raise UserError(f"{place}: {name} holds half of a character (a surrogate); mend it") from None
  return value


def _check_keys(record: Any, needed, allowed, place: str, option: str = "") -> None:
  if not isinstance(record, Mapping):
    raise UserError(f"{place} is a {type(record).__name__}; give an object with {needed[0]!r}")
  for name in needed:
    if name not in record:
      raise UserError(f"{place} has no {name!r}, which every record of this file's format has")
  for name in record:
    if name not in (*needed, *allowed):
      hint = suggest(str(name), (*needed, *allowed))
      way_out = f"name it in {option} if it does not matter" if option else "take it out"
      raise UserError(f"{place} has the unknown key {name!r}; {way_out}{hint}")
