"""A device ran out of memory, in one line: what was requested, what was planned, what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ml_collections import ConfigDict

from moe_parity.errors import UserError, disk_is_full
from moe_parity.kernels.common import attention_device
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.attention_choice import FUSED
from moe_parity.planning.memory import Memory, planned_memory
from moe_parity.planning.mesh_sizes import read_mesh, resolve
from moe_parity.training.build import model_options

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# XLA's messages: "Out of memory while trying to allocate 1.50GiB" (or "... 1610612736 bytes"), of a
# GPU's own allocator "Failed to allocate request for 1.50GiB", and of a compiler that plans ahead
# "Used 18.20G of 15.75G hbm".
ASKED = re.compile(r"(?:allocat\w*(?: request for)?|Used) ([\d.]+) ?([KMGT]?)i?B?(?: bytes)?\b")


class OutOfMemoryError(UserError):
  """A training step does not fit the device."""


@contextmanager
def explained(config: ConfigDict, plan: ArmPlan, num_devices: int) -> Iterator[None]:
  """Raises `OutOfMemoryError` in place of XLA's own error, which may be pages long.

  Args:
    num_devices: that the run's batch is cut for.
  """
  try:
    yield
  except Exception as error:
    # A full disk has the same status in tensorstore's words, and a line of its own.
    if "RESOURCE_EXHAUSTED" not in str(error) or disk_is_full(error):
      raise
    raise OutOfMemoryError(message(str(error), config, plan, num_devices)) from error


def message(text: str, config: ConfigDict, plan: ArmPlan, num_devices: int) -> str:
  """The one line.

  Args:
    text: XLA's.
  """
  asked, planned = asked_bytes(text), planned_here(config, plan, num_devices)
  parts = [f"requested {_gibibytes(asked)} at once"] if asked else []
  parts.append(f"planned {_gibibytes(planned.total)} in all")
  return f"arm {plan.name!r} does not fit a device ({', '.join(parts)}); " + _way_out(
    config, plan, num_devices
  )


def planned_here(config: ConfigDict, plan: ArmPlan, num_devices: int = 1) -> Memory:
  """`planned_memory` on so many of this machine's devices, with the attention they take."""
  choose = model_options(config).attention_choice
  choice = choose(attention_device(), plan.seq_len, plan.architecture.d_head)
  sizes = resolve(read_mesh(config.mesh), num_devices)
  return planned_memory(config, plan, sizes, choice.implementation in FUSED)


def asked_bytes(text: str) -> int:
  """Bytes of the allocation that failed, as XLA's message says; 0 where it does not."""
  match = ASKED.search(text)
  return int(float(match[1]) * UNITS[match[2]]) if match else 0


def smaller_micro_batch(micro: int, batch: int, num_devices: int) -> int:
  """The largest micro-batch below `micro` that divides the batch and is cut for the devices; 0 if
  there is none."""
  sizes = (n for n in range(micro - 1, 0, -1) if batch % n == 0 and n % num_devices == 0)
  return next(sizes, 0)


def _way_out(config: ConfigDict, plan: ArmPlan, num_devices: int) -> str:
  micro = config.train.micro_batch_sequences or plan.batch_sequences
  smaller = smaller_micro_batch(micro, plan.batch_sequences, num_devices)
  if smaller:
    way = f"use --config.train.micro_batch_sequences={smaller} (now {micro})"
  elif config.model.remat != "layer":
    way = f"use --config.model.remat=layer (now {config.model.remat})"
  else:
    way = f"use more devices (--config.mesh.fsdp, now {read_mesh(config.mesh).fsdp})"
  return f"{way}; a run with other settings needs another --workdir"


def _gibibytes(number: int) -> str:
  return f"{number / 2**30:.2f} GiB"
