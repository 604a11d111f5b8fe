"""Text to ids and back: bytes, byte-level BPE, or any tokenizer.json. One small interface.

Our own vocabularies share a layout: ids 0..15 are special (0 begins a document, 1 ends it, 2 pads),
ids 16..271 are the 256 bytes in order, merges follow. A vocabulary of at most 65,536 fits uint16.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from moe_parity.data import checked_json, storage
from moe_parity.data.fast_encoder import GPT4_PATTERN, Encode, fast_encoder
from moe_parity.errors import UserError
from moe_parity.fields.choices import BYTE_VOCABULARY, MAX_VOCABULARY

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>") + tuple(f"<|reserved_{i}|>" for i in range(13))
NUM_SPECIALS = len(SPECIALS)
FIRST_MERGE = BYTE_VOCABULARY  # behind the special ids and the 256 bytes
MAX_VOCAB = MAX_VOCABULARY
_MOST_IDS = 1 << 24
_BOS_NAMES = ("<|bos|>", "<s>", "<|begin_of_text|>", "<bos>", "[CLS]")
_EOS_NAMES = ("<|eos|>", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")
# Ids that begin and end a document, where a tokenizer.json of an import does not say so by names.
DOCUMENT_IDS = "document_ids"
# Ids that end a generated text too: an instruct model ends its turn and a document with two tokens.
ALSO_END = "also_end"
OURS = (DOCUMENT_IDS, ALSO_END)
_PAD_NAMES = ("<|pad|>", "<pad>", "<|padding|>", "[PAD]")

_TOKENIZER = {
  "model": {"type": str, "vocab?": object, "merges?": object, "dropout?": object},
  "added_tokens?": [
    {"id": int, "content": str, "special?": bool, "lstrip?": bool, "rstrip?": bool}
  ],
  f"{DOCUMENT_IDS}?": {"bos": int, "eos": int},
  f"{ALSO_END}?": [int],
}


def _make_byte_symbols() -> list[str]:
  """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  symbols, extra = [""] * 256, 256
  for byte in range(256):
    if byte in plain:
      symbols[byte] = chr(byte)
    else:
      symbols[byte], extra = chr(extra), extra + 1
  return symbols


BYTE_SYMBOLS = _make_byte_symbols()
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


