"""The tokens that begin and end a document of a Hugging Face model, from all files that state them.

What the tokenizer's own files say comes first (tokenizer_config.json, special_tokens_map.json, then
the usual names in tokenizer.json), and config.json and generation_config.json where these say
nothing: classes of transformers write ids there that a tokenizer may not have. A list of ids there
ends generated texts: an instruct model has one that ends its turn and one that ends a document.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.tokenizer import ALSO_END, DOCUMENT_IDS, Tokenizer
from moe_parity.errors import UserError
from moe_parity.interchange.export import TOKENIZER_CONFIG, adds_tokens, read_json
from moe_parity.training import run_folder

_NAMED = (TOKENIZER_CONFIG, "special_tokens_map.json")
_NUMBERED = ("config.json", "generation_config.json")
KINDS = ("bos", "eos")
_DOES = {"bos": "begins", "eos": "ends"}


class TokenizerWithNotes(NamedTuple):
  """A tokenizer, and what its user has to know of its special ids, a line each."""

  tokenizer: Tokenizer
  notes: list[str]


def open_tokenizer(folder: pathlib.Path) -> TokenizerWithNotes:
  """The tokenizer of a folder; its description states the ids where its names do not, and those
  that end a generated text besides.

  Raises:
    UserError: it is none, no file says what ends a document, or one says an id that it lacks.
  """
  description = tokenizers.read(folder / run_folder.TOKENIZER)
  ids, specials = _ids(description)
  named = tokenizers.by_name(specials, ids)
  contents = {i: content for content, i in ids.items()}
  chosen, notes = {}, []
  for kind in KINDS:
    by_file = _named_in_files(folder, kind, ids, notes)
    first = named[kind] if by_file is None else by_file
    chosen[kind], more = _with_numbers(folder, kind, first, contents, description)
    notes += more
  if chosen["eos"] is None:
    raise UserError(
      f"{folder}: neither the tokenizer's files nor config.json's eos_token_id name a special token"
      f' that ends a document; give {TOKENIZER_CONFIG} one: {{"eos_token": "..."}}'
    )
  notes += _not_put_by_transformers(folder, chosen, contents, description)
  stated = {kind: chosen["eos"] if i is None else i for kind, i in chosen.items()}
  by_name = {kind: named["eos"] if named[kind] is None else named[kind] for kind in KINDS}
  if stated != by_name:
    description = {**description, DOCUMENT_IDS: stated}
  also, more = _also_end(folder, set(stated.values()), description)
  if also:
    description = {**description, ALSO_END: also}
  notes += more
  return TokenizerWithNotes(Tokenizer(description, str(folder / run_folder.TOKENIZER)), notes)


def _ids(description: dict) -> tuple[dict[str, int], dict[str, int]]:
  """(id of every token, of those that are marked special)."""
  vocab, added = description["model"].get("vocab"), description.get("added_tokens") or []
  if isinstance(vocab, list):  # of Unigram: [text, score] in order
    vocab = {entry[0]: i for i, entry in enumerate(vocab) if isinstance(entry, list) and entry}
  ids = {token: i for token, i in (vocab or {}).items() if type(i) is int}
  ids |= {token["content"]: token["id"] for token in added}
  return ids, {token["content"]: token["id"] for token in added if token.get("special")}


def _named_in_files(
  folder: pathlib.Path, kind: str, ids: dict[str, int], notes: list[str]
) -> int | None:
  """The id of the token that the tokenizer's further files name."""
  for name in _NAMED:
    token = read_json(folder, name).get(f"{kind}_token") if (folder / name).is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str) and token in ids:
      return ids[token]
    if token is not None:
      notes.append(f"{name} has {kind}_token={token!r}, which tokenizer.json does not: not used")
  return None


def _with_numbers(
  folder: pathlib.Path,
  kind: str,
  first: int | None,
  contents: dict[int, str],
  description: dict,
) -> tuple[int | None, list[str]]:
  """(`first`, or the id that config.json or generation_config.json states, notes)."""
  notes = []
  special = _added(description)
  for name, values in _numbers(folder, kind):
    if first is not None:
      if first not in values:
        notes.append(
          f"{name} has {kind}_token_id={_shown(values)}; the tokenizer's files say that"
          f" {contents[first]!r} ({first}) {_DOES[kind]} a document, and that is used"
        )
      continue
    value = values[0]
    if value not in contents:
      raise UserError(
        f"{folder / name} has {kind}_token_id={_shown(values)}, and tokenizer.json has ids 0 to"
        f" {max(contents)}; take files of one model"
      )
    if value not in special:
      notes.append(
        f"{name} has {kind}_token_id={value}, which is {contents[value]!r} in tokenizer.json, no"
        " special token: not used"
      )
      continue
    first = value
  return first, notes


def _not_put_by_transformers(
  folder: pathlib.Path,
  chosen: dict[str, int | None],
  contents: dict[int, str],
  description: dict,
) -> list[str]:
  """A note where a text begins with a token here and with none in transformers.

  Something has to stand before a text, or its first token has no likelihood; lm-eval, too, takes
  the end of a document for models without a begin.
  """
  config = read_json(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
  begin = chosen["bos"]
  if begin is None:
    begin = chosen["eos"]
    why = "no file names a token that begins a document"
  elif config.get("add_bos_token") is False:
    why = f"{TOKENIZER_CONFIG} has add_bos_token=false"
  elif not adds_tokens(description.get("post_processor")) and not config.get("add_bos_token"):
    why = f"no post_processor in {run_folder.TOKENIZER} adds a token"
  else:
    return []
  return [
    f"{why}: transformers puts none before a text. Here {contents[begin]!r} ({begin}) stands before"
    " every text that is scored or continued, and an export's tokenizer puts it there"
  ]


def _also_end(
  folder: pathlib.Path, known: set[int], description: dict
) -> tuple[list[int], list[str]]:
  """(ids besides the known ones that end a generated text, notes)."""
  special, found, notes = _added(description), set(), []
  for name, values in _numbers(folder, "eos"):
    found |= {i for i in values if i in special}
    for i in sorted(set(values[1:]) - special):
      notes.append(f"{name} has {i} in eos_token_id={values}, no special token: ends no text")
  return sorted(found - known), notes


def _added(description: dict) -> set[int]:
  return {token["id"] for token in description.get("added_tokens") or []}


def _numbers(folder: pathlib.Path, kind: str) -> Iterator[tuple[str, list[int]]]:
  """(file, ids) of those files that state any."""
  for name in _NUMBERED:
    value = read_json(folder, name).get(f"{kind}_token_id") if (folder / name).is_file() else None
    values = value if isinstance(value, list) else [value]
    if value is None or not values:
      continue
    if any(type(i) is not int or i < 0 for i in values):
      raise UserError(
        f"{folder / name} has {kind}_token_id={value!r}; it must be an id, or a list of ids"
      )
    yield name, values


def _shown(values: list[int]) -> Any:
  return values if len(values) > 1 else values[0]
