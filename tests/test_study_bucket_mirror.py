"""Runs on a bucket: what another worker finds after a copy broke off is whole, or not there."""

import contextlib
import json

import pytest

from moe_parity.data import storage
from moe_parity.errors import UserError
from moe_parity.study.workers.bucket_mirror import BucketMirror
from tests.helpers import fake_study
from tests.helpers.bucket import Bucket, install

RUN, URL = "runs/moe_20-s0", "gs://mine/studies/a"


def free() -> None:
  """Nobody else has the run."""


@pytest.fixture
def bucket(monkeypatch):
  return install(monkeypatch)


def train(folder, step: int) -> None:
  """What a run folder holds after `step`: every file says which step it is of."""
  (folder / "checkpoints" / str(step) / "model" / "d").mkdir(parents=True)
  for name in ("model/d/shard", "model/_METADATA", "ledger/array"):
    path = folder / "checkpoints" / str(step) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{name} of {step} " * 5)
  plan = fake_study.arm_plan("moe_20", "moe", "arm", 0, 0.2, num_steps=40)
  (folder / "plan.json").write_text(json.dumps(plan))
  (folder / "metrics.jsonl").write_text("".join(f"{i}\n" for i in range(1, step + 3)))
  (folder / "checkpoints" / f"{step + 1}.orbax-checkpoint-tmp").mkdir()  # being written


def finish(folder) -> None:
  (folder / "tensorboard").mkdir()
  (folder / "tensorboard" / "events").write_text("x")
  for name in ("certificate.json", "ledger.npz", "result.json"):
    (folder / name).write_text("{}")


def files(folder) -> dict[str, str]:
  return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def copy(mirror: BucketMirror) -> list[str]:
  """Keeps the newest checkpoint and waits for it; what was said of a failure."""
  said = []
  mirror.upload_checkpoint(RUN, free, said.append)
  if mirror._writing is not None:
    mirror._writing.exception()  # waits
    mirror._collect(RUN, said.append)
  return said


def fail_at(monkeypatch, number: int) -> None:
  """The connection breaks at the number-th object that is written."""
  left = [number]

  def breaking(name):
    real = getattr(Bucket, name)

    def write(self, *args, **kwargs):
      left[0] -= 1
      if left[0] == 0:
        raise OSError("connection lost")
      return real(self, *args, **kwargs)

    return write

  for name in ("put_file", "pipe_file"):
    monkeypatch.setattr(Bucket, name, breaking(name))


@pytest.mark.parametrize("number", range(1, 7))
def test_a_snapshot_broken_off_anywhere_leaves_the_one_before_it(
  number, bucket, tmp_path, monkeypatch
):
  """6 objects: metrics, plan, three of the checkpoint, latest.json."""
  first = BucketMirror(URL, tmp_path / "first")
  train(tmp_path / "first" / RUN, 10)
  assert copy(first) == []
  train(tmp_path / "first" / RUN, 20)
  with monkeypatch.context() as patch:
    fail_at(patch, number)
    assert "connection lost" in copy(first)[0]
  second = BucketMirror(URL, tmp_path / "second")
  second.fetch(RUN)
  found = files(tmp_path / "second" / RUN)
  assert found["checkpoints/10/model/d/shard"] == "model/d/shard of 10 " * 5
  assert found["metrics.jsonl"].count("\n") == 12
  assert not any("/20/" in name for name in found)


def test_a_broken_snapshot_goes_with_the_next_whole_one(bucket, tmp_path, monkeypatch):
  mirror = BucketMirror(URL, tmp_path / "first")
  train(tmp_path / "first" / RUN, 10)
  with monkeypatch.context() as patch:
    fail_at(patch, 3)
    assert copy(mirror)
  assert copy(mirror) == []
  train(tmp_path / "first" / RUN, 20)
  assert copy(mirror) == []
  there = storage.names(f"{URL}/{RUN}")
  (latest,) = {name.split("/")[1] for name in there if name.startswith("snapshots/")}
  assert latest.startswith("20-") and len(there) == 6