class Tokenizer:
  """A vocabulary described by the JSON of a tokenizer.json.

  `encode_batch` adds no special ids and never produces one: a text that spells out '<|eos|>' is
  encoded as those letters. The writer of a stream of documents adds `bos_id` and `eos_id`.

  Attributes:
    vocab_size: ids run from 0 to vocab_size - 1.
    bos_id, eos_id, pad_id: where a vocabulary has no such token, the end of a document also begins
      one and pads.
    end_ids: those that end a generated text: the begin and the end of a document, and others where
      the description names some.
    special_ids: id of every token that is marked special, by its name.
    fingerprint: sha256 of the description, whatever its layout on disk and whatever else ends a
      generated text, which changes no token of a text.
    is_byte_level: every id stands for known bytes, so bits can be counted on any cut of a stream.
    token_bytes: int64 [vocab_size], bytes an id stands for, also of added tokens that are text; 0
      for special ids and those that begin, end or pad.
    token_chars: int64 [vocab_size], characters that begin in an id. Summed over a whole text both
      are exact, also where a token ends inside a character.
  """

  def __init__(self, description: dict, name: str = "tokenizer"):
    self.name = name
    self.description = description
    self._encoder = None
    self._bytes = None
    self._table_of_bytes: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    self._fast_encoder: Encode | Literal[False] | None = False  # False: not looked for yet
    encoding = {key: value for key, value in description.items() if key != ALSO_END}
    text = json.dumps(encoding, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
    if description["model"].get("dropout"):
      raise UserError(
        f"tokenizer {name} has dropout={description['model']['dropout']!r} and cuts the same text"
        f" differently every time; set its model's dropout to null"
      )
    self._vocab = dict(description["model"]["vocab"]) if _is_dict_vocab(description) else {}
    if not self._vocab:
      self._vocab = self._backend().get_vocab(with_added_tokens=False)
    added = description.get("added_tokens") or []
    self._added = {token["content"]: token for token in added}
    specials = {token["content"]: token["id"] for token in added if token.get("special")}
    self.special_ids = dict(specials)
    ids = self._vocab | {content: token["id"] for content, token in self._added.items()}
    self.vocab_size = _vocab_size(ids, name)
    found = by_name(specials, ids) | (description.get(DOCUMENT_IDS) or {})
    if found["eos"] is None:
      raise UserError(
        f"tokenizer {name} has none of {', '.join(_EOS_NAMES)}; one must mark the end of a document"
      )
    bos, self.eos_id, pad = found["bos"], found["eos"], found["pad"]
    self.bos_id = self.eos_id if bos is None else bos
    self.pad_id = self.eos_id if pad is None else pad
    self.end_ids = frozenset({self.bos_id, self.eos_id, *(description.get(ALSO_END) or ())})
    if max(self.end_ids) >= self.vocab_size:
      stated = ", ".join(f"{key}={description[key]}" for key in OURS if key in description)
      raise UserError(
        f"tokenizer {name} has {stated} and ids under {self.vocab_size}; import the model again"
      )
    self._silent = {*specials.values(), self.eos_id, self.bos_id, self.pad_id}
    self.is_byte_level = _is_byte_level(description, self._vocab, self._added, self._silent)

  @property
  def is_bytes(self) -> bool:
    """One id a byte: no merges, our layout."""
    return self.is_byte_level and self.vocab_size == FIRST_MERGE and not self._merges()

  @property
  def token_bytes(self) -> np.ndarray:
    return self._table(lambda data: len(data))

  @property
  def token_chars(self) -> np.ndarray:
    return self._table(lambda data: sum(byte & 0xC0 != 0x80 for byte in data))

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, without special ids: uint16, or int32 from a vocabulary over 65,536."""
    if self.is_bytes:
      return [
        np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16) + np.uint16(NUM_SPECIALS)
        for text in texts
      ]
    if fast := self._fast():
      return [fast(text) for text in texts]
    encoded = self._backend().encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(item.ids, dtype=self.dtype) for item in encoded]

  def decode(self, ids: np.ndarray | Sequence[int]) -> str:
    """Text of the ids; special ids are left out. Bytes that are no UTF-8 become U+FFFD."""
    ids = [int(i) for i in ids]
    if not self.is_byte_level:
      return self._backend().decode(ids, skip_special_tokens=True)
    return self._joined(ids).decode("utf-8", errors="replace")

  def gives_back(self, text: str, ids: np.ndarray) -> bool:
    """Whether the ids hold the whole text: decoded, they are it."""
    if not self.is_byte_level:
      return self.decode(ids) == text
    table, starts, lengths = self._byte_table()
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    size_N = lengths[ids]
    ends = np.cumsum(size_N)
    if data.size != (ends[-1] if ends.size else 0):
      return False
    places = np.repeat(starts[ids] - (ends - size_N), size_N) + np.arange(data.size)
    return np.array_equal(table[places], data)

  def _byte_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bytes of all ids in a row, where each id's begin, how many they are)."""
    if self._table_of_bytes is None:
      tokens = self._id_bytes()
      lengths = np.array([len(token) for token in tokens], np.int64)
      table = np.frombuffer(b"".join(tokens), np.uint8)
      self._table_of_bytes = table, np.cumsum(lengths) - lengths, lengths
    return self._table_of_bytes

  def _joined(self, ids: list[int]) -> bytes:
    return b"".join(map(self._id_bytes().__getitem__, ids))

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.uint16 if self.vocab_size <= MAX_VOCAB else np.int32)

  def save(self, path: str | Path) -> None:
    Path(path).write_text(json.dumps(self.description, ensure_ascii=False, indent=1), "utf-8")

  def _merges(self) -> list:
    return self.description["model"].get("merges") or []

  def _backend(self):
    if self._encoder is None:
      from tokenizers import Tokenizer as Backend

      try:
        self._encoder = Backend.from_str(json.dumps(standard(self.description)))
      except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer {self.name} is not a usable tokenizer.json: {error}") from None
      self._encoder.encode_special_tokens = True
      self._encoder.no_padding()
      self._encoder.no_truncation()
    return self._encoder

  def _fast(self) -> Encode | None:
    """tiktoken over this vocabulary, where it provably gives the same ids."""
    if self._fast_encoder is False:
      ours = description_of({}, [])["pre_tokenizer"]
      self._fast_encoder = None
      plain_added = [token for token in self._added.values() if not token.get("special")]
      same_cuts = self.description.get("pre_tokenizer") == ours and not plain_added
      if self.is_byte_level and same_cuts:
        model = self._backend().model
        self._fast_encoder = fast_encoder(
          self._id_bytes(), self._merges(), FIRST_MERGE, model, self.dtype
        )
    return self._fast_encoder

  def _id_bytes(self) -> list[bytes]:
    if self._bytes is None:
      table = [b""] * self.vocab_size
      for token, index in self._vocab.items():
        if index not in self._silent:
          table[index] = bytes(_BYTE_OF[symbol] for symbol in token)
      for content, token in self._added.items():
        if token["id"] not in self._silent:
          table[token["id"]] = content.encode("utf-8")
      self._bytes = table
    return self._bytes

  def _table(self, count) -> np.ndarray:
    if not self.is_byte_level:
      raise UserError(
        f"tokenizer {self.name} is not byte-level, so its ids stand for no fixed bytes; "
        f"use the document mode of evaluation, which counts bytes on the original text"
      )
    return np.array([count(data) for data in self._id_bytes()], np.int64)


