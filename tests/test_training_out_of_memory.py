"""A device that is out of memory: the bytes of XLA's message, and the way out that fits the run."""

import dataclasses

import pytest

from moe_parity.planning.attention_choice import Device
from moe_parity.planning.memory import planned_memory
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.training import loop, out_of_memory
from moe_parity.training.out_of_memory import asked_bytes, explained, smaller_micro_batch
from tests.helpers import small_store
from tests.test_training_loop import arm


@pytest.mark.parametrize(
  "text, asked",
  [
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1610612736 bytes.", 3 * 2**29),
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.50GiB.", 3 * 2**29),
    (
      "RESOURCE_EXHAUSTED: Failed to allocate request for 1.50GiB (1610612736B) on device 0",
      3 * 2**29,
    ),
    (
      "Error allocating device buffer: Attempting to allocate 1.50G.",
      3 * 2**29,
    ),
    (
      "Ran out of memory in memory space hbm. Used 18.00G of 15.75G",
      18 * 2**30,
    ),
    ("RESOURCE_EXHAUSTED: no number at all", 0),
  ],
)
def test_the_bytes_asked_for_are_read_from_xlas_message(text, asked):
  assert asked_bytes(text) == asked


def test_a_smaller_micro_batch_divides_the_batch_and_the_devices():
  assert smaller_micro_batch(24, 168, 1) == 21
  assert smaller_micro_batch(24, 168, 4) == 12
  assert smaller_micro_batch(4, 168, 4) == 0
  assert smaller_micro_batch(1, 168, 1) == 0


TEXT = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.00GiB\nand pages more"


def refused(micro, remat):
  """The line of an arm with a batch of 168, and its plan in GiB."""
  config, plan = arm("dense", f"--config.model.remat={remat}")
  config.train.micro_batch_sequences = micro
  plan = dataclasses.replace(plan, batch_sequences=168)
  with pytest.raises(out_of_memory.OutOfMemoryError) as error, explained(config, plan, 1):
    raise RuntimeError(TEXT)
  return str(error.value), planned_memory(config, plan).total / 2**30


def test_running_out_is_one_line_with_both_sizes_and_a_way_out():
  line, planned = refused(24, "none")
  assert "\n" not in line
  assert f"requested 2.00 GiB at once, planned {planned:.2f} GiB in all" in line
  assert "--config.train.micro_batch_sequences=21 (now 24)" in line
  assert "--config.train.micro_batch_sequences=84 (now 168)" in refused(0, "none")[0]


def test_without_smaller_micro_batches_remat_then_devices_help():
  assert "--config.model.remat=layer (now none)" in refused(1, "none")[0]
  assert "--config.mesh.fsdp, now 1" in refused(1, "layer")[0]


def test_what_was_planned_is_for_the_devices_that_ran_out(monkeypatch):
  """Four H100s, as `mesh.fsdp=-1` takes them: cuDNN stores no scores."""
  config, plan = arm("dense", "--config.model.dtype=bfloat16", "--config.mesh.fsdp=-1")
  plan = dataclasses.replace(plan, batch_sequences=168)
  monkeypatch.setattr(out_of_memory, "attention_device", lambda: Device("gpu", 9.0))
  with pytest.raises(out_of_memory.OutOfMemoryError) as error, explained(config, plan, 4):
    raise RuntimeError(TEXT)
  fused, blocks = (planned_memory(config, plan, MeshSizes(fsdp=4), is_fused).total / 2**30
                   for is_fused in (True, False))  # fmt: skip
  assert f"{fused:.2f}" != f"{blocks:.2f}" and f"planned {fused:.2f} GiB" in str(error.value)


def test_another_error_is_left_as_it_is():
  with pytest.raises(RuntimeError, match="^INTERNAL"), explained(*arm("dense"), 1):
    raise RuntimeError("INTERNAL: something else")


def test_a_step_that_runs_out_of_memory_is_explained(monkeypatch, tmp_path):
  config, plan = arm("dense")
  store = small_store.small_store(tmp_path, count=300)

  def set_up(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5.00GiB")

  monkeypatch.setattr(loop, "set_up", set_up)
  with pytest.raises(out_of_memory.OutOfMemoryError, match="'dense' .* 5.00 GiB"):
    loop.train_arm(config, plan, store, tmp_path / "run")
