import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.bpe_training import train_bpe
from moe_parity.errors import UserError
from tests.helpers.small_store import one_separator_tokenizer, records

BYTES = tokenizers.byte_tokenizer()
any_text = st.text(st.characters(codec="utf-8"))


@pytest.fixture(scope="module")
def bpe():
  texts = [r["text"] for r in records(300, longest=200)] + ["the cat sat on the mat. "] * 50
  return train_bpe(texts, 400)


def test_bytes_are_ids_16_to_271():
  (ids,) = BYTES.encode_batch(["aé\x00"])
  assert ids.tolist() == [16 + 97, 16 + 0xC3, 16 + 0xA9, 16]
  assert ids.dtype == np.uint16
  assert (BYTES.vocab_size, BYTES.bos_id, BYTES.eos_id, BYTES.pad_id) == (272, 0, 1, 2)


@given(text=any_text)
@settings(max_examples=200)
def test_bytes_give_back_any_text(text):
  (ids,) = BYTES.encode_batch([text])
  assert BYTES.decode(ids) == text
  assert BYTES.token_bytes[ids].sum() == len(text.encode())
  assert BYTES.token_chars[ids].sum() == len(text)


@given(text=any_text)
@settings(max_examples=200)
def test_bpe_gives_back_any_text_and_counts_it(bpe, text):
  (ids,) = bpe.encode_batch([text])
  assert bpe.decode(ids) == text
  assert bpe.token_bytes[ids].sum() == len(text.encode())
  assert bpe.token_chars[ids].sum() == len(text)


def test_the_library_reads_our_byte_description_as_we_do():
  from tokenizers import Tokenizer as Backend

  text = "naïve \t\r\n \U0001f600 <|eos|> 1234567"
  backend = Backend.from_str(json.dumps(BYTES.description))
  backend.encode_special_tokens = True
  assert backend.encode(text).ids == BYTES.encode_batch([text])[0].tolist()


def test_bpe_has_our_layout_and_merges_words(bpe):
  assert bpe.vocab_size == 400 and bpe.dtype == np.uint16
  assert bpe.encode_batch(["\x00"])[0].tolist() == [16]
  (ids,) = bpe.encode_batch([" the"])
  assert len(ids) == 1 and ids[0] >= 272


def test_tiktoken_gives_the_ids_of_the_library(bpe):
  pytest.importorskip("tiktoken")
  fast = bpe._fast()
  assert fast is not None
  points = [*range(0x20, 0x500), *range(0x2000, 0x2100), 0x85, 0x180E, 0x3000, 0xFEFF, 0x1F600]
  texts = [f"a{c}b 1{c}2 {c}{c} x\n{c}'{c}'S the the" for c in map(chr, points)]
  expected = bpe._backend().encode_batch(texts, add_special_tokens=False)
  assert [fast(text).tolist() for text in texts] == [item.ids for item in expected]


# Of every class that the pattern tells apart: quotes and their endings, letters, digits, marks,
# spaces and line ends.
KINDS = "'sSdmtTlLvVeErR  abc\n\r\t\u3000\u00a0\u017f17²Ⅷé日!?.-_\U0001f600"


@pytest.fixture(scope="module")
def tangled():
  """A vocabulary whose tokens join anything to anything that a cut does not keep apart."""
  draw = random.Random(3)
  texts = ["".join(draw.choices(KINDS, k=400)) for _ in range(120)]
  return train_bpe(texts, 3000)


@settings(max_examples=300)
@given(text=st.text(st.sampled_from(KINDS), max_size=40))
def test_tiktoken_cuts_where_the_library_cuts(tangled, text):
  (expected,) = tangled._backend().encode_batch([text], add_special_tokens=False)
  assert tangled._fast()(text).tolist() == expected.ids


@pytest.mark.parametrize("change", ["order", "unreachable", "twice"])
def test_tiktoken_is_not_used_where_it_could_differ(change):
  pytest.importorskip("tiktoken")
  vocab = dict(BYTES.description["model"]["vocab"])
  listed = {
    "order": [["b", "c"], ["a", "b"]],
    "unreachable": [["a", "b"], ["b", "c"], ["a", "bc"]],
    "twice": [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]],
  }[change]
  names = {
    "order": ["ab", "bc"], "unreachable": ["ab", "bc", "abc"], "twice": ["ab", "bc", "abc"],
  }[change]  # fmt: skip
  vocab |= {name: 272 + i for i, name in enumerate(names)}
  tokenizer = tokenizers.Tokenizer(tokenizers.description_of(vocab, listed))
  assert tokenizer._fast() is None
  assert tokenizer.decode(tokenizer.encode_batch(["abc abab bc"])[0]) == "abc abab bc"


