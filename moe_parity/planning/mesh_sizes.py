"""The number of devices along each axis of the mesh, and which arms such a mesh can train.

The mesh has three axes, and the batch is sharded over all of them:

  data    replicates parameters; gradients are summed over it
  fsdp    shards parameters, gradients and optimizer state; weights are all-gathered for use
  expert  shards the experts of an MoE layer, to which tokens are dispatched (expert parallelism);
          for a dense layer it is one more batch axis

There is no tensor parallelism: at the sizes of the paper a device's share of parameters fits with
`fsdp` and `expert`, and StepLaw's batch of the 7B, about 440 sequences, occupies as many devices.
It would pay only beyond that, and would change every matrix product of the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from moe_parity.errors import UserError
from moe_parity.fields.check import check_value, check_values, get
from moe_parity.planning.architecture import Architecture

AXES = ("data", "fsdp", "expert")
# Padding experts are stored, gathered and updated like others.
MOST_PADDING = 1 / 8


@dataclasses.dataclass(frozen=True)
class MeshSizes:
  """Devices along each axis; one of them may be -1, the rest."""

  data: int = 1
  fsdp: int = 1
  expert: int = 1

  @property
  def is_resolved(self) -> bool:
    """Whether no size is -1."""
    return -1 not in dataclasses.astuple(self)

  @property
  def num_devices(self) -> int:
    """Devices of the whole mesh, which are also the shards of a batch."""
    return math.prod(dataclasses.astuple(self))

  def __str__(self) -> str:
    return " x ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)


def shards_whole_experts(num_experts: int, fsdp: int, expert: int) -> bool:
  """Whether `fsdp` shards experts one by one, and not the columns of each: where there is no expert
  axis and no more than `MOST_PADDING` are padded to a multiple of it. The same for E experts and
  for as many as they are padded to.

  Whole experts lie together in memory as they are sent. Columns do not: on a TPU they are copied
  into place after an all-gather and out of it before a reduce-scatter.
  """
  padded = -(-num_experts // fsdp) * fsdp
  return expert == 1 < fsdp and 0 < padded <= num_experts * (1 + MOST_PADDING)


def stored_experts(num_experts: int, fsdp: int, expert: int) -> int:
  """Experts, with padding, that the devices of one place on the expert axis hold together."""
  local = -(-num_experts // expert)
  return -(-local // fsdp) * fsdp if shards_whole_experts(num_experts, fsdp, expert) else local


def read_mesh(section: Any) -> MeshSizes:
  """The sizes in a config's `mesh`.

  Raises:
    UserError: a size that is no positive number (or -1), or more than one -1; a token dispatcher
      that does not exist.
  """
  check_value("mesh.token_dispatch", get(section, "token_dispatch", ""))
  sizes = MeshSizes(*(get(section, axis, 1) for axis in AXES))
  check_values("mesh", vars(sizes), "mesh")
  if dataclasses.astuple(sizes).count(-1) > 1:
    raise UserError(f"mesh {sizes}: only one axis can take the rest; set the other -1 to 1")
  return sizes


def resolve(sizes: MeshSizes, num_devices: int) -> MeshSizes:
  """The sizes on a machine: -1 replaced by the rest of its devices.

  All sizes 1 is one device, however many there are.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  if sizes == MeshSizes():
    return sizes
  if not sizes.is_resolved:
    given = -sizes.num_devices
    if num_devices % given:
      raise UserError(
        f"mesh {sizes}: the {num_devices} devices here are no multiple of {given}; change the given"
        f" sizes to divide {num_devices}"
      )
    rest = num_devices // given
    sizes = MeshSizes(*(rest if n == -1 else n for n in dataclasses.astuple(sizes)))
  if sizes.num_devices != num_devices:
    raise UserError(
      f"mesh {sizes} is {sizes.num_devices} devices and {num_devices} are here; give one axis -1"
      f" to take the rest, or set all to 1 for a single device"
    )
  return sizes


def check_arms(sizes: MeshSizes, arms: Sequence[Any], micro: int = 0) -> None:
  """Refuses a study's arms (`ArmPlan`s) that a mesh cannot train, as far as its sizes are resolved.

  Dense arms of a study with MoE arms train on the same mesh: its expert axis then carries batch.

  Args:
    micro: sequences in memory at a time, `train.micro_batch_sequences`; 0 is the whole batch.
  Raises:
    UserError: as `check_arm`, or an expert axis where no arm has experts.
  """
  if sizes.expert > 1 and not any(arm.architecture.is_moe for arm in arms):
    rest = f"mesh.data={sizes.data * sizes.expert}" if sizes.data > 0 else "leave mesh.data=-1"
    raise UserError(
      f"mesh.expert={sizes.expert} but no arm has experts; set mesh.expert=1 and {rest}"
    )
  for arm in arms:
    check_shape(sizes, arm.name, arm.architecture)
  for arm in arms:
    _check_batch(sizes, arm.name, arm.batch_sequences, micro)


def check_arm(sizes: MeshSizes, arm: Any, micro: int = 0) -> None:
  """Refuses an arm that a mesh cannot train; arguments as of `check_arms`.

  Raises:
    UserError: as `check_shape`, or a batch that cannot be cut for the devices.
  """
  check_shape(sizes, arm.name, arm.architecture)
  _check_batch(sizes, arm.name, arm.batch_sequences, micro)


def check_shape(sizes: MeshSizes, name: str, architecture: Architecture) -> None:
  """Refuses a model that cannot be sharded over a mesh.

  Raises:
    UserError: an expert axis larger than its E, or a width that `fsdp` does not divide.
  """
  most, width = architecture.num_experts, architecture.d_model
  if architecture.is_moe and sizes.expert > most:
    raise UserError(
      f"arm {name!r}: mesh.expert={sizes.expert} exceeds its {most} experts; use at most {most} and"
      f" put the other devices on mesh.fsdp or mesh.data"
    )
  if sizes.fsdp > 0 and width % sizes.fsdp:
    raise UserError(
      f"arm {name!r}: d_model={width} is no multiple of mesh.fsdp={sizes.fsdp}; use"
      f" mesh.fsdp={math.gcd(width, sizes.fsdp)}, or arms with multiple_of={sizes.fsdp}"
    )


def _check_batch(sizes: MeshSizes, name: str, batch_sequences: int, micro: int) -> None:
  rows, devices = micro or batch_sequences, sizes.num_devices
  if sizes.is_resolved and rows % devices:
    what = f"train.micro_batch_sequences={rows}" if micro else f"a batch of {rows} sequences"
    way = (
      f"use a multiple of {devices}"
      if micro
      else f"set budget.batch_multiple={devices}, or use fewer devices"
    )
    raise UserError(f"arm {name!r}: {what} cannot be cut for {devices} devices ({sizes}); {way}")
