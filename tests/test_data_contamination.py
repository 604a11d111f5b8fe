import random

import numpy as np
import pytest

from moe_parity.data import contamination
from moe_parity.data.contamination import documents_of, grams_of, overlap, units_of
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
  def collide(grams):
    return np.full(len(grams), 7, np.uint64)

  monkeypatch.setattr(contamination, "_hashes", collide)
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
  units, weights = units_of("Élan_vital, 3.14 日本-語! ไทย " + "x" * 41)
  assert units == ["élan", "vital", "3", "14", "日", "本", "語", "ไ", "ท", "ย", *"x" * 41]
  assert weights.tolist() == [2] * 4 + [1] * 47


def test_a_store_can_be_checked_against_itself(tmp_path):
  store = small_store(tmp_path)
  found = overlap(documents_of(store.train), documents_of(store.train), n=2)
  countable = sum(len(grams_of(d.text, 2)) > 0 for d in documents_of(store.train))
  assert found["num_contaminated"] == countable and found["share"] == 1.0
  assert {d.text for d in documents_of(store.validation)} <= {r["text"] for r in records(60)}


def test_nothing_to_compare_is_refused():
  with pytest.raises(UserError, match="no evaluation text"):
    overlap(documents(2, 0), [])
  with pytest.raises(UserError, match="n=0"):
    overlap(documents(2, 0), documents(2, 5), 0)


UNSPACED = {
  "Chinese": [chr(c) for c in range(0x4E00, 0x5E00)],
  "Japanese": [chr(c) for c in range(0x3041, 0x3090)] + list("日本語漢字"),
  "Thai": [chr(c) for c in range(0x0E01, 0x0E2F)],
  "Khmer": [chr(c) for c in range(0x1780, 0x17A3)],
  "extended Han": [chr(c) for c in range(0x20000, 0x20400)],
  "unbroken letters": list("ACGT"),
  "a script without a list": [chr(c) for c in range(0x10330, 0x1034A)],
}


@pytest.mark.parametrize("script", UNSPACED)
def test_copies_are_found_in_scripts_without_spaces(script):
  rng = random.Random(2)
  texts = ["".join(rng.choices(UNSPACED[script], k=300)) for _ in range(20)]
  train = [
    Document("前前" + text[:150] + "。" + text[150:] + "後", "d", "t") for text in texts[:10]
  ]
  found = overlap(train, [Document(text, "d", "e") for text in texts])
  assert [d["index"] for d in found["documents"]] == list(range(10))
  assert found["share"] == pytest.approx(0.5, abs=0.01) and found["num_too_short"] == 0


def test_copies_with_other_punctuation_are_found_without_spaces():
  letters = random.Random(3).choices(UNSPACED["Chinese"], k=280)
  train, copy = ("".join(c + "，" * (i % n == 0) for i, c in enumerate(letters)) for n in (8, 7))
  found = overlap([Document(train, "d", "t")], [Document(copy, "d", "e")])
  assert found["share"] == 1.0 and found["num_too_short"] == 0


def test_a_copy_in_a_mixture_of_scripts_is_found():
  copied = "the rate of 学习率很重要 for transformers is 0.01 and 我们使用 Adam with warm up"
  train = [Document(f"全然別的文字 {copied} 別的文字", "d", "t")]
  found = overlap(train, [Document(copied, "d", "e")])
  assert found["share"] == 1.0


def test_of_texts_without_a_run_nothing_is_said():
  train = documents(5, 0)
  found = overlap(train, [Document("short", "a", "s"), Document("?!? ... ♥♥♥" * 20, "b", "s")])
  assert (found["num_too_short"], found["num_contaminated"], found["share"]) == (2, 0, None)
  assert found["by_domain"]["a"]["share"] is None
  mixed = overlap(train, [Document("short", "a", "s"), Document(text(3, 40), "b", "s")])
  assert mixed["share"] is not None and mixed["by_domain"]["a"]["share"] is None


def test_the_command_never_prints_a_share_of_nothing(tmp_path, capsys):
  from moe_parity.cli import main
  from tests.helpers.small_store import write_jsonl

  store = small_store(tmp_path)
  against = write_jsonl(tmp_path / "eval.jsonl", [{"text": "短い"}, {"text": "two words"}])
  assert main(["data", "contamination", str(store.folder), "--against", against]) == 0
  out = capsys.readouterr().out
  assert "2 documents are shorter than a run of 13 words" in out and "cannot tell" in out
  assert " 0 %" not in out and "0.00 %" not in out


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_grams_have_equal_hashes_wherever_they_start(n):
  first, second = grams_of("x y 日本語の text a b c", n), grams_of("日本語の text a b c z", n)
  hashes = [dict(zip(map(g.__getitem__, range(len(g))), contamination._hashes(g).tolist(),
                     strict=True)) for g in (first, second)]  # fmt: skip
  both = set(hashes[0]) & set(hashes[1])
  assert both and all(hashes[0][gram] == hashes[1][gram] for gram in both)
  assert len({*hashes[0].values(), *hashes[1].values()}) == len({*hashes[0], *hashes[1]})
