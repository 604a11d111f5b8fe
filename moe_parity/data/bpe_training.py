"""Training of a byte-level BPE, in time that grows with the text and not with its longest word."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator

from moe_parity.data.fast_encoder import GPT4_PATTERN
from moe_parity.data.tokenizer import (
  BYTE_SYMBOLS,
  NUM_SPECIALS,
  SPECIALS,
  Tokenizer,
  description_of,
)  # fmt: skip
from moe_parity.errors import UserError
from moe_parity.fields.check import check_value

# A piece between two cuts of GPT4_PATTERN: letters, marks or blanks without an end to them. The
# trainer takes time with the square of a piece; words are shorter.
LONGEST_PIECE = 128
_LONG = re.compile(
  rf"[^\W\d_]{{{LONGEST_PIECE + 1},}}|(?:[^\w\s]|_){{{LONGEST_PIECE + 1},}}"
  rf"|\s{{{LONGEST_PIECE + 1},}}"
)
_LONG_BLANKS = re.compile(rf"\s{{{LONGEST_PIECE + 1}}}")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Byte-level BPE over GPT-4's pieces, specials and bytes included in `vocab_size`.

  Deterministic for the same texts in the same order.

  Raises:
    UserError: vocab_size is out of range, or the texts are too few to give that many merges.
  """
  vocab_size_of(f"bpe:{vocab_size}")
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
  pieces = itertools.chain.from_iterable(map(bounded_pieces, texts))
  backend.train_from_iterator(pieces, trainer)
  model = json.loads(backend.to_str())["model"]
  if len(model["vocab"]) != vocab_size:
    raise UserError(
      f"the texts give only {len(model['vocab'])} of vocab_size={vocab_size} ids; "
      f"train on more text or ask for bpe:{len(model['vocab'])}"
    )
  # The trainer orders the 256 bytes by symbol; ours are in byte order, merges stay where they are.
  vocab = model["vocab"] | {symbol: NUM_SPECIALS + byte for byte, symbol in enumerate(BYTE_SYMBOLS)}
  vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
  return Tokenizer(description_of(vocab, model["merges"]), f"bpe:{vocab_size}")


def vocab_size_of(spec: str) -> int:
  """The vocabulary that 'bpe:32768' asks for; UserError for any other form or size."""
  check_value("data.tokenizer", spec)
  return int(spec.removeprefix("bpe:"))


def bounded_pieces(text: str) -> Iterator[str]:
  """The text, cut inside runs of over LONGEST_PIECE letters, marks or blanks; nothing is left out.

  Training sees no merge across such a cut; encoding does not cut there.
  """
  words = text.split()
  if max(map(len, words), default=0) <= LONGEST_PIECE and not _LONG_BLANKS.search(text):
    yield text
    return
  start = 0
  for run in _LONG.finditer(text):
    for place in range(run.start() + LONGEST_PIECE, run.end(), LONGEST_PIECE):
      yield text[start:place]
      start = place
  yield text[start:]