@pytest.mark.parametrize("text", ["<|bos|>", "<|eos|> a <|pad|>", "<|reserved_3|>"])
def test_text_that_spells_a_special_token_stays_text(bpe, text):
  for tokenizer in (BYTES, bpe):
    (ids,) = tokenizer.encode_batch([text])
    assert (ids >= 16).all()
    assert tokenizer.decode(ids) == text


def test_training_again_gives_the_same_tokenizer():
  texts = [r["text"] for r in records(200, longest=200)]
  first, second = train_bpe(texts, 350), train_bpe(texts, 350)
  assert first.fingerprint == second.fingerprint
  assert first.fingerprint != train_bpe(texts, 351).fingerprint


def test_a_saved_tokenizer_is_the_same_tokenizer(bpe, tmp_path):
  for tokenizer in (BYTES, bpe):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    text = "the cat, été\n\n  x"
    assert loaded.encode_batch([text])[0].tolist() == tokenizer.encode_batch([text])[0].tolist()


def test_a_vocabulary_with_one_separator_uses_it_at_both_ends(tmp_path):
  loaded = tokenizers.load(one_separator_tokenizer(tmp_path))
  assert loaded.bos_id == loaded.eos_id == loaded.pad_id == 0
  (ids,) = loaded.encode_batch(["two é"])
  assert loaded.decode(ids) == "two é"
  assert loaded.token_bytes[ids].sum() == 6


def test_ids_that_are_not_byte_level_have_no_bytes_to_count(tmp_path):
  from tokenizers import Tokenizer as Backend
  from tokenizers import models, pre_tokenizers

  backend = Backend(models.WordLevel({"</s>": 0, "a": 1, "?": 2}, unk_token="?"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.save(str(tmp_path / "tokenizer.json"))
  loaded = tokenizers.load(tmp_path / "tokenizer.json")
  assert not loaded.is_byte_level
  with pytest.raises(UserError, match="not byte-level"):
    _ = loaded.token_bytes


def test_a_vocabulary_over_65536_is_kept_in_int32():
  description = json.loads(json.dumps(BYTES.description))
  description["model"]["vocab"] |= {"a" * i: 272 + i for i in range(2, 300)}
  description["model"]["vocab"]["b" * 9] = 70_000
  assert tokenizers.Tokenizer(description).dtype == np.int32


@pytest.mark.parametrize("size", [0, 272, 65_537])
def test_a_vocabulary_out_of_range_is_refused(size):
  with pytest.raises(UserError, match="is not between bpe:273 and bpe:65536"):
    train_bpe(["abc"], size)


def test_too_little_text_for_the_vocabulary_is_refused():
  with pytest.raises(UserError, match="give only 27[0-9] of vocab_size=5000"):
    train_bpe(["abc abc"], 5000)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match="tokenizer.json is damaged"):
    tokenizers.load(tmp_path / "tokenizer.json")
  with pytest.raises(UserError, match="does not exist"):
    tokenizers.load(tmp_path / "missing.json")


@pytest.mark.parametrize("text", [
  "", "[" * 100_000, '{"model": 3}', '{"model": {"type": "BPE", "vocab": {"a": NaN}}}',
  '{"model": {"type": "BPE", "vocab": {"a": -1}}}', '{"model": {"type": "BPE", "vocab": {}}}',
  '{"model": {"type": "BPE", "vocab": {"a": 99999999999}}}', '{"model": {"type": "X"}}',
  '{"model": {"type": "BPE", "vocab": {"a": true}, "merges": []}}',
  '{"model": {"type": "BPE", "vocab": {"\\ud83d": 0}}}',
  '{"model": {"type": "BPE", "vocab": {"</s>": 0}}, "added_tokens": [{"id": 0}]}',
])  # fmt: skip
def test_a_hostile_tokenizer_file_is_refused(tmp_path, text):
  (tmp_path / "tokenizer.json").write_text(text)
  with pytest.raises(UserError, match="tokenizer.json") as raised:
    tokenizers.load(tmp_path / "tokenizer.json").encode_batch(["a"])
  assert "\n" not in str(raised.value)
