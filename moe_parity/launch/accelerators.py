"""TPU slices as the launchers ask for them: accelerator type, topology, hosts, machine type.

Names are Google's: the number of `v6e-16` counts chips, that of `v5p-16` and `tpu7x-16` cores,
two a chip. Sources: docs.cloud.google.com/tpu/docs (v5e, v5p, v6e, tpu7x; supported versions),
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import math
import re
from typing import NamedTuple

from moe_parity.errors import UserError


class Chip(NamedTuple):
  """One generation.

  Attributes:
    accelerator: how an accelerator type of the Cloud TPU API begins.
    counts: what the number in a name counts on a chip: 1 chip or 2 TensorCores.
    axes: of the grid of chips.
    largest: chips of the largest slice.
    runtime: the image of the Cloud TPU API, "" where that API does not have the generation.
    machine: how a machine type begins, followed by the chips of a host and `t`.
    gce: whether Compute Engine's instance groups have it.
    gke_accelerator: the node label of GKE.
  """

  name: str
  accelerator: str
  counts: int
  axes: int
  largest: int
  runtime: str
  machine: str
  gce: bool
  gke_accelerator: str


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", "v5litepod", 1, 2, 256, "v2-alpha-tpuv5-lite", "ct5lp-hightpu", False,
         "tpu-v5-lite-podslice"),
    Chip("v5p", "v5p", 2, 3, 4096, "v2-alpha-tpuv5", "ct5p-hightpu", True, "tpu-v5p-slice"),
    Chip("v6e", "v6e", 1, 2, 256, "v2-alpha-tpuv6e", "ct6e-standard", True, "tpu-v6e-slice"),
    Chip("tpu7x", "tpu7x", 2, 3, 4096, "", "tpu7x-standard", True, "tpu7x"),
  )
}  # fmt: skip
ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e"}


class SliceType(NamedTuple):
  """Some chips of one generation, wired as a grid."""

  chip: Chip
  num_chips: int

  @property
  def name(self) -> str:
    return f"{self.chip.name}-{self.num_chips * self.chip.counts}"

  @property
  def accelerator_type(self) -> str:
    """What the Cloud TPU API calls it."""
    return f"{self.chip.accelerator}-{self.num_chips * self.chip.counts}"

  @property
  def chips_per_host(self) -> int:
    """Eight chips of a plane can be one host; a larger slice, and any cube, has hosts of four."""
    one_host = 8 if self.chip.axes == 2 else 4
    return self.num_chips if self.num_chips <= one_host else 4

  @property
  def num_hosts(self) -> int:
    return self.num_chips // self.chips_per_host

  @property
  def machine_type(self) -> str:
    return f"{self.chip.machine}-{self.chips_per_host}t"

  @property
  def topology(self) -> str:
    """The grid, `4x4` or `2x2x4`: powers of two, as even as can be, the longest axis last."""
    if self.chip.axes == 3 and self.num_chips == 4:
      return "2x2x1"
    doublings, axes = round(math.log2(self.num_chips)), self.chip.axes
    return "x".join(str(2 ** ((doublings + axis) // axes)) for axis in range(axes))


def slice_type(name: str) -> SliceType:
  """The slice of a name such as v6e-16.

  Raises:
    UserError: no such generation or size.
  """
  match = re.fullmatch(r"([a-z0-9]+)-(\d+)", name.strip().lower())
  chip = CHIPS.get(ALIASES.get(match[1], match[1])) if match else None
  if match is None or chip is None:
    raise UserError(
      f"--type={name}: no TPU that the launchers know; use {', '.join(CHIPS)} and a size: v6e-16"
    )
  sizes = [2**k for k in range(13) if 2**k <= chip.largest]
  sizes = [size for size in sizes if size != 2 and (size >= 4 or chip.axes == 2)]
  num_chips, rest = divmod(int(match[2]), chip.counts)
  if rest or num_chips not in sizes:
    known = ", ".join(f"{chip.name}-{size * chip.counts}" for size in sizes)
    raise UserError(f"--type={name}: {chip.name} has no such slice; use {known}")
  return SliceType(chip, num_chips)