def by_name(specials: dict[str, int], ids: dict[str, int]) -> dict[str, int | None]:
  """What begins, ends and pads, by the usual names; None for what has none of them."""
  # A name in the plain vocabulary may be a merge that texts contain.
  named = specials if _first(specials, _EOS_NAMES) is not None else ids
  names = {"bos": _BOS_NAMES, "eos": _EOS_NAMES, "pad": _PAD_NAMES}
  return {kind: _first(named, those) for kind, those in names.items()}


def standard(description: dict) -> dict:
  """A description as other libraries read it."""
  return {key: value for key, value in description.items() if key not in OURS}


def _first(vocab: dict[str, int], names: Sequence[str]) -> int | None:
  return next((vocab[name] for name in names if name in vocab), None)


def _is_dict_vocab(description: dict) -> bool:
  return isinstance(description["model"].get("vocab"), dict)


def _vocab_size(ids: dict[str, int], name: str) -> int:
  """One more than the largest id."""
  wrong = [token for token, i in ids.items() if type(i) is not int or not 0 <= i < _MOST_IDS]
  if wrong or not ids:
    problem = f"the id {ids[wrong[0]]!r} for {wrong[0]!r}" if wrong else "no tokens"
    raise UserError(f"tokenizer {name} has {problem}; ids are integers from 0 to {_MOST_IDS - 1:,}")
  return max(ids.values()) + 1


def _is_byte_level(description: dict, vocab: dict, added: dict, silent: set[int]) -> bool:
  """A BPE over byte symbols, all 256 of them, with nothing rewriting the text before it.

  Tokens added as text stand for their own bytes, unless they also take the blanks around them.
  """
  if description["model"].get("type") != "BPE" or description.get("normalizer") is not None:
    return False
  if '"ByteLevel"' not in json.dumps(description.get("pre_tokenizer")):
    return False
  if '"add_prefix_space": true' in json.dumps(description.get("pre_tokenizer")):
    return False
  for content, token in added.items():
    if token["id"] in silent:
      continue
    if token.get("lstrip") or token.get("rstrip"):
      return False
    symbols = "".join(BYTE_SYMBOLS[byte] for byte in content.encode("utf-8"))
    if vocab.get(content, token["id"]) != token["id"] or (content in vocab and content != symbols):
      return False
  plain = [token for token, index in vocab.items() if index not in silent]
  return set(BYTE_SYMBOLS) <= set(plain) and all(c in _BYTE_OF for token in plain for c in token)


def description_of(vocab: dict[str, int], merges: list) -> dict:
  """The tokenizer.json of a byte-level BPE in our layout."""
  byte_level = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False,
  }  # fmt: skip
  split = {
    "type": "Split", "pattern": {"Regex": GPT4_PATTERN}, "behavior": "Isolated", "invert": False,
  }  # fmt: skip
  specials = [
    {
      "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
      "normalized": False, "special": True,
    }
    for i, token in enumerate(SPECIALS)
  ]  # fmt: skip
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": specials,
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
    "post_processor": None,
    "decoder": byte_level,
    "model": {
      "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
      "ignore_merges": False, "vocab": vocab, "merges": merges,
    },
  }  # fmt: skip


def byte_tokenizer() -> Tokenizer:
  """256 bytes and 16 specials: 272 ids, nothing to train, exact on any text."""
  vocab = {token: i for i, token in enumerate(SPECIALS)}
  vocab |= {symbol: NUM_SPECIALS + byte for byte, symbol in enumerate(BYTE_SYMBOLS)}
  return Tokenizer(description_of(vocab, []), "bytes")


def load(path: str | Path) -> Tokenizer:
  """Any tokenizer.json, local or remote. Raises UserError when it is none."""
  tokenizer = Tokenizer(read(path), str(path))
  if tokenizer.is_bytes:
    tokenizer.name = "bytes"
  return tokenizer


def read(path: str | Path) -> dict:
  """The description in a tokenizer.json, local or remote. Raises UserError when it is none."""
  if not storage.is_remote(path) and Path(path).is_dir():
    raise UserError(f"{path} is a folder; give the tokenizer.json in it")
  if not storage.is_file(path):
    raise UserError(f"{path} does not exist; give 'bytes', 'bpe:<vocab>' or a tokenizer.json")
  return checked_json.read(path, _TOKENIZER, "give a whole tokenizer.json")
