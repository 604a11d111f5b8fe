"""Checkpoints that several processes write to a bucket themselves: which one a later life finds."""

import pytest

from moe_parity.data import storage
from moe_parity.errors import UserError
from moe_parity.study.workers.bucket_mirror import BucketMirror
from moe_parity.training.checkpoint_hashes import HASHES
from moe_parity.training.sharded_checkpoints import IS_WHOLE
from tests.helpers.bucket import install
from tests.test_study_bucket_mirror import RUN, URL, files, free, train

PARTS = ("ledger", "model")


@pytest.fixture
def bucket(monkeypatch):
  return install(monkeypatch)


def save(place: str, step: int, whole: bool = True) -> None:
  """What orbax leaves of a step; the mark of a whole one last."""
  for part in PARTS:
    storage.write_bytes(f"{place}/{step}/{part}/d/shard", f"{part} of {step}".encode())
    storage.write_bytes(f"{place}/{step}/{part}/{IS_WHOLE}", b"")
  if whole:
    storage.write_bytes(f"{place}/{step}/{IS_WHOLE}", b"")


def begin(folder, checkpoints=False):
  mirror = BucketMirror(URL, folder)
  mirror.fetch(RUN, checkpoints=checkpoints)
  return mirror


def log(folder, steps: int) -> None:
  (folder / RUN).mkdir(parents=True, exist_ok=True)
  (folder / RUN / "metrics.jsonl").write_text("x\n" * steps)


def test_a_life_resumes_from_the_whole_checkpoint_that_was_noted(bucket, tmp_path):
  first = begin(tmp_path / "first")
  write, read, step = first.begin_shards(RUN)
  assert (read, step) == ("", 0)
  log(tmp_path / "first", 12)
  save(write, 10)
  save(write, 20, whole=False)
  first.upload_now(RUN, free, print)
  save(write, 30)  # whole, and never noted: the small files of it are nowhere
  second = begin(tmp_path / "second")
  assert second.begin_shards(RUN)[1:] == (write, 10)
  assert files(tmp_path / "second" / RUN) == {"metrics.jsonl": "x\n" * 12}


def test_shards_of_lives_before_go_once_a_newer_one_is_noted(bucket, tmp_path):
  first = begin(tmp_path / "first")
  write = first.begin_shards(RUN)[0]
  log(tmp_path / "first", 10)
  save(write, 10)
  first.upload_now(RUN, free, print)
  second = begin(tmp_path / "second")
  again, read, _ = second.begin_shards(RUN)
  second.upload_now(RUN, free, print)  # nothing new of its own: what it resumed from stays
  assert storage.names(read) and again != write
  save(again, 20)
  second.upload_now(RUN, free, print)
  assert not storage.names(write) and storage.names(again)


def test_a_worker_that_lost_its_run_notes_nothing(bucket, tmp_path):
  mirror, said = begin(tmp_path), []
  save(mirror.begin_shards(RUN)[0], 10)

  def lost():
    raise UserError("another worker took this run over")

  mirror.upload_now(RUN, lost, said.append)
  assert "took this run over" in said[0]
  assert "latest.json" not in storage.names(f"{URL}/{RUN}")


def test_one_process_goes_on_from_the_shards_of_several(bucket, tmp_path):
  first = begin(tmp_path / "first")
  save(first.begin_shards(RUN)[0], 10)
  first.upload_now(RUN, free, print)
  begin(tmp_path / "second", checkpoints=True)
  found = files(tmp_path / "second" / RUN)
  assert found.pop(f"checkpoints/10/{HASHES}")
  assert found == {f"checkpoints/10/{part}/d/shard": f"{part} of 10" for part in PARTS}


def test_several_processes_go_on_from_the_snapshot_of_one(bucket, tmp_path):
  first = BucketMirror(URL, tmp_path / "first")
  train(tmp_path / "first" / RUN, 10)
  first.upload_now(RUN, free, print)
  second = begin(tmp_path / "second")
  write, read, step = second.begin_shards(RUN)
  assert (read, step) == (write, 10)
  there = storage.names(f"{write}/10")
  assert {name for name in there if name.endswith(IS_WHOLE)} == {
    IS_WHOLE, f"ledger/{IS_WHOLE}", f"model/{IS_WHOLE}"
  }  # fmt: skip
  assert storage.read_bytes(f"{write}/10/model/d/shard") == b"model/d/shard of 10 " * 5


@pytest.mark.parametrize("steps", [(10, 20), ()])
def test_the_last_checkpoint_comes_to_the_first_process(bucket, tmp_path, steps):
  """Also where a life resumed after the last step and wrote none of its own."""
  first = begin(tmp_path / "first")
  save(first.begin_shards(RUN)[0], 10)
  first.upload_now(RUN, free, print)
  second = begin(tmp_path / "second")
  write = second.begin_shards(RUN)[0]
  for step in steps:
    save(write, step)
  second.fetch_shards(RUN)
  last, found = max(steps, default=10), files(tmp_path / "second" / RUN)
  assert found.pop(f"checkpoints/{last}/{HASHES}")
  assert found == {f"checkpoints/{last}/{part}/d/shard": f"{part} of {last}" for part in PARTS}


def test_a_checkpoint_that_is_noted_and_not_there_is_named(bucket, tmp_path):
  first = begin(tmp_path / "first")
  write = first.begin_shards(RUN)[0]
  save(write, 10)
  first.upload_now(RUN, free, print)
  storage.remove_below(write)
  with pytest.raises(UserError, match="shards/.*/10 is not there or not whole"):
    begin(tmp_path / "second", checkpoints=True)