def test_a_worker_that_lost_its_run_does_not_write_latest(bucket, tmp_path):
  mirror = BucketMirror(URL, tmp_path)
  train(tmp_path / RUN, 10)

  def lost():
    raise UserError("another worker took this run over")

  mirror.upload_checkpoint(RUN, lost, print)
  assert isinstance(mirror._writing.exception(), UserError)
  assert "latest.json" not in storage.names(f"{URL}/{RUN}")
  finish(tmp_path / RUN)
  with pytest.raises(UserError, match="took this run over"):
    mirror.upload_run(RUN, lost, print)
  assert BucketMirror(URL, tmp_path / "other").pull() == set()


def test_a_damaged_snapshot_is_refused_and_named(bucket, tmp_path):
  mirror = BucketMirror(URL, tmp_path / "first")
  train(tmp_path / "first" / RUN, 10)
  copy(mirror)
  (shard,) = [name for name in storage.names(f"{URL}/{RUN}") if name.endswith("shard")]
  storage.write_bytes(f"{URL}/{RUN}/{shard}", b"model/d/shard of 99 " * 5)
  with pytest.raises(UserError, match="snapshot of step 10 is damaged .*shard is not what was"):
    BucketMirror(URL, tmp_path / "second").fetch(RUN)


@pytest.mark.parametrize("text, words", [
  ('{"step": 10, "snapshot": "s", "files": {"../../../x": [1, "0"]}}', "outside of its folder"),
  ('{"step": 10, "snapshot": "s", "files": {"/tmp/x": [1, "0"]}}', "outside of its folder"),
  ('{"step": 10, "snapshot": "s", "files": 3}', "files is a number, not an object"),
  ("[" * 100_000, "nested too deeply"), ("", "damaged"), ("[]", "not an object"),
])  # fmt: skip
def test_a_hostile_latest_json_writes_nothing(bucket, tmp_path, text, words):
  storage.write_bytes(f"{URL}/{RUN}/latest.json", text.encode())
  storage.write_bytes(f"{URL}/{RUN}/x", b"x")
  with pytest.raises(UserError, match=words):
    BucketMirror(URL, tmp_path / "deep" / "local").fetch(RUN)
  assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", range(1, 10))
def test_a_run_is_finished_only_when_its_result_is_there(number, bucket, tmp_path, monkeypatch):
  """8 objects, result.json last; the 9th does not come."""
  mirror = BucketMirror(URL, tmp_path / "first")
  train(tmp_path / "first" / RUN, 10)
  copy(mirror)
  finish(tmp_path / "first" / RUN)
  with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
    fail_at(patch, number)
    if number < 9:
      stack.enter_context(pytest.raises(UserError, match="connection lost"))
    mirror.upload_run(RUN, free, print)
  second = BucketMirror(URL, tmp_path / "second")
  done = second.pull()
  if number < 9:
    assert done == set()
    second.fetch(RUN)
    assert "checkpoints/10/model/d/shard" in files(tmp_path / "second" / RUN)
    return
  assert done == {RUN}
  there = storage.names(f"{URL}/{RUN}")
  assert set(files(tmp_path / "second" / RUN)) == {
    "plan.json", "metrics.jsonl", "certificate.json", "ledger.npz", "result.json"
  }  # fmt: skip
  assert "checkpoints/10/model/d/shard" in there
  assert not any(name.startswith(("snapshots", "tensorboard", "latest")) for name in there)


def test_plans_and_small_files_of_comparisons_are_fetched_again(bucket, tmp_path):
  mirror = BucketMirror(URL, tmp_path)
  for name in ("plan.json", "parts/unique/plan.json", "parts/unique/runs/a-s0/result.json"):
    storage.write_bytes(f"{URL}/{name}", json.dumps({"of": name}).encode())
  assert mirror.pull() == {"parts/unique/runs/a-s0"}
  storage.write_bytes(f"{URL}/plan.json", b"grown")
  mirror.pull()
  assert (tmp_path / "plan.json").read_text() == "grown"
  assert (tmp_path / "parts/unique/runs/a-s0/result.json").exists()
