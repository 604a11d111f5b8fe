"""Text inside of a text has the ids it has there, and decodes with the space before it."""

import numpy as np
import pytest

from moe_parity.data import inner_text
from moe_parity.data.inner_text import adds_space, decode_after, encode_inside
from moe_parity.data.tokenizer import Tokenizer, byte_tokenizer
from moe_parity.downstream import prompts
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.generation import continued
from moe_parity.downstream.tasks import BenchmarkTask, Item
from moe_parity.errors import UserError
from tests.helpers import sentencepiece_like

STYLES = ("prepend", "metaspace", "none")


def tokenizer(style):
  return Tokenizer(sentencepiece_like.description(style))


def ids_of(found, text):
  return found.encode_batch([text])[0].tolist()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", [" cat", " the cat", "cat", "\nthe cat", "  cat", "?"])
def test_a_continuation_has_the_ids_of_the_whole_text(style, text):
  found, context = tokenizer(style), "a hat:"
  whole = ids_of(found, context + text)
  inside = encode_inside(found, [text])[0].tolist()
  assert [*ids_of(found, context), *inside] == whole
  assert adds_space(found) == (style != "none")


def test_alone_the_same_text_has_a_space_more():
  """What the ids were before: "▁▁the", which no text with one space has."""
  found = tokenizer("prepend")
  assert len(ids_of(found, " the")) == 2 and len(encode_inside(found, [" the"])[0]) == 1


def test_other_tokenizers_encode_as_ever():
  found = byte_tokenizer()
  assert not adds_space(found)
  assert encode_inside(found, [" the"])[0].tolist() == ids_of(found, " the")


def test_a_text_that_is_never_a_token_of_its_own_is_refused(monkeypatch):
  monkeypatch.setattr(inner_text, "_MARKS", ("t",))  # "t" and "he" make one token
  with pytest.raises(UserError, match='makes one token of "he" and any text before it'):
    encode_inside(tokenizer("prepend"), ["he"])


@pytest.mark.parametrize("style", STYLES)
def test_what_is_written_keeps_its_space(style):
  found = tokenizer(style)
  *before, last = ids_of(found, "a hat:")
  assert decode_after(found, last, encode_inside(found, [" the cat"])[0]) == " the cat"
  assert decode_after(found, last, encode_inside(found, ["\n  a"])[0]) == "\n  a"
  assert decode_after(found, found.bos_id, ids_of(found, "the cat")) == "the cat"
  assert before


@pytest.mark.parametrize("style", STYLES)
def test_choices_and_answers_of_a_task_are_inner_text(style):
  """An indented line of code that is written loses no space."""
  found = tokenizer(style)
  task = BenchmarkTask("t", "", "choices", "accuracy", 0, (Item("0", ("a hat:",), (" the", " a")),))
  made, _ = prompts.requests(task, found)
  for request, text in zip(made, ("a hat: the", "a hat: a"), strict=True):
    assert [*request.context, *request.continuation] == [found.bos_id, *ids_of(found, text)]

  class Writer:
    def generate(self, rows, limit):
      for token in encode_inside(found, ["  the cat."])[0]:
        yield np.full(len(rows), token)

  class Student(Examinee):
    generator = Writer()

    def __init__(self):
      self.tokenizer, self.num_positions = found, 64

  (text,), _ = continued(Student(), [made[0].context], [20], [(".",)])
  assert text == "  the cat"
