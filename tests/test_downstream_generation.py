"""Room in the window for prompts and what is written, with a generator that only listens."""

import numpy as np

from moe_parity.data.tokenizer import ALSO_END, Tokenizer, byte_tokenizer
from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.generation import continued
from moe_parity.inference.generator import Generator

TOKENIZER = byte_tokenizer()


class Listening(Generator):
  """Stands for a Generator: keeps what it is asked, writes "a" for ever."""

  def __init__(self, window):
    self.num_positions, self.asked = window, []

  def generate(self, prompts, max_tokens):
    assert max(map(len, prompts)) + max_tokens <= self.num_positions
    self.asked += [(prompt.tolist(), max_tokens) for prompt in prompts]
    for _ in range(max_tokens):
      yield np.full(len(prompts), TOKENIZER.encode_batch(["a"])[0][0])


class Student(Examinee):
  generator = None

  def __init__(self, window):
    self.num_positions, self.tokenizer, self.generator = window, TOKENIZER, Listening(window)


def written(window, sizes, limits):
  """(texts, ids cut, id of a prompt's end -> (ids it was asked with, how many), lines said)."""
  student, said = Student(window), []
  rows = [np.array([*range(100, 99 + size), 20 + m]) for m, size in enumerate(sizes)]
  stops = [()] * len(rows)
  texts, num_cut = continued(student, rows, limits, stops, "t", said.append)
  return texts, num_cut.tolist(), {ids[-1]: (ids, n) for ids, n in student.generator.asked}, said


def test_a_long_answer_leaves_half_of_the_window_to_its_question():
  texts, num_cut, asked, said = written(12, [5, 20], [512, 512])
  assert num_cut == [0, 14] and list(map(len, texts)) == [6, 6]
  assert [len(asked[20 + m][0]) for m in range(2)] == [5, 6]
  assert said[0] == (
    "t: of the window's 12 positions 6 are for what is written, fewer than the 512 tokens that 2 of"
    " 2 items may have"
  )


def test_a_prompt_is_cut_for_its_own_answer_alone():
  """An item that may write more, or less, in the same call changes nothing for another."""
  _, alone, asked_alone, said = written(12, [11], [2])
  texts, together, asked, _ = written(12, [11, 3, 12], [2, 6, 1])
  assert alone == [1] and together == [1, 0, 1] and list(map(len, texts)) == [2, 6, 1]
  assert asked[20] == asked_alone[20] and not any("fewer than" in line for line in said)


def test_every_token_that_ends_a_text_ends_an_answer():
  letter = int(TOKENIZER.encode_batch(["a"])[0][0])
  student = Student(12)
  student.tokenizer = Tokenizer(TOKENIZER.description | {ALSO_END: [letter]})
  texts, _ = continued(student, [np.array([100, 20])], [5], [()], "t", print)
  assert texts == [""]
