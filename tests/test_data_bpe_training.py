"""Training a BPE takes bounded time on any text, and the same merges on ordinary text."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.data import build
from moe_parity.data.bpe_training import LONGEST_PIECE, bounded_pieces, train_bpe
from moe_parity.data.prepare import prepare
from tests.helpers.small_store import records, write_jsonl

LONG = st.builds(
  lambda parts: "".join(letter * count for letter, count in parts),
  st.lists(
    st.tuples(st.sampled_from(list("aZé日ก1_-=. \n\t\u3000²")), st.integers(1, 400)), max_size=6
  ),
)


@given(LONG)
def test_pieces_are_the_text_and_hold_no_long_run(text):
  pieces = list(bounded_pieces(text))
  assert "".join(pieces) == text
  for piece in pieces:
    kinds = ["".join(kind(c) for c in piece) for kind in (
      lambda c: "x" if c.isalpha() else " ",
      lambda c: "x" if c.isspace() else " ",
      lambda c: "x" if not (c.isalnum() or c.isspace()) else " ",
    )]  # fmt: skip
    assert max(len(run) for kind in kinds for run in [*kind.split(" "), ""]) <= LONGEST_PIECE


def test_ordinary_text_is_not_cut():
  for record in records(100, longest=2000):
    assert list(bounded_pieces(record["text"])) == [record["text"]]
  words = "word, " * 5000
  assert list(bounded_pieces(words)) == [words]


@pytest.mark.parametrize("letters", ["ACGT", "=-", " \t", "日月火水", "aA_9", "กา"])
def test_unbroken_text_takes_seconds(letters):
  """A million letters without an end; without cuts the trainer takes minutes."""
  rng = random.Random(1)
  text = "".join(rng.choices(letters, k=300_000))
  start = time.process_time()
  train_bpe([*(r["text"] for r in records(100)), text], 330)
  assert time.process_time() - start < 30


def test_training_text_is_bounded_for_one_huge_document(tmp_path, monkeypatch):
  monkeypatch.setattr(build, "TOKENIZER_BYTES", 2000)
  seen = []
  monkeypatch.setattr(build, "train_bpe", lambda texts, size: seen.extend(texts) or train_bpe(
    seen, size))  # fmt: skip
  big = {"text": "one two three four five six seven eight nine ten " * 2000}
  source = write_jsonl(tmp_path / "a.jsonl", [big, *records(20)])
  prepare(source, "bpe:290", str(tmp_path / "st"), held_out="hash:0.3")
  assert sum(map(len, seen)) <= 2 * 2000
