"""Checkpoints carry hashes: what is damaged is passed over by name, what is whole is what was
written, and a worker that lost its run commits nothing."""

import json
import pathlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.training import checkpoint_hashes, checkpoint_writer
from moe_parity.training.checkpoint import Checkpoints, load_model
from moe_parity.training.state import TrainState

LEDGER = {"counts": np.arange(7, dtype=np.uint32), "row": np.array(3), "digest": np.zeros(32)}


def state(step):
  weights = {"w": jnp.arange(300.0).reshape(20, 15) * step}
  optimizer = {"mean": jnp.ones((4, 5)) * step}
  return TrainState(step=jnp.array(step), params=weights, buffers={}, optimizer=optimizer)


def abstract():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1)
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  checkpoints = Checkpoints(folder, keep=2, run="r")
  for step in (10, 20, 30):
    checkpoints.save(step, state(step), LEDGER, {"metrics.jsonl.gz": b"lines of %d" % step})
  checkpoints.wait()
  assert checkpoints.steps() == [30, 20]
  checkpoints.close()
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restored(folder, run="r"):
  checkpoints = Checkpoints(folder, keep=2, run=run)
  try:
    return checkpoints.restore(abstract(), LEDGER)
  finally:
    checkpoints.close()


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def test_what_comes_back_is_what_was_saved(copy):
  found = restored(copy)
  assert (found.step, found.warnings, found.logs) == (30, (), {"metrics.jsonl.gz": b"lines of 30"})
  np.testing.assert_array_equal(found.state.params["w"], state(30).params["w"])
  np.testing.assert_array_equal(found.ledger["counts"], LEDGER["counts"])


def test_a_flipped_bit_in_any_file_is_named_and_passed_over(copy, tmp_path):
  """At e810754 47 of 48 flips in arrays were used silently."""
  names = [p.relative_to(copy / "30") for p in sorted((copy / "30").rglob("*")) if p.is_file()]
  names = [name for name in names if (copy / "30" / name).stat().st_size]
  assert len(names) > 8
  for number, name in enumerate(names):
    folder = pathlib.Path(shutil.copytree(copy, tmp_path / str(number)))
    flip(folder / "30" / name)
    assert name.name in checkpoint_hashes.problem(folder / "30", "r")
  found = restored(folder)
  assert found.step == 20 and found.logs == {"metrics.jsonl.gz": b"lines of 20"}
  assert "checkpoint of step 30 is damaged" in found.warnings[0]
  assert names[-1].name in found.warnings[0] and (folder / "damaged-30").exists()


@pytest.mark.parametrize("name", ["hashes.json", "_CHECKPOINT_METADATA", "model/manifest.ocdbt"])
def test_a_lost_file_is_named(copy, name):
  (copy / "30" / name).unlink()
  found = restored(copy)
  assert found.step == 20 and name in found.warnings[0]


def test_checkpoints_of_another_run_are_refused(copy):
  with pytest.raises(UserError, match=r"none of the checkpoints .*\(it is of another run\)"):
    restored(copy, run="another")
  (copy / "20").rename(copy / "40")
  assert "it is of step 20" in restored(copy).warnings[0]


def test_weights_of_a_damaged_checkpoint_are_not_scored(copy):
  part = max(
    (p for p in (copy / "30/model").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )
  flip(part)
  wanted = abstract().params, {}
  with pytest.raises(UserError, match=f"step 30 is damaged .*{part.name}"):
    load_model(copy, *wanted)
  np.testing.assert_array_equal(load_model(copy, *wanted, 20)[0]["w"], state(20).params["w"])


def test_a_checkpoint_without_hashes_is_said_to_be_unchecked(copy):
  (copy / "30/hashes.json").unlink()
  metadata = copy / "30/_CHECKPOINT_METADATA"
  value = json.loads(metadata.read_text())
  value["custom_metadata"] = {}
  metadata.write_text(json.dumps(value))
  found = restored(copy)
  assert found.step == 30 and "no hashes" in found.warnings[0]


def test_a_worker_that_lost_its_run_commits_no_checkpoint(tmp_path):
  """At e810754 one that was asleep within a save left an old checkpoint."""

  class LostError(UserError):
    pass

  def lost():
    raise LostError("another worker took this run over")

  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, check_owner=lost)
  checkpoints.save(10, state(10), LEDGER)
  with pytest.raises(LostError):
    checkpoints.wait()
  assert checkpoints.steps() == []
  checkpoints.close()
  assert restored(tmp_path / "checkpoints") is None  # what was unfinished is removed
  assert list((tmp_path / "checkpoints").iterdir()) == []


def test_only_the_callbacks_of_a_closed_loop_are_ignored(monkeypatch):
  """After a full disk each would print a traceback after the one line that says so."""
  seen = []
  monkeypatch.setattr(sys, "unraisablehook", seen.append)
  checkpoint_writer._ignore_late_callbacks.__wrapped__()
  late, other = (
    types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "x")
  )
  sys.unraisablehook(late)
  sys.unraisablehook(other)
  assert seen == [other]
