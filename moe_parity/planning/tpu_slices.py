"""TPU slices by name: how many chips, how they are wired, what a chip can do. No JAX needed.

A name is what Google calls a slice, `v5p-128`, or a generation and its grid of chips, `v5p:4x4x4`.
The number counts TensorCores on v4, v5p and tpu7x (two a chip) and chips on v5e and v6e.

Chips, from Google's own pages (docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x): bf16
FLOP/s, HBM bytes/s and the bidirectional inter-chip bandwidth (ICI) of a chip, which is here cut
into links one way: v5p 1200 GB/s over 2 directions and 6 links is 100 GB/s. For v4, whose page
gives none, 50 GB/s a link (Jouppi et al. 2304.01433, Table 4). Clocks follow from the peak and the
multiply-adds a cycle of the matrix units (four of 128 x 128 a core, 256 x 256 from v6e on). What a
program may use of the HBM is what libtpu says when one does not fit.
"""

import dataclasses
import math
import re

from moe_parity.errors import UserError, nearest
from moe_parity.planning.gpu_cards import CARDS

GIB = 2**30
LANES = 128  # numbers in a row of a TPU's vector register; arrays are stored in such pieces
ROW_TILE = (
  256  # rows of one expert that the grouped kernels (kernels/grouped_swiglu.py) compute at a time
)


@dataclasses.dataclass(frozen=True)
class Generation:
  """One kind of chip. A device is what JAX sees: a chip, or a TensorCore where it has two.

  Attributes:
    units_in_name: what the number in a slice's name counts a chip as: 2 (TensorCores) or 1.
    devices_per_chip: JAX devices on a chip, as libtpu describes slices to a compiler.
    peak_flops, hbm_bandwidth: of a chip, bf16 FLOP/s and bytes/s.
    hbm_bytes: of a device, what a program may use.
    link_bandwidth: of one link to a neighbor in one direction, bytes/s.
    cycles_per_second: of the clock that the compiler's estimated cycles are in.
    grids: chips along each axis of the slices Google names, smallest first.
    largest: chips of the largest slice.
  """

  name: str
  units_in_name: int
  devices_per_chip: int
  peak_flops: float
  hbm_bandwidth: float
  hbm_bytes: int
  link_bandwidth: float
  cycles_per_second: float
  grids: tuple[tuple[int, ...], ...]
  largest: int

  @property
  def flops_per_device(self) -> float:
    """bf16 FLOP/s of a JAX device."""
    return self.peak_flops / self.devices_per_chip

  @property
  def bandwidth_per_device(self) -> float:
    """HBM bytes/s of a JAX device."""
    return self.hbm_bandwidth / self.devices_per_chip


GRIDS_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
GRIDS_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8),
         (8, 8, 16), (8, 16, 16), (16, 16, 16))  # fmt: skip

GENERATIONS = {
  g.name: g
  for g in (
    Generation(
      "v4", 2, 1, 275e12, 1.2e12, int(30.75 * GIB), 50e9, 275e12 / 2**18, GRIDS_3D, 4096
    ),
    Generation(
      "v5e", 1, 1, 197e12, 819e9, int(15.75 * GIB), 50e9, 197e12 / 2**17, GRIDS_2D, 256
    ),
    Generation(
      "v5p", 2, 1, 459e12, 2765e9, int(95.73 * GIB), 100e9, 459e12 / 2**18, GRIDS_3D, 6144
    ),
    Generation(
      "v6e", 1, 1, 918e12, 1638e9, int(31.24 * GIB), 100e9, 918e12 / 2**19, GRIDS_2D, 256
    ),
    Generation(
      "tpu7x", 2, 2, 2307e12, 7380e9, int(94.74 * GIB), 100e9, 2307e12 / 2**20, GRIDS_3D, 9216
    ),
  )
}  # fmt: skip
ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e"}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Some chips of one generation, wired as a grid."""

  generation: Generation
  grid: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """Chips of the slice."""
    return math.prod(self.grid)

  @property
  def num_devices(self) -> int:
    """JAX devices of the slice."""
    return self.num_chips * self.generation.devices_per_chip

  @property
  def compiler_name(self) -> str:
    """What libtpu calls it: `v5p:4x4x4`."""
    return f"{self.generation.name}:{'x'.join(map(str, self.grid))}"

  @property
  def name(self) -> str:
    """What Google calls it, if it has such a name: `v5p-128`."""
    if self.grid not in self.generation.grids:
      return self.compiler_name
    return f"{self.generation.name}-{self.num_chips * self.generation.units_in_name}"

  def wraps(self, axis: int) -> bool:
    """Whether the last chip along an axis is linked to the first: multiples of 4 in a cube, the
    full 16 in a plane."""
    size = self.grid[axis]
    return size % 4 == 0 if len(self.grid) == 3 else size == 16


