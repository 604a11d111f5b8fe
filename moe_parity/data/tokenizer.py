"""Text to ids and back: bytes, byte-level BPE, or any tokenizer.json. One small interface.

Our own vocabularies share a layout: ids 0..15 are special (0 begins a document, 1 ends it, 2 pads),
ids 16..271 are the 256 bytes in order, merges follow. A vocabulary of at most 65,536 fits uint16.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from moe_parity.data import storage
from moe_parity.data.fast_encoder import GPT4_PATTERN, Encode, fast_encoder
from moe_parity.errors import UserError

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>") + tuple(f"<|reserved_{i}|>" for i in range(13))
NUM_SPECIALS = len(SPECIALS)
FIRST_MERGE = NUM_SPECIALS + 256
MAX_VOCAB = 65_536
_BOS_NAMES = ("<|bos|>", "<s>", "<|begin_of_text|>", "<bos>", "[CLS]")
_EOS_NAMES = ("<|eos|>", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")
_PAD_NAMES = ("<|pad|>", "<pad>", "<|padding|>", "[PAD]")


def _byte_symbols() -> list[str]:
  """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  symbols, extra = [""] * 256, 256
  for byte in range(256):
    if byte in plain:
      symbols[byte] = chr(byte)
    else:
      symbols[byte], extra = chr(extra), extra + 1
  return symbols


_SYMBOLS = _byte_symbols()
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(_SYMBOLS)}


class Tokenizer:
  """A vocabulary described by the JSON of a tokenizer.json.

  `encode_batch` adds no special ids and never produces one: a text that spells out '<|eos|>' is
  encoded as those letters. Whoever writes a stream of documents adds `bos_id` and `eos_id`.

  Attributes:
    vocab_size: ids run from 0 to vocab_size - 1.
    bos_id, eos_id, pad_id: where a vocabulary has no such token, the end of a document also begins
      one and pads.
    fingerprint: sha256 of the description, whatever its layout on disk.
    is_byte_level: every id stands for known bytes, so bits can be counted on any cut of a stream.
    token_bytes: int64 [vocab_size], bytes an id stands for; 0 for special ids.
    token_chars: int64 [vocab_size], characters that begin in an id. Summed over a whole text both
      are exact, also where a token ends inside a character.
  """

  def __init__(self, description: dict, name: str = "tokenizer"):
    self.name = name
    self.description = description
    self._encoder = None
    self._bytes = None
    self._fast_encoder: Encode | Literal[False] | None = False  # False: not looked for yet
    text = json.dumps(description, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
    vocab = dict(description["model"].get("vocab") or {}) if _is_dict_vocab(description) else {}
    specials = {}
    for token in description.get("added_tokens") or []:
      vocab[token["content"]] = token["id"]
      specials[token["content"]] = token["id"]
    if not vocab:
      vocab = self._backend().get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab.values()) + 1
    self.eos_id = _first(vocab, _EOS_NAMES)
    if self.eos_id is None:
      raise UserError(
        f"tokenizer {name} has none of {', '.join(_EOS_NAMES)}; one must mark the end of a document"
      )
    bos, pad = _first(vocab, _BOS_NAMES), _first(vocab, _PAD_NAMES)
    self.bos_id = self.eos_id if bos is None else bos
    self.pad_id = self.eos_id if pad is None else pad
    self._vocab, self._specials = vocab, specials
    self.is_byte_level = _is_byte_level(description, vocab, specials)

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
    tokens = self._id_bytes()
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")

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
        self._encoder = Backend.from_str(json.dumps(self.description))
      except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer {self.name} is not a usable tokenizer.json: {error}") from None
      self._encoder.encode_special_tokens = True
      self._encoder.no_padding()
      self._encoder.no_truncation()
    return self._encoder

  def _fast(self) -> Encode | None:
    """tiktoken over this vocabulary, where it provably gives the same ids."""
    if self._fast_encoder is False:
      ours = _description({}, [])["pre_tokenizer"]
      self._fast_encoder = None
      if self.is_byte_level and self.description.get("pre_tokenizer") == ours:
        model = self._backend().model
        self._fast_encoder = fast_encoder(
          self._id_bytes(), self._merges(), FIRST_MERGE, model, self.dtype
        )
    return self._fast_encoder

  def _id_bytes(self) -> list[bytes]:
    if self._bytes is None:
      table = [b""] * self.vocab_size
      for token, index in self._vocab.items():
        if token not in self._specials:
          table[index] = bytes(_BYTE_OF[symbol] for symbol in token)
      self._bytes = table
    return self._bytes

  def _table(self, count) -> np.ndarray:
    if not self.is_byte_level:
      raise UserError(
        f"tokenizer {self.name} is not byte-level, so its ids stand for no fixed bytes; "
        f"use the document mode of evaluation, which counts bytes on the original text"
      )
    return np.array([count(data) for data in self._id_bytes()], np.int64)


