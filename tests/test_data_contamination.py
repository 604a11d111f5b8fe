import random

import numpy as np
import pytest

from moe_parity.data import contamination
from moe_parity.data.contamination import documents_of, overlap, words_of
from moe_parity.data.readers import Document
from moe_parity.errors import UserError
from tests.helpers.small_store import records, small_store

WORDS = [f"w{i}" for i in range(60)]


def text(seed, length):
  return " ".join(random.Random(seed).choices(WORDS[: 5 + seed % 3], k=length))


def documents(count, first, domain="d", length=40):
  return [Document(text(first + i, length), domain, f"s{first + i}") for i in range(count)]


def test_shared_ngrams_are_those_of_comparing_all_pairs():
  train, evaluation, n = documents(12, 0), documents(9, 50) + documents(3, 90, "e", 3), 4
  found = overlap(train, evaluation, n)
  everything = [d.text.split() for d in train]
  grams = {tuple(w[i : i + n]) for w in everything for i in range(len(w) - n + 1)}
  shared = {}
  for index, document in enumerate(evaluation):
    words = document.text.split()
    own = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    if own & grams:
      shared[index] = (len(own & grams), len(own))
  assert {d["index"]: (d["num_shared"], d["num_ngrams"]) for d in found["documents"]} == shared
  assert found["num_contaminated"] == len(shared) > 3
  assert (found["num_too_short"], found["by_domain"]["e"]["num_too_short"]) == (3, 3)
  assert found["by_domain"]["d"]["num_documents"] == 9


def test_equal_hashes_of_other_words_are_no_overlap(monkeypatch):
  def collide(words, n):
    return np.full(max(0, len(words) - n + 1), 7, np.uint64)

  monkeypatch.setattr(contamination, "_rolling", collide)
  found = overlap([Document("a b c d e", "d", "s")], [Document("b c x c d", "d", "t")], 2)
  assert found["documents"][0]["num_shared"] == 2


def test_a_copy_is_found_whatever_its_layout_and_named():
  sentence = "It is a truth universally acknowledged, that a single man in possession of a fortune"
  copied = sentence.upper().replace(" ", "\n  -- ")
  train = [Document("x y z " * 50, "d", "noise"), Document(f"before {copied} after", "d", "copy")]
  found = overlap(train, [Document(sentence, "quiz", "q1"), Document("a " * 40, "quiz", "q2")])
  assert [d["source"] for d in found["documents"]] == ["q1"]
  assert found["documents"][0]["share"] == 1.0
  assert found["documents"][0]["train_sources"] == ["copy"]
  assert found["documents"][0]["example"].startswith("a truth universally")


def test_words_are_letters_and_digits_of_any_script():
  assert words_of("Élan_vital, 3.14 日本-語!") == ["élan", "vital", "3", "14", "日本", "語"]


def test_a_store_can_be_checked_against_itself(tmp_path):
  store = small_store(tmp_path)
  found = overlap(documents_of(store.train), documents_of(store.train), n=2)
  countable = sum(len(words_of(d.text)) >= 2 for d in documents_of(store.train))
  assert found["num_contaminated"] == countable and found["share"] == 1.0
  assert {d.text for d in documents_of(store.validation)} <= {r["text"] for r in records(60)}


def test_nothing_to_compare_is_refused():
  with pytest.raises(UserError, match="no evaluation text"):
    overlap(documents(2, 0), [])
  with pytest.raises(UserError, match="n=0"):
    overlap(documents(2, 0), documents(2, 5), 0)
