import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data import shards
from moe_parity.data.prepare import prepare
from moe_parity.data.shards import TokenStream, write_shards
from moe_parity.errors import UserError
from tests.helpers.small_store import small_store


def write(folder, lengths, cuts=()):
  """A stream 0, 1, 2, ... of documents of these lengths, handed over in pieces cut anywhere."""
  tokens = np.arange(sum(lengths), dtype=np.uint16)
  entry = write_shards(
    folder, "train", np.array(lengths), np.split(tokens, sorted(cuts)), tokens.dtype
  )
  return entry, TokenStream(folder, [shard["name"] for shard in entry["shards"]])


@settings(max_examples=60)
@given(
  lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12),
  limit=st.integers(1, 90),
  data=st.data(),
)
def test_a_slice_of_shards_is_the_slice_of_the_stream(tmp_path_factory, lengths, limit, data):
  total = sum(lengths)
  cuts = data.draw(st.lists(st.integers(0, total), max_size=4))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, "SHARD_TOKENS", limit)
    entry, stream = write(tmp_path_factory.mktemp("s"), lengths, cuts)
  assert len(stream) == total and stream.lengths.tolist() == lengths
  start = data.draw(st.integers(0, total))
  stop = data.draw(st.integers(0, total))
  assert stream[start:stop].tolist() == list(range(start, stop))
  sizes = [shard["num_tokens"] for shard in entry["shards"]]
  assert sum(sizes) == total and max(sizes) < limit + max(lengths)


def test_the_hash_of_a_stream_does_not_depend_on_its_shards(tmp_path, monkeypatch):
  found = []
  for name, limit in (("a", 1 << 27), ("b", 11)):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(shards, "SHARD_TOKENS", limit)
    found.append(write(tmp_path / name, [7, 5, 9, 4, 6])[0])
  assert found[0]["sha256"] == found[1]["sha256"]
  assert [len(entry["shards"]) for entry in found] == [1, 3]
  assert [shard["num_documents"] for shard in found[1]["shards"]] == [1, 2, 2]


def test_a_stream_is_not_read_with_gaps(tmp_path):
  _, stream = write(tmp_path, [7, 5])
  with pytest.raises(IndexError, match="step 2"):
    stream[0:6:2]


def test_a_damaged_second_shard_stops_whoever_would_train_on_it(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "SHARD_TOKENS", 500)
  store = small_store(tmp_path)
  path = store.folder / "train-00001.bin"
  data = bytearray(path.read_bytes())
  data[7] ^= 4
  path.write_bytes(data)
  with pytest.raises(UserError, match="train-00001.bin does not have the sha256"):
    prepare(str(tmp_path / "corpus.jsonl"), store=str(store.folder), held_out="hash:0.2")
  with pytest.raises(UserError, match="train-00001.bin does not have the sha256"):
    prepare(str(store.folder))