def _first(vocab: dict[str, int], names: Sequence[str]) -> int | None:
  return next((vocab[name] for name in names if name in vocab), None)


def _is_dict_vocab(description: dict) -> bool:
  return isinstance(description["model"].get("vocab"), dict)


def _is_byte_level(description: dict, vocab: dict, specials: dict) -> bool:
  """A BPE over byte symbols, all 256 of them, with nothing rewriting the text before it."""
  if description["model"].get("type") != "BPE" or description.get("normalizer") is not None:
    return False
  if '"ByteLevel"' not in json.dumps(description.get("pre_tokenizer")):
    return False
  if '"add_prefix_space": true' in json.dumps(description.get("pre_tokenizer")):
    return False
  plain = [token for token in vocab if token not in specials]
  return set(_SYMBOLS) <= set(plain) and all(c in _BYTE_OF for token in plain for c in token)


def _description(vocab: dict[str, int], merges: list) -> dict:
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
  vocab |= {symbol: NUM_SPECIALS + byte for byte, symbol in enumerate(_SYMBOLS)}
  return Tokenizer(_description(vocab, []), "bytes")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Byte-level BPE over GPT-4's pieces, specials and bytes included in `vocab_size`.

  Deterministic for the same texts in the same order.

  Raises:
    UserError: vocab_size is out of range, or the texts are too few to give that many merges.
  """
  if not FIRST_MERGE < vocab_size <= MAX_VOCAB:
    raise UserError(
      f"vocab_size={vocab_size} must lie in {FIRST_MERGE + 1}..{MAX_VOCAB} (ids are uint16); "
      f"use bpe:32768, or bytes for {FIRST_MERGE}"
    )
  from tokenizers import Regex, models, pre_tokenizers, trainers
  from tokenizers import Tokenizer as Backend

  backend = Backend(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(GPT4_PATTERN), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIALS),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  model = json.loads(backend.to_str())["model"]
  if len(model["vocab"]) != vocab_size:
    raise UserError(
      f"the texts give only {len(model['vocab'])} of vocab_size={vocab_size} ids; "
      f"train on more text or ask for bpe:{len(model['vocab'])}"
    )
  # The trainer orders the 256 bytes by symbol; ours are in byte order, merges stay where they are.
  vocab = model["vocab"] | {symbol: NUM_SPECIALS + byte for byte, symbol in enumerate(_SYMBOLS)}
  vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
  return Tokenizer(_description(vocab, model["merges"]), f"bpe:{vocab_size}")


def load(path: str | Path) -> Tokenizer:
  """Any tokenizer.json, local or remote. Raises UserError when it is none."""
  if not storage.is_file(path):
    raise UserError(f"{path} does not exist; give 'bytes', 'bpe:<vocab>' or a tokenizer.json")
  try:
    description = json.loads(storage.read_text(path))
    description["model"]["type"]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is not a tokenizer.json: {error!r}") from None
  tokenizer = Tokenizer(description, str(path))
  if tokenizer.is_bytes:
    tokenizer.name = "bytes"
  return tokenizer
