import json
import struct

import numpy as np
import pytest

from moe_parity.data import manifest as manifests
from moe_parity.data import shards
from moe_parity.data.bpe_training import train_bpe
from moe_parity.data.shards import read_index, write_index
from moe_parity.data.token_store import open_store
from moe_parity.data.tokenizer import byte_tokenizer
from moe_parity.errors import UserError
from tests.helpers.small_store import records, small_store


@pytest.fixture(scope="module", params=[1 << 27, 701], ids=["one shard", "several shards"])
def store(request, tmp_path_factory):
  """The same documents in one shard a split, or in several."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, "SHARD_TOKENS", request.param)
    return small_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def own_store(tmp_path):
  return small_store(tmp_path)


def megatron_documents(split):
  """Documents of all shards of a split, in the order of their names."""
  prefixes = sorted(path.with_suffix("") for path in split.folder.glob(f"{split.name}-*.idx"))
  return [document for prefix in prefixes for document in megatron_shard(prefix)]


def megatron_shard(prefix):
  """A reader of the format by its published layout, sharing nothing with the code under test."""
  raw = open(f"{prefix}.idx", "rb").read()
  assert raw[:9] == b"MMIDIDX\x00\x00"
  (version,) = struct.unpack("<Q", raw[9:17])
  (code,) = struct.unpack("<B", raw[17:18])
  (sequences,) = struct.unpack("<Q", raw[18:26])
  (boundaries,) = struct.unpack("<Q", raw[26:34])
  assert (version, code) == (1, 8)
  lengths = struct.unpack(f"<{sequences}i", raw[34 : 34 + 4 * sequences])
  at = 34 + 4 * sequences
  pointers = struct.unpack(f"<{sequences}q", raw[at : at + 8 * sequences])
  at += 8 * sequences
  assert struct.unpack(f"<{boundaries}q", raw[at:]) == tuple(range(sequences + 1))
  data = open(f"{prefix}.bin", "rb").read()
  return [
    struct.unpack(f"<{n}H", data[p : p + 2 * n]) for n, p in zip(lengths, pointers, strict=True)
  ]


def test_the_files_are_what_megatron_reads(store):
  for split in (store.train, store.validation):
    found = megatron_documents(split)
    assert len(found) == split.num_documents
    assert np.concatenate(found).tolist() == split.tokens[:].tolist()


def test_a_document_is_bos_text_eos_and_decodes_to_its_text(store):
  texts = {r["text"] for r in records(60)}
  found = []
  for split in (store.train, store.validation):
    for ids in megatron_documents(split):
      assert (ids[0], ids[-1]) == (0, 1)
      found.append(bytes(i - 16 for i in ids[1:-1]).decode())
  assert set(found) == texts and len(found) == len(texts)


def test_rows_tile_the_stream_and_overlap_by_one_token(store):
  split, seq_len = store.train, 37
  rows = split.rows(np.arange(split.num_windows(seq_len)), seq_len)
  assert rows.shape == ((split.num_tokens - 1) // seq_len, seq_len + 1)
  targets = rows[:, 1:].reshape(-1)
  assert targets.tolist() == split.tokens[1 : 1 + targets.size].tolist()
  assert (rows[1:, 0] == rows[:-1, -1]).all()
  assert split.num_tokens - 1 - targets.size < seq_len


def test_every_window_has_all_its_tokens_at_any_seq_len(store):
  split = store.train
  divisors = [n for n in range(1, split.num_tokens) if split.num_tokens % n == 0]
  for seq_len in [*range(1, 12), *divisors, split.num_tokens - 1]:
    last = split.num_windows(seq_len)
    (row,) = split.rows([last - 1], seq_len)
    assert row.tolist() == split.tokens[(last - 1) * seq_len :][: seq_len + 1].tolist()
    assert last * seq_len < split.num_tokens <= (last + 1) * seq_len
  assert split.num_windows(split.num_tokens) == 0


def test_a_window_outside_the_stream_is_an_error(store):
  for window in (-1, store.train.num_windows(16)):
    with pytest.raises(IndexError):
      store.train.rows([window], 16)


def test_documents_remember_bytes_characters_domain_and_source(store):
  by_source = {r["source"]: r for r in records(60)}
  for split in (store.train, store.validation):
    table = split.documents
    for i in range(split.num_documents):
      record = by_source[table.sources[table.source[i]]]
      assert table.domains[table.domain[i]] == record["domain"]
      assert table.num_bytes[i] == len(record["text"].encode())
      assert table.num_chars[i] == len(record["text"])
      assert table.num_text_tokens[i] == table.num_bytes[i] == table.num_tokens[i] - 2
      assert store.tokenizer.decode(split.document(i)) == record["text"]


def test_the_manifest_adds_up(store):
  for name in ("train", "validation"):
    entry = store.manifest["splits"][name]
    for field in ("num_documents", "num_bytes", "num_chars", "num_tokens"):
      assert entry[field] == sum(d[field] for d in entry["by_domain"].values())
      assert entry[field] == sum(d[field] for d in entry["by_origin"])
    assert entry["num_tokens"] == entry["num_bytes"] + 2 * entry["num_documents"]


def test_a_store_of_another_tokenizer_is_refused(store):
  other = train_bpe([r["text"] for r in records(100, longest=200)], 300)
  with pytest.raises(UserError, match="made with tokenizer bytes"):
    open_store(store.folder, other)
  assert open_store(store.folder, byte_tokenizer()).train.num_tokens == store.train.num_tokens


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.idx", "train.documents.npz"])
def test_a_shortened_or_missing_file_is_refused_at_once(own_store, name):
  path = own_store.folder / name
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=f"{name} has .* bytes"):
    open_store(own_store.folder)
  path.unlink()
  with pytest.raises(UserError, match=f"{name} is missing"):
    open_store(own_store.folder)


def test_a_changed_byte_is_found_by_hash(own_store):
  path = own_store.folder / "train-00000.bin"
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  open_store(own_store.folder)
  with pytest.raises(UserError, match="train-00000.bin does not have the sha256"):
    open_store(own_store.folder, verify=True)


def test_a_folder_that_is_no_store_is_refused(tmp_path, own_store):
  with pytest.raises(UserError, match="no token store"):
    open_store(tmp_path / "nothing")
  manifest = own_store.folder / "manifest.json"
  manifest.write_text(manifest.read_text()[:-9])
  with pytest.raises(UserError, match="manifest.json is damaged"):
    open_store(own_store.folder)
  manifest.write_text(json.dumps({"format": manifests.FORMAT, "version": 99}))
  with pytest.raises(UserError, match="version 99"):
    open_store(own_store.folder)


def test_an_exchanged_tokenizer_file_is_refused(own_store):
  train_bpe([r["text"] for r in records(100, longest=200)], 300).save(
    own_store.folder / "tokenizer.json"
  )
  with pytest.raises(UserError, match="not the store's tokenizer"):
    open_store(own_store.folder)


def test_a_damaged_index_is_refused(tmp_path):
  path = tmp_path / "x.idx"
  write_index(path, np.array([3, 5, 2]), np.dtype(np.uint16))
  assert read_index(path)[0].tolist() == [3, 5, 2]
  good = path.read_bytes()
  for bad, words in (
    (b"XX" + good[2:], "wrong magic"),
    (good[:17] + b"\x07" + good[18:], "dtype code 7"),
    (good[:-8], "not what its header says"),
    (good[:34] + b"\x04" + good[35:], "back to back"),
  ):
    path.write_bytes(bad)
    with pytest.raises(UserError, match=words):
      read_index(path)