def ragged_unsupported(device_kind: str, num_devices: int) -> bool:
  """Whether a slice has no ragged all-to-all: v5e of more than 16 chips, where libtpu refuses it
  ("not supported in limited ICI routing settings").

  Args:
    device_kind: as JAX names it, or the generation's name.
  """
  return ("v5 lite" in device_kind or device_kind == "v5e") and num_devices > 16


def parse_slice(name: str) -> Slice:
  """Reads the name of a slice.

  Raises:
    UserError: no such generation or size; the nearest names are listed.
  """
  match = re.fullmatch(r"([a-z0-9]+?)[:-](\d+(?:x\d+)*)", name.strip().lower())
  if match is None or ALIASES.get(match[1], match[1]) not in GENERATIONS:
    raise UserError(
      f"topology {name!r} is no TPU slice and no card; use {_nearest(name)}, a grid such as"
      f" v5p:4x4x4, or one of {', '.join(CARDS)}"
    )
  generation = GENERATIONS[ALIASES.get(match[1], match[1])]
  if "x" in match[2]:
    grid = tuple(int(size) for size in match[2].split("x"))
    if not _is_valid_grid(grid, generation):
      raise UserError(
        f"topology {name!r}: {generation.name} has no slice of {match[2]} chips; use "
        f"{_nearest(name, generation)}{_rule(generation)}"
      )
    return Slice(generation, grid)
  for grid in generation.grids:
    if math.prod(grid) * generation.units_in_name == int(match[2]):
      return Slice(generation, grid)
  counted = "TensorCores, two a chip" if generation.units_in_name == 2 else "chips"
  raise UserError(
    f"topology {name!r}: {generation.name} has no slice of {match[2]} {counted}; use "
    f"{_nearest(name, generation)}"
  )


def _is_valid_grid(grid: tuple[int, ...], generation: Generation) -> bool:
  """A grid Google names, the same turned, or a larger one of whole cubes of 4 x 4 x 4 chips."""
  if any(sorted(grid) == sorted(named) for named in generation.grids):
    return len(grid) == 2 or grid[2] == 1 or 1 not in grid
  whole = len(grid) == 3 and all(size % 4 == 0 and 0 < size <= 24 for size in grid)
  return len(generation.grids[0]) == 3 and whole and math.prod(grid) <= generation.largest


def _rule(generation: Generation) -> str:
  return ", or a grid of multiples of 4" if len(generation.grids[0]) == 3 else ""


def _nearest(name: str, generation: Generation | None = None) -> str:
  """The names nearest to one that does not exist."""
  if generation is None:
    letters = re.split(r"[:-]", name.lower())[0]
    near = nearest(letters, [*GENERATIONS, *ALIASES], cutoff=0.3)
    if not near:
      return ", ".join(Slice(g, g.grids[3]).name for g in GENERATIONS.values())
    generation = GENERATIONS[ALIASES.get(near[0], near[0])]
  sizes = [int(size) for size in re.findall(r"\d+", re.split(r"[:-]", name + "-")[1])] or [64]
  wanted = math.prod(sizes) * (generation.units_in_name if len(sizes) > 1 else 1)

  def distance(grid):
    return abs(math.log(math.prod(grid) * generation.units_in_name / max(wanted, 1)))

  near_grids = sorted(sorted(generation.grids, key=distance)[:3], key=math.prod)
  return ", ".join(Slice(generation, grid).name for grid in near_grids)
