import json
import logging

import pytest

from moe_parity.data import shards, storage
from moe_parity.data.loader import Loader
from moe_parity.data.prepare import prepare
from moe_parity.data.token_store import open_store
from moe_parity.data.tokenizer import byte_tokenizer
from moe_parity.errors import UserError
from tests.helpers.small_store import records, write_jsonl
from tests.test_data_columnar import WRITERS


def fill(bucket, tmp_path):
  """A corpus of three formats on the bucket, and the same files in a local folder."""
  (tmp_path / "text").mkdir()
  write_jsonl(tmp_path / "text" / "a.jsonl", records(30))
  WRITERS["parquet"](tmp_path / "text" / "b.parquet", records(20, seed=1))
  WRITERS["arrayrecord"](tmp_path / "text" / "c.arrayrecord", records(10, seed=2))
  for path in (tmp_path / "text").iterdir():
    bucket.put_file(str(path), f"gs://mine/text/{path.name}")


def test_a_store_on_a_bucket_is_made_from_text_on_a_bucket(bucket, tmp_path, monkeypatch):
  fill(bucket, tmp_path)
  monkeypatch.setattr(shards, "SHARD_TOKENS", 900)
  arguments = dict(held_out="hash:0.2")
  store = prepare("gs://mine/text", store="gs://mine/stores/s", **arguments)
  local = prepare(str(tmp_path / "text"), store=str(tmp_path / "local"), **arguments)
  assert store.train.fingerprint == local.train.fingerprint
  assert store.location == "gs://mine/stores/s"
  names = [name.rsplit("/", 1)[1] for name in bucket.find("gs://mine/stores/s")]
  assert sorted(names) == sorted(path.name for path in local.folder.iterdir())
  assert not list((tmp_path / "cache").glob("text-*"))
  again = open_store("gs://mine/stores/s")
  loaders = [Loader(split, 4, 32, seed=3) for split in (again.train, local.train)]
  first, second = (next(iter(loader)) for loader in loaders)
  assert first["inputs"].tolist() == second["inputs"].tolist()


def test_a_store_on_a_bucket_is_copied_once_and_made_once(bucket, tmp_path, monkeypatch):
  fill(bucket, tmp_path)
  arguments = ("gs://mine/text/*.jsonl", "bytes", "gs://mine/s")
  first = prepare(*arguments, held_out="hash:0.2")

  def refuse(*_):
    raise AssertionError("written or copied again")

  monkeypatch.setattr(storage, "upload", refuse)
  monkeypatch.setattr(storage, "download", refuse)
  assert prepare(*arguments, held_out="hash:0.2").folder == first.folder
  assert prepare("gs://mine/s").folder == first.folder
  with pytest.raises(UserError, match="gs://mine/s was made from other inputs"):
    prepare(*arguments, held_out="hash:0.3")


def test_half_a_store_on_a_bucket_is_none(bucket, tmp_path, monkeypatch):
  fill(bucket, tmp_path)
  put, count = bucket.put_file, []

  def fail_late(self, *given, **kwargs):
    count.append(1)
    if len(count) == 4:
      raise OSError("the connection was lost")
    return put(*given, **kwargs)

  arguments = ("gs://mine/text", "bytes", "gs://mine/s")
  monkeypatch.setattr(type(bucket), "put_file", fail_late)
  with pytest.raises(UserError, match="gs://mine/s cannot be reached .the connection was lost"):
    prepare(*arguments, held_out="hash:0.2")
  assert len(bucket.find("gs://mine/s")) == 3
  with pytest.raises(UserError, match="no token store"):
    open_store("gs://mine/s")
  assert prepare(*arguments, held_out="hash:0.2").train.num_documents > 30


@pytest.mark.parametrize("name", ["train-00000.bin", "validation.documents.npz"])
def test_a_changed_object_of_a_bucket_is_found_on_copying(bucket, tmp_path, name):
  fill(bucket, tmp_path)
  prepare("gs://mine/text", store="gs://mine/s", held_out="hash:0.2")
  for copy in (tmp_path / "cache").glob("copy-*"):
    copy.rename(tmp_path / "elsewhere")
  with bucket.open(f"gs://mine/s/{name}", "rb") as file:
    data = bytearray(file.read())
  data[-5] ^= 1
  bucket.pipe_file(f"gs://mine/s/{name}", bytes(data))
  with pytest.raises(UserError, match=f"{name} does not have the sha256"):
    open_store("gs://mine/s")
  bucket.rm_file(f"gs://mine/s/{name}")
  with pytest.raises(UserError, match=f"gs://mine/s/{name} is missing"):
    open_store("gs://mine/s")


def test_a_tokenizer_is_read_from_a_bucket(bucket, tmp_path):
  fill(bucket, tmp_path)
  byte_tokenizer().save(tmp_path / "tokenizer.json")
  bucket.put_file(str(tmp_path / "tokenizer.json"), "gs://mine/tokenizer.json")
  store = prepare("gs://mine/text", "gs://mine/tokenizer.json", held_out="hash:0.2")
  assert store.tokenizer.is_bytes
  with pytest.raises(UserError, match="gs://mine/other.json does not exist"):
    prepare("gs://mine/text", "gs://mine/other.json")


def test_a_folder_of_save_to_disk_is_read_from_a_bucket(bucket, tmp_path):
  path = WRITERS["arrow"](tmp_path / "data-0.arrow", records(40))
  bucket.put_file(str(path), "gs://mine/hf/data-0.arrow")
  files = {"_data_files": [{"filename": "data-0.arrow"}]}
  bucket.pipe_file("gs://mine/hf/state.json", json.dumps(files).encode())
  bucket.pipe_file("gs://mine/hf/dataset_info.json", b"{}")
  store = prepare("gs://mine/hf", held_out="hash:0.2")
  assert store.train.num_documents + store.validation.num_documents == 40
  assert store.folder.parent == tmp_path / "cache"


def test_what_a_bucket_refuses_is_one_line(bucket, monkeypatch, caplog):
  def refuse(*_, **__):
    error = PermissionError("anonymous caller\nhas no access")
    for name in ("gcsfs", "gcsfs.credentials", "google.auth._default"):  # as these libraries do
      logging.getLogger(name).error("out of retries", exc_info=error)
    raise error

  monkeypatch.setattr(type(bucket), "isfile", refuse)
  with pytest.raises(UserError, match="gs://mine/x.* cannot be reached .anonymous caller has no"):
    prepare("gs://mine/x")
  assert caplog.records == []


def test_a_bucket_path_that_is_not_there_is_named(bucket):
  with pytest.raises(UserError, match="gs://mine/nothing does not exist"):
    prepare("gs://mine/nothing")
