import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.bpe_training import train_bpe
from moe_parity.data.prepare import prepare
from moe_parity.errors import NotFiniteError, UserError
from moe_parity.evaluation import bits_per_character
from tests.helpers import lm_eval_golden
from tests.helpers.small_store import (
  one_separator_tokenizer,
  records,
  small_store,
  texts_of,
  write_jsonl,
)

S, B = 20, 3


@pytest.fixture(scope="module")
def split(tmp_path_factory):
  return small_store(tmp_path_factory.mktemp("bits"), held_out="hash:0.4").validation


@pytest.fixture(scope="module")
def bpe_split(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bits-bpe")
  train_bpe([r["text"] for r in records(200, 9)], 380).save(folder / "tokenizer.json")
  return small_store(
    folder, held_out="hash:0.4", tokenizer=str(folder / "tokenizer.json")
  ).validation


def uniform(vocab_size):
  return lambda inputs, targets, mask: np.full(inputs.shape, math.log(vocab_size), np.float32)


def pair_nats(previous, target):
  """A model that sees one token back: any function of the pair will do."""
  return 0.1 + ((previous * 31 + target * 17) % 23) / 7


def bigram(inputs, targets, mask):
  return pair_nats(inputs.astype(np.int64), targets.astype(np.int64))


def depth(inputs, targets, mask):
  """Nats that are a token's place in its window: shows how much context each token was given."""
  return np.broadcast_to(np.arange(inputs.shape[1], dtype=np.float64), inputs.shape)


@pytest.mark.parametrize("mode, stride", [("document", 0), ("strided", 7), ("packed", 0)])
def test_a_uniform_model_needs_log2_of_the_vocabulary_a_byte(split, mode, stride):
  found = bits_per_character.evaluate(
    uniform(272), split, mode=mode, stride=stride, seq_len=S, batch_sequences=B
  )
  assert found["bpb"] == pytest.approx(math.log2(272), rel=1e-7)  # nats come as float32
  assert found["macro_bpb"] == pytest.approx(math.log2(272), rel=1e-7)
  assert found["bpc"] == pytest.approx(found["bpb"] * found["num_bytes"] / found["num_chars"])


@pytest.mark.parametrize("fixture", ["split", "bpe_split"])
@pytest.mark.parametrize("mode, stride", [("document", 0), ("strided", 7)])
def test_bits_of_a_bigram_model_are_those_summed_by_hand(fixture, mode, stride, request):
  split = request.getfixturevalue(fixture)
  found = bits_per_character.evaluate(
    bigram, split, mode=mode, stride=stride, seq_len=S, batch_sequences=B
  )
  nats = num_bytes = num_chars = num_tokens = 0
  for text in texts_of(split):
    ids = [int(i) for i in split.tokenizer.encode_batch([text])[0]]
    previous = split.tokenizer.bos_id
    for token in ids:
      nats += pair_nats(previous, token)
      previous = token
    num_tokens += len(ids)
    num_bytes += len(text.encode())
    num_chars += len(text)
  assert found["bpb"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-12)
  assert found["bpc"] == pytest.approx(nats / math.log(2) / num_chars, rel=1e-12)
  assert found["cross_entropy"] == pytest.approx(nats / num_tokens, rel=1e-12)
  assert (found["num_tokens"], found["num_bytes"], found["num_chars"]) == (
    num_tokens, num_bytes, num_chars,
  )  # fmt: skip
  assert found["num_documents"] == split.num_documents and not found["sampled"]


@pytest.mark.parametrize("fixture", ["split", "bpe_split"])
def test_packed_bits_are_those_of_the_stream_summed_by_hand(fixture, request):
  split = request.getfixturevalue(fixture)
  found = bits_per_character.evaluate(bigram, split, mode="packed", seq_len=S, batch_sequences=B)
  stream = [int(t) for t in split.tokens[:]]
  last = split.num_windows(S) * S
  scored = [i for i in range(1, last + 1) if stream[i] not in (0, 1)]
  nats = sum(pair_nats(stream[i - 1], stream[i]) for i in scored)
  data = b"".join(split.tokenizer._id_bytes()[stream[i]] for i in scored)
  assert found["num_tokens"] == len(scored)
  assert found["num_bytes"] == len(data)
  assert found["num_chars"] == sum(byte & 0xC0 != 0x80 for byte in data)
  assert found["nats"] == pytest.approx(nats, rel=1e-12)


def test_domains_and_documents_add_up_to_the_whole(split):
  for mode in ("document", "packed"):
    found = bits_per_character.evaluate(bigram, split, mode=mode, seq_len=S, batch_sequences=B)
    for field in ("nats", "num_tokens", "num_bytes", "num_chars"):
      total = pytest.approx(found[field], rel=1e-12)
      assert sum(d[field] for d in found["by_domain"].values()) == total
      assert sum(d[field] for d in found["documents"]) == total
    assert len(found["documents"]) == found["num_documents"]
    means = [d["bpc"] for d in found["by_domain"].values()]
    assert found["macro_bpc"] == pytest.approx(sum(means) / 3)
  text = texts_of(split)[0]
  alone = found["documents"][0]
  assert alone["source"] == f"work-{text.split()[0].split('.')[1]}"


@given(n=st.integers(1, 200), seq_len=st.integers(1, 30), stride=st.integers(1, 30))
@settings(max_examples=200)
def test_windows_score_each_token_once_within_seq_len(n, seq_len, stride):
  stride = min(stride, seq_len)
  found = list(bits_per_character.scoring_windows(n, seq_len, stride))
  scored = [t for first, end, start in found for t in range(start, end)]
  assert scored == list(range(n))
  assert all(0 <= first <= start < end and end - first <= seq_len for first, end, start in found)
  assert all(end - first == min(seq_len, n) for first, end, _ in found)


def test_a_smaller_stride_gives_more_context(split):
  def mean_place(mode, stride):
    found = bits_per_character.evaluate(
      depth, split, mode=mode, stride=stride, seq_len=S, batch_sequences=B
    )
    return found["cross_entropy"]

  places = [mean_place("strided", stride) for stride in (1, 5, 20)]
  assert places[0] > places[1] > places[2] == mean_place("document", 0)
  assert places[0] < S - 1


def test_the_model_sees_one_shape_and_its_padding_is_ignored(split):
  shapes = set()

  def poisoned(inputs, targets, mask):
    shapes.add((inputs.shape, targets.shape, mask.shape))
    return np.where(mask, bigram(inputs, targets, mask), np.nan)

  found = bits_per_character.evaluate(poisoned, split, seq_len=S, batch_sequences=7)
  assert shapes == {((7, S),) * 3}
  plain = bits_per_character.evaluate(bigram, split, seq_len=S, batch_sequences=B)
  assert found["nats"] == pytest.approx(plain["nats"], rel=1e-12)


def test_max_tokens_takes_whole_documents_of_every_domain(split):
  documents = split.documents
  total = int(documents.num_text_tokens.sum())
  for budget in (1, total // 3, total - 1):
    found = bits_per_character.evaluate(
      bigram, split, seq_len=S, batch_sequences=B, max_tokens=budget
    )
    again = bits_per_character.evaluate(
      bigram, split, seq_len=S, batch_sequences=B, max_tokens=budget
    )
    assert found == again
    assert set(found["by_domain"]) == set(documents.domains)
    assert found["sampled"] and found["num_documents"] < split.num_documents
    assert found["split_documents"] == split.num_documents
    if budget > 1:
      assert found["num_tokens"] <= budget
  other = bits_per_character.evaluate(
    bigram, split, seq_len=S, batch_sequences=B, max_tokens=total // 3, seed=1
  )
  assert other["documents"] != found["documents"]


def test_a_budget_of_tokens_takes_whole_windows_when_packed(split):
  found = bits_per_character.evaluate(
    bigram, split, mode="packed", seq_len=S, batch_sequences=B, max_tokens=5 * S
  )
  assert 0 < found["num_tokens"] <= 5 * S and found["sampled"]


@pytest.mark.parametrize(
  "arguments, words",
  [
    ({"mode": "rolling"}, "not known; give document . strided . packed"),
    ({"mode": "strided"}, "stride=0 with mode=.strided. does not lie in 1..20"),
    ({"mode": "strided", "stride": 21}, "stride=21 with mode=.strided. does not lie in 1..20"),
    ({"mode": "document", "stride": 5}, "is for mode=.strided."),
    ({"mode": "packed", "seq_len": 10**6}, "no row of seq_len"),
    ({"max_tokens": -1}, "max_tokens=-1 is below 0"),
  ],
)
def test_impossible_arguments_are_refused(split, arguments, words):
  with pytest.raises(UserError, match=words):
    bits_per_character.evaluate(bigram, split, **({"seq_len": S, "batch_sequences": B} | arguments))


def test_a_loss_that_is_not_finite_is_never_a_result(split):
  def broken(inputs, targets, mask):
    return np.full(inputs.shape, np.inf)

  with pytest.raises(NotFiniteError, match="not finite; the model diverged"):
    bits_per_character.evaluate(broken, split, seq_len=S, batch_sequences=B)


def test_document_mode_is_the_bits_per_byte_of_lm_eval(tmp_path):
  """Against what lm-eval itself made of the same text: see tests/helpers/lm_eval_golden.py."""
  golden = json.loads(lm_eval_golden.GOLDEN.read_text())
  texts = lm_eval_golden.texts()
  listed = [{"text": text, "source": f"{i}"} for i, text in enumerate(texts)]
  held_out = write_jsonl(tmp_path / "held-out.jsonl", listed)
  source = write_jsonl(tmp_path / "train.jsonl", records(3))
  store = prepare(source, store=str(tmp_path / "s"), held_out=f"source:{held_out}")
  found = bits_per_character.evaluate(
    lambda inputs, targets, mask: lm_eval_golden.nats(inputs, targets),
    store.validation,
    seq_len=golden["seq_len"],
    batch_sequences=B,
  )
  assert found["num_documents"] == golden["num_documents"] == len(texts)
  assert found["bpb"] == pytest.approx(golden["bits_per_byte"], rel=1e-9)


def test_a_token_after_the_separator_is_of_the_next_document(tmp_path):
  tokenizer = one_separator_tokenizer(tmp_path)
  store = small_store(tmp_path, held_out="hash:0.4", tokenizer=tokenizer)
  split = store.validation
  found = bits_per_character.evaluate(bigram, split, mode="packed", seq_len=S, batch_sequences=B)
  whole = split.documents.num_text_tokens.tolist()
  counted = [d["num_tokens"] for d in found["documents"]]
  assert counted[0] == whole[0] - 1  # nothing stands before the stream's first token
  assert counted[1 : len(counted) - 1] == whole[1 : len(counted) - 1]
  assert found["documents"][1]["num_bytes"] == split.documents.num_bytes[1]


def test_the_end_of_a_character_alone_makes_no_domain(tmp_path):
  """The second window begins inside of the last character of the first document."""
  texts = ("a" * (S - 1) + "日", "ja"), ("b" * 5 * S, "en")
  held_out = write_jsonl(tmp_path / "held_out.jsonl", [{"text": t, "domain": d} for t, d in texts])
  source = write_jsonl(tmp_path / "text.jsonl", records(9))
  store = prepare(source, store=str(tmp_path / "store"), held_out=f"source:{held_out}")
  split, shape = store.validation, {"seq_len": S, "batch_sequences": B}
  windows = split.num_windows(S)
  seed = next(n for n in range(99) if bits_per_character._some_windows(windows, S, S, n)[0] == 1)
  found = bits_per_character.evaluate(
    uniform(256), split, mode="packed", max_tokens=S, seed=seed, **shape
  )
  assert found["num_tokens"] == found["num_bytes"] == found["num_chars"] + 2  # two of 日's bytes
  assert list(found["by_domain"]) == ["en"] and found["macro_bpb"] == pytest.approx(8)
