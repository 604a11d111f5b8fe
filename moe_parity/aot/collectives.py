"""Estimates bytes, seconds and mesh axes of the collectives of a compiled program.

Wire bytes are what one device sends, with b the bytes of its operand or result (the larger) and n
the devices of a group:

  all-gather, reduce-scatter, all-to-all   b (n-1)/n
  ragged-all-to-all                        the same of its rows at even routing: the smaller operand
  all-reduce                               2 b (n-1)/n, a reduce-scatter and an all-gather
  collective-permute                       b

Seconds are wire bytes over link bandwidth, with no latency and all groups at once. A ring along a
torus axis has two links to send on, a line one; a group on several axes uses them all. In an
all-to-all rows are forwarded: along an axis of k chips in a ring the busiest link carries k/8 of
what a device sends, in a line k/4 (half the slice sends to the other half over the links in the
middle). Devices on one chip share its links, and communicate with each other for free.
"""

import dataclasses
import math
import re

import numpy as np

from moe_parity.aot import hlo
from moe_parity.planning.tpu_slices import Slice

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
         "collective-permute", "collective-broadcast")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DevicePlacement:
  """A slice, and the chip of every device of a mesh on it.

  Attributes:
    axes: mesh axis -> size, in order.
    coordinates: of every device in mesh order, its chip's placement in the grid, [devices, 3].
  """

  slice: Slice
  axes: dict[str, int]
  coordinates: np.ndarray


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction. Bytes are of one device and one execution."""

  kind: str
  axes: tuple[str, ...]
  payload_bytes: int
  wire_bytes: float
  seconds: float


def kind_of(instruction: hlo.Instruction) -> str:
  """The collective an instruction is, asynchronous or not; "" for anything else."""
  opcode = re.sub(r"-(start|done|update)$", "", instruction.opcode)
  return opcode if opcode in KINDS else ""


def estimate(
  instruction: hlo.Instruction, shapes: dict[str, str], placement: DevicePlacement
) -> Collective:
  """Estimates the bytes and seconds of a collective instruction.

  Args:
    shapes: of the operands, by name.
  """
  kind = kind_of(instruction)
  payload, wire, groups = traffic(instruction, shapes, len(placement.coordinates))
  seconds = max((_seconds(kind, payload, wire, group, placement) for group in groups), default=0.0)
  return Collective(kind, axes_of(kind, groups, placement.axes), payload, wire, seconds)


def traffic(
  instruction: hlo.Instruction, shapes: dict[str, str], num_devices: int
) -> tuple[int, float, list[list[int]]]:
  """(payload bytes, wire bytes of one device, groups of devices) of a collective instruction.

  Args:
    shapes: of the operands, by name.
    num_devices: of the program.
  """
  kind = kind_of(instruction)
  operand_bytes = [hlo.num_bytes(shapes.get(name, "")) for name in instruction.operands]
  result = hlo.arrays(instruction.shape)
  result_bytes = sum(array.num_bytes for array in result)
  if kind == "ragged-all-to-all":
    # The second operand is what it writes into; a start's result holds both and more.
    payload = min(operand_bytes[:2])
  elif kind == "collective-permute":
    payload = operand_bytes[0]
  elif kind in ("all-gather", "all-reduce") and instruction.opcode.endswith("-start"):
    payload = max(array.num_bytes for array in result)
  else:
    payload = max(sum(operand_bytes), result_bytes)
  if kind == "collective-permute":
    pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", instruction.rest)]
    groups = [list(pair) for pair in pairs if pair[0] != pair[1]]
  else:
    groups = replica_groups(instruction.rest, num_devices)
  largest = max(groups, key=len, default=[])
  factor = {"collective-permute": 1.0, "all-reduce": 2 * (1 - 1 / max(len(largest), 1))}
  return payload, payload * factor.get(kind, 1 - 1 / max(len(largest), 1)), groups


def replica_groups(attributes: str, num_devices: int) -> list[list[int]]:
  """Reads the groups of devices that communicate; all devices if there is no such attribute.

  Notations: `{{0,1},{2,3}}`; `[4,2]<=[2,4]T(1,0)`, a reshaped iota; `mesh['a'=4,'b'=2] {'b'}`.

  Raises:
    ValueError: another notation.
  """
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
    if "(" in match[1] or ":" in match[2]:
      raise ValueError(f"replica groups {match[0]!r}: parts of a mesh axis are not read")
    axes = [name for name, _ in re.findall(r"'([^']*)'=(\d+)", match[1])]
    sizes = [int(size) for _, size in re.findall(r"'([^']*)'=(\d+)", match[1])]
    chosen = [axes.index(name) for name in re.findall(r"'([^']*)'", match[2])]
    others = [i for i in range(len(axes)) if i not in chosen]
    ids = np.arange(math.prod(sizes)).reshape(sizes).transpose(*others, *chosen)
    return ids.reshape(-1, math.prod(sizes[i] for i in chosen)).tolist()
  if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
    shape, iota = ([int(x) for x in match[i].split(",")] for i in (1, 2))
    ids = np.arange(math.prod(iota)).reshape(iota)
    if match[3]:
      ids = ids.transpose([int(x) for x in match[3].split(",")])
    return ids.reshape(shape[0], -1).tolist()
  if match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes):
    return [[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
  if "replica_groups={}" in attributes or "replica_groups=" not in attributes:
    return [list(range(num_devices))]
  start = attributes.index("replica_groups=")
  raise ValueError(f"replica groups {attributes[start : start + 80]!r} are in no known notation")


def axes_of(kind: str, groups: list[list[int]], axes: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes a collective goes over: those along which a group's devices differ."""
  if not axes:
    return ()
  shape = tuple(axes.values())
  names = set()
  for group in groups[:1] if kind != "collective-permute" else groups:
    places = np.array(np.unravel_index(group, shape))
    names |= {name for name, row in zip(axes, places, strict=True) if len(set(row.tolist())) > 1}
  return tuple(name for name in axes if name in names)


def _seconds(
  kind: str, payload: int, wire: float, group: list[int], placement: DevicePlacement
) -> float:
  """Seconds of one group: bytes on its busiest link over the bandwidth of a link."""
  generation = placement.slice.generation
  spread = [sorted(set(column)) for column in placement.coordinates[group].T.tolist()]
  axes = [(axis, len(places)) for axis, places in enumerate(spread) if len(places) > 1]
  if not axes:
    return 0.0  # devices of one chip
  bandwidth = generation.link_bandwidth
  sharing = generation.devices_per_chip  # devices that send over the links of one chip

  def is_ring(axis: int, size: int) -> bool:
    return size == placement.slice.grid[axis] and placement.slice.wraps(axis)

  if kind in ("all-to-all", "ragged-all-to-all"):
    worst = max(size / (8 if is_ring(axis, size) else 4) for axis, size in axes)
    return sharing * payload * worst / bandwidth
  if kind == "collective-permute":
    return sharing * wire / bandwidth
  links = sum(2 if is_ring(axis, size) else 1 for axis, size in axes)
  return sharing * wire / (links * bandwidth)
