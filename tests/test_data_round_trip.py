"""Tokenizers of others: what they do to a text is counted, refused or reported."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_parity.data import tokenizer as tokenizers
from moe_parity.data.prepare import prepare
from moe_parity.data.round_trip import losses, lost_text
from moe_parity.data.token_store import open_store
from moe_parity.errors import UserError
from tests.helpers.small_store import records, write_jsonl

CODE = [f"def f{i}(x):\n        if x:\n            return   {i}\n" for i in range(60)]
PLAIN = ["river stone lamp under winter garden quiet engine"] * 40


def byte_level(folder, texts, size=400, specials=("<|endoftext|>",), added=(), use_regex=True):
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size, special_tokens=list(specials), show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  backend.train_from_iterator(texts, trainer)
  backend.add_tokens(list(added))
  backend.save(str(folder / "tokenizer.json"))
  return str(folder / "tokenizer.json")


def spaces(**options):
  """Runs of spaces as GPT-NeoX, OLMo and OLMoE add them: text, not special."""
  return [AddedToken(" " * n, normalized=True, special=False, **options) for n in range(24, 1, -1)]


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
  folder = tmp_path_factory.mktemp("neox")
  return tokenizers.load(byte_level(folder, CODE, added=spaces()))


@given(st.text(st.sampled_from("ab \n\té日<|endoftext|>\U0001f600"), max_size=60))
@settings(max_examples=300)
def test_added_tokens_have_their_bytes_and_come_back(neox, text):
  (ids,) = neox.encode_batch([text])
  assert neox.is_byte_level
  assert neox.decode(ids) == text
  assert neox.token_bytes[ids].sum() == len(text.encode())
  assert neox.token_chars[ids].sum() == len(text)
  assert neox.gives_back(text, ids)
  assert not neox.gives_back(text + "a", ids) and not neox.gives_back("b" + text[1:] + "c", ids)
  if len(ids) > 1 and text != text[::-1]:
    assert neox.gives_back(text, ids[::-1]) == (neox.decode(ids[::-1]) == text)


def test_runs_of_spaces_really_become_added_tokens(neox):
  (ids,) = neox.encode_batch([CODE[0]])
  assert sum(int(i) >= 400 for i in ids) >= 2 and neox.token_bytes[neox.eos_id] == 0


@pytest.mark.parametrize("options", [{"lstrip": True}, {"rstrip": True}])
def test_an_added_token_that_takes_blanks_has_no_fixed_bytes(tmp_path, options):
  added = [AddedToken("lamp", special=False, **options)]
  loaded = tokenizers.load(byte_level(tmp_path, PLAIN, added=added))
  assert not loaded.is_byte_level


ABC = "abcdefghijklmnopqrst"
HTML = ["<s>old</s> <s>price</s> a b"] * 60  # teaches the merges '</s>' and '<s>'


@pytest.mark.parametrize("specials, texts, eos, bos", [
  (("<|endoftext|>",), HTML, 0, 0), (("<unk>", "</s>", "<s>"), PLAIN, 1, 2),
  (("<|pad|>", "<|eos|>"), HTML, 1, 1),
])  # fmt: skip
def test_separators_are_the_special_tokens(tmp_path, specials, texts, eos, bos):
  loaded = tokenizers.load(byte_level(tmp_path, texts, 420, specials, use_regex=False))
  assert (loaded.eos_id, loaded.bos_id) == (eos, bos)
  (ids,) = loaded.encode_batch(["a b </s> c <s> d </s>"])
  assert not np.isin(ids, [eos, bos]).any()
  assert loaded.decode(ids) == "a b </s> c <s> d </s>"


@pytest.mark.parametrize("specials", [("[MASK]",), ("</s>", "<s>")])
def test_a_separator_that_texts_hold_is_refused(tmp_path, specials):
  """Of the plain vocabulary, or special and also what merges of the text make."""
  path = byte_level(
    tmp_path, [f"{a}</s>{b}" for a in ABC for b in ABC], 420, specials, use_regex=False
  )
  texts = [{"text": f"Q</s>Z {i}"} for i in range(40)]
  source = write_jsonl(tmp_path / "a.jsonl", texts)
  with pytest.raises(UserError, match="itself holds the id [0-9]+ that (ends|begins) a document"):
    prepare(source, path, str(tmp_path / "st"), held_out="hash:0.3")


def lossy(folder, kind):
  """Tokenizers without unknown token, with one, lower-casing, dropping blanks, rewriting."""
  from tokenizers import normalizers

  texts = [f"{t} A{i}  é" for i, t in enumerate(PLAIN)] if kind != "no unk" else PLAIN
  if kind == "word pieces":
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
      vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
  elif kind == "unigram":
    backend = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
      vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
  else:
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
      vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if "byte" in kind else [],
    )  # fmt: skip
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  if "byte" in kind:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
      [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
  if kind == "lower case":
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder, backend.normalizer = decoders.ByteLevel(), normalizers.Lowercase()
  backend.train_from_iterator(texts, trainer)
  backend.save(str(folder / f"{kind}.json"))
  return str(folder / f"{kind}.json")


KINDS = ["no unk", "word pieces", "unigram", "lower case", "byte level without blanks"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lossy_tokenizer_is_refused_or_its_loss_is_counted(tmp_path, kind):
  texts = [f"River 紙 café 🐕 stone  {i}" for i in range(40)]
  source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
  path = lossy(tmp_path, kind)
  arguments = (source, path, str(tmp_path / "st"))
  with pytest.raises(UserError, match="does not give the text back.*--allow-lossy-tokenizer"):
    prepare(*arguments, held_out="hash:0.3")
  store = prepare(*arguments, held_out="hash:0.3", allow_lossy_tokenizer=True)
  for split in (store.train, store.validation):
    assert split.lost["num_documents"] == split.num_documents
    back = [split.tokenizer.decode(split.document(i)) for i in range(split.num_documents)]
    assert split.lost["num_chars"] >= split.num_documents
    if kind == "no unk":
      assert all("紙" not in text for text in back)
      assert split.lost["num_bytes"] > split.lost["num_chars"]
  with pytest.raises(UserError, match="do not give back"):
    prepare(*arguments, held_out="hash:0.3")
  with pytest.raises(UserError, match="do not give back"):
    prepare(str(tmp_path / "st"), "store")
  assert open_store(str(tmp_path / "st")).validation.lost == store.validation.lost


def test_losses_are_counted_by_hand(tmp_path):
  class Vowels(tokenizers.Tokenizer):
    is_bytes = False

    def __init__(self):
      self.name, self.eos_id, self.bos_id = "vowels", 0, 0

    def encode_batch(self, texts):
      return [np.array([ord(c) for c in text if c in "aeiou"] or [1]) for text in texts]

    def decode(self, ids):
      return "".join(chr(i) for i in ids if i > 1)

    def gives_back(self, text, ids):
      return self.decode(ids) == text

  texts = ["aei", "axé日", "日日"]
  encoded = Vowels().encode_batch(texts)
  found = losses(Vowels(), texts, encoded, allow=True)
  assert found.tolist() == [[0, 0], [3, 6], [2, 6]]
  assert lost_text(found) == {"num_documents": 2, "num_chars": 5, "num_bytes": 12}


def test_dropout_is_refused(tmp_path):
  description = json.loads(open(byte_level(tmp_path, PLAIN)).read())
  for dropout, fits in ((0.1, False), (0.0, True), (None, True)):
    description["model"]["dropout"] = dropout
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    if fits:
      tokenizers.load(tmp_path / "tokenizer.json")
    else:
      with pytest.raises(UserError, match="has dropout=0.1.*set its model's dropout to null"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_that_draws_lots_is_refused(neox, monkeypatch):
  rng = np.random.default_rng(0)
  encode = neox.encode_batch
  monkeypatch.setattr(
    neox, "encode_batch", lambda texts: [rng.permutation(i) for i in encode(texts)]
  )
  with pytest.raises(UserError, match="other ids every time"):
    losses(neox, CODE, neox.encode_batch(CODE), allow=True)


def test_a_lossless_store_says_so(tmp_path):
  path = byte_level(tmp_path, CODE, added=spaces())
  source = write_jsonl(tmp_path / "a.jsonl", records(30))
  store = prepare(source, path, str(tmp_path / "st"), held_out="hash:0.3")
  assert store.train.lost == {"num_documents": 0, "num_chars": 0, "num_bytes": 0}


def test_the_loss_stands_beside_bits_per_character(tmp_path, capsys):
  from moe_parity.commands.output import print_lost_text
  from moe_parity.evaluation.bits_per_character import evaluate

  source = write_jsonl(tmp_path / "a.jsonl", [{"text": f"River stone 日 {i}"} for i in range(40)])
  lossless = prepare(source, store=str(tmp_path / "s"), held_out="hash:0.4").validation
  store = prepare(
    source, lossy(tmp_path, "no unk"), str(tmp_path / "t"), held_out="hash:0.4",
    allow_lossy_tokenizer=True,
  )  # fmt: skip
  score = lambda inputs, targets, mask: np.ones(inputs.shape)  # noqa: E731
  found = evaluate(score, store.validation, seq_len=8, batch_sequences=2)
  lost, chars = store.validation.lost, store.manifest["splits"]["validation"]["num_chars"]
  assert found["text_lost"] == lost | {"share": lost["num_chars"] / chars}
  print_lost_text(found)
  assert f"loses {100 * found['text_lost']['share']:.2f} % of the characters" in (
    capsys.readouterr().out
  )
  whole = evaluate(score, lossless, seq_len=8, batch_sequences=2)
  print_lost_text(whole)
  assert "text_lost" not in whole and not capsys.readouterr().out
