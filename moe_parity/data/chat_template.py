"""How a chat becomes tokens: special tokens that begin, mark and end its turns.

    begin [system text] user text assistant text end [user text assistant text end ...]

A turn of the assistant ends with the token that ends documents, so whatever stops at the end of a
document stops at the end of an answer. Texts are encoded between special tokens, one by one, and
never produce one: a text that spells '<|eos|>' stays these letters. A run that was trained on chats
has its template in its folder, and an export carries it as the `chat_template` of transformers.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from moe_parity import files
from moe_parity.data import checked_json
from moe_parity.data.tokenizer import SPECIALS, Tokenizer
from moe_parity.errors import UserError, suggest

FILE = "chat_template.json"
ROLES = ("system", "user", "assistant")
_SHAPE = {"system": str, "user": str, "assistant": str, "begin?": str, "end?": str}
Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """Names of special tokens: `begin` begins documents, `end` ends them, the others mark roles."""

  begin: str
  system: str
  user: str
  assistant: str
  end: str

  def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
    """The chat as one text, as transformers' apply_chat_template gives it.

    Args:
      add_generation_prompt: end with the mark after which the assistant writes.
    """
    parts = [self.begin]
    for message in messages:
      parts += [getattr(self, message["role"]), message["content"]]
      parts += [self.end] if message["role"] == "assistant" else []
    return "".join(parts + ([self.assistant] if add_generation_prompt else []))

  def encode(self, tokenizer: Tokenizer, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [n], is_scored bool [n]) of a whole chat.

    Scored is what the assistant writes: its texts and the token that ends each, not the mark before
    them.
    """
    ids = self._ids(tokenizer)
    texts = tokenizer.encode_batch([message["content"] for message in messages])
    pieces, scored = [[ids["begin"]]], [[False]]
    for message, text in zip(messages, texts, strict=True):
      is_answer = message["role"] == "assistant"
      end = [ids["end"]] if is_answer else []
      pieces += [[ids[message["role"]]], text, end]
      scored += [[False], [is_answer] * (len(text) + len(end))]
    return np.concatenate(pieces).astype(np.int32), np.concatenate(scored).astype(bool)

  def encode_prompt(self, tokenizer: Tokenizer, messages: Messages) -> np.ndarray:
    """Ids int32 of a chat up to where the assistant begins to write."""
    ids = self.encode(tokenizer, messages)[0]
    return np.append(ids, self._ids(tokenizer)["assistant"]).astype(np.int32)

  def encode_text(self, tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids int32 of a text that `render` made, or a part of one: its special tokens are those of the
    template."""
    ids = {name: tokenizer.special_ids[name] for name in dataclasses.astuple(self)}
    names = sorted(map(re.escape, ids), key=len, reverse=True)
    parts = [part for part in re.split(f"({'|'.join(names)})", text) if part]
    pieces = [[ids[p]] if p in ids else tokenizer.encode_batch([p])[0] for p in parts]
    return np.concatenate([np.zeros(0), *pieces]).astype(np.int32)

  def jinja(self) -> str:
    """The template in the language of transformers' `chat_template`."""
    marks = "".join(
      f"{{%- {'elif' if number else 'if'} message['role'] == '{role}' %}}"
      f"{{{{- {_quoted(getattr(self, role))} + message['content']"
      f"{' + ' + _quoted(self.end) if role == 'assistant' else ''} }}}}"
      for number, role in enumerate(ROLES)
    )
    return (
      f"{{{{- {_quoted(self.begin)} }}}}{{%- for message in messages %}}{marks}"
      "{%- else %}{{- raise_exception('roles are system, user and assistant') }}"
      "{%- endif %}{%- endfor %}"
      f"{{%- if add_generation_prompt %}}{{{{- {_quoted(self.assistant)} }}}}{{%- endif %}}"
    )

  def save(self, folder: pathlib.Path) -> None:
    """Writes chat_template.json into a run folder."""
    files.write_json(folder / FILE, dataclasses.asdict(self))

  def check(self, tokenizer: Tokenizer) -> None:
    """
    Raises:
      UserError: the tokenizer lacks one of the special tokens, two are the same, or documents do
        not begin and end with the template's.
    """
    fields = dataclasses.asdict(self)
    specials = tokenizer.special_ids
    for role, name in fields.items():
      if name not in specials:
        raise UserError(
          f"tokenizer {tokenizer.name} has no special token {name!r}, which the chat template has"
          f" for {role!r}; name others in --template=FILE.json{suggest(name, specials)}"
        )
    if len(set(fields.values())) < len(fields):
      raise UserError(
        f"chat template {fields} has one token for two things; give each its own special token (a"
        " tokenizer that begins and ends documents with one token has too few)"
      )
    for role, wanted in (("begin", tokenizer.bos_id), ("end", tokenizer.eos_id)):
      if specials[fields[role]] != wanted:
        raise UserError(
          f"chat template: {role}={fields[role]!r} is not the token that tokenizer {tokenizer.name}"
          f" {role}s documents with; leave {role!r} out"
        )

  def _ids(self, tokenizer: Tokenizer) -> dict[str, int]:
    return {role: tokenizer.special_ids[n] for role, n in dataclasses.asdict(self).items()}


def template_for(tokenizer: Tokenizer, path: str = "") -> ChatTemplate:
  """The template of a tokenizer: the reserved tokens of our own vocabularies mark the roles, or
  those that a JSON file names: {"system": "<|a|>", "user": "<|b|>", "assistant": "<|c|>"}.

  Raises:
    UserError: see `ChatTemplate.check`; a file that is no such object.
  """
  names = {i: name for name, i in tokenizer.special_ids.items()}
  begin, end = names.get(tokenizer.bos_id, ""), names.get(tokenizer.eos_id, "")
  tokens = dict(zip(ROLES, SPECIALS[3:6], strict=True))
  if path:
    way_out = 'write {"system": "...", "user": "...", "assistant": "..."} with special tokens'
    try:
      tokens = checked_json.read(path, _SHAPE, way_out)
    except (FileNotFoundError, NotADirectoryError):
      raise UserError(f"--template={path}: no such file; {way_out}") from None
    if strange := sorted(set(tokens) - {key.rstrip("?") for key in _SHAPE}):
      raise UserError(f"{path} has the unknown key {strange[0]!r}; {way_out}")
  template = ChatTemplate(**({"begin": begin, "end": end} | tokens))
  template.check(tokenizer)
  return template


def read(folder: pathlib.Path) -> ChatTemplate | None:
  """The template in a run folder; None for a run that was never trained on chats.

  Raises:
    UserError: the file is damaged.
  """
  if not (folder / FILE).exists():
    return None
  shape = {name.rstrip("?"): str for name in _SHAPE}
  value = checked_json.read(folder / FILE, shape, "fine-tune the run again")
  return ChatTemplate(**{name: value[name] for name in shape})


def from_jinja(text: str, tokenizer: Tokenizer) -> ChatTemplate | None:
  """The template that `jinja` wrote, so that an exported model brings it back; None for any other
  program in that language.

  Args:
    tokenizer: has the special tokens that the text names.
  """
  quoted = r"'((?:[^'\\]|\\.)*)'"
  marks = [rf"message\['role'\] == '{role}' %\}}\{{\{{- {quoted}" for role in ROLES]
  end = rf"message\['content'\] \+ {quoted}"
  found = [re.search(pattern, text) for pattern in (rf"^\{{\{{- {quoted}", *marks, end)]
  if None in found:
    return None
  begin, *roles, last = (re.sub(r"\\(.)", r"\1", match[1]) for match in found)
  template = ChatTemplate(begin, *roles, last)
  if template.jinja() != text:
    return None
  try:
    template.check(tokenizer)
  except UserError:
    return None
  return template


def _quoted(text: str) -> str:
  return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
