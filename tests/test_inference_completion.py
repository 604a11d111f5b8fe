"""Text in and out, with a generator that writes given ids."""

import numpy as np
import pytest

from moe_parity.data.tokenizer import ALSO_END, Tokenizer, byte_tokenizer
from moe_parity.errors import UserError
from moe_parity.inference.completion import complete
from moe_parity.inference.generator import Generator

TOKENIZER = byte_tokenizer()


class Scripted(Generator):
  """Stands for a Generator: writes these texts, a byte a step."""

  num_positions = 40

  def __init__(self, *texts, end=False):
    encoded = [row.tolist() for row in TOKENIZER.encode_batch(list(texts))]
    self.rows = [row + [TOKENIZER.eos_id] * end for row in encoded]
    self.steps = 0

  def generate(self, prompts, max_tokens, sampling, seed):
    self.prompts, self.max_tokens = prompts, max_tokens
    for step in range(max_tokens):
      self.steps += 1
      yield np.array([row[min(step, len(row) - 1)] for row in self.rows])


def run(scripted, prompts, **options):
  """(completions, what was shown of each, piece by piece)."""
  pieces = [[] for _ in prompts]

  def on_text(row, text, is_last):
    pieces[row].append((text, is_last))

  return complete(scripted, TOKENIZER, prompts, on_text=on_text, **options), pieces


def test_prompts_begin_as_documents_do_and_end_at_their_end():
  scripted = Scripted("xy", "abcd", end=True)
  done, pieces = run(scripted, ["é", ""])
  assert [p.tolist() for p in scripted.prompts] == [
    [TOKENIZER.bos_id, *TOKENIZER.encode_batch(["é"])[0]], [TOKENIZER.bos_id],
  ]  # fmt: skip
  assert scripted.max_tokens == 37  # of 40 positions the longest prompt takes 3
  assert [c.text for c in done] == ["xy", "abcd"]
  assert [c.finish for c in done] == ["stop", "stop"]
  assert done[0].tokens[-1] == TOKENIZER.eos_id and scripted.steps == 5
  for completion, of_row in zip(done, pieces, strict=True):
    assert "".join(text for text, _ in of_row) == completion.text
    assert [is_last for _, is_last in of_row].index(True) == len(of_row) - 1


def test_whatever_else_the_tokenizer_names_ends_a_text_too():
  third = TOKENIZER.special_ids["<|reserved_0|>"]
  tokenizer = Tokenizer(TOKENIZER.description | {ALSO_END: [third]})
  scripted = Scripted("abc")
  scripted.rows[0][2:] = [third]
  (done,) = complete(scripted, tokenizer, ["p"], max_tokens=9)
  assert done.text == "ab" and done.finish == "stop" and done.tokens[-1] == third
  (unknown,) = complete(scripted, TOKENIZER, ["p"], max_tokens=9)
  assert unknown.finish == "length" and len(unknown.tokens) == 9


def test_the_length_ends_a_completion():
  done, pieces = run(Scripted("abcdef"), ["p"], max_tokens=3)
  assert done[0].text == "abc" and done[0].finish == "length" and len(done[0].tokens) == 3
  assert pieces[0] == [("a", False), ("b", False), ("c", True)]


def test_characters_are_shown_whole():
  done, pieces = run(Scripted("aé€😀b"), ["p"], max_tokens=11)
  assert done[0].text == "aé€😀b"
  assert [text for text, _ in pieces[0]] == ["a", "é", "€", "😀", "b"]


def test_a_stop_text_never_shows_nor_does_its_beginning():
  done, pieces = run(Scripted("one\nUser: x"), ["p"], max_tokens=11, stop=["\nUser:", "zzz"])
  assert done[0].text == "one" and done[0].finish == "stop" and len(done[0].tokens) == 9
  assert "".join(text for text, _ in pieces[0]) == "one"


def test_what_only_began_like_a_stop_text_is_shown_after_all():
  done, pieces = run(Scripted("a\nUse b"), ["p"], max_tokens=7, stop=["\nUser:"])
  assert done[0].text == "a\nUse b" and done[0].finish == "length"
  assert [text for text, _ in pieces[0]] == ["a", "\nUse ", "b"]


def test_an_empty_stop_text_is_refused():
  with pytest.raises(UserError, match="stop='' is in every text"):
    complete(Scripted("a"), TOKENIZER, ["p"], stop=[""])
