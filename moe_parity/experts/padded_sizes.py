"""Sizes of the padded experts by platform: slots of an expert, rows of an overflow step.

Only speed depends on them. On a CPU (and wherever nothing else is said) a slot costs its share of a
product and a step of the overflow loop little, so slots are few and steps small. On a GPU a slot
costs bytes in proportion, while a step costs the launch of dozens of kernels and a word from the
device whether another one follows, so slots are more and steps large.
"""

import dataclasses
import math

from moe_parity.kernels.common import platform

# Standard deviations of an expert's load above its mean that have slots. With fewer, balanced
# routing would overflow in every step; more are padding for all experts.
DEVIATIONS = 1.75


@dataclasses.dataclass(frozen=True)
class PaddedSizes:
  """A platform's sizes; the reason for each number is in its comment below.

  Attributes:
    slot_multiple: an expert's slots are a multiple of it.
    head_room: slots over the mean load that an expert has at least, in whole multiples.
    smallest_tile, largest_tile: assignments of one expert that an overflow step computes together.
    fewest_rows: assignments of a step, where the largest number of tiles allows it.
    share_of_rows: of all assignments that a step computes, if that is more.
    most_tiles: tiles of a step, 0 for no limit.
  """

  slot_multiple: int
  head_room: float
  smallest_tile: int
  largest_tile: int
  fewest_rows: int
  share_of_rows: float
  most_tiles: int

  def slots(self, num_tokens: int, experts_per_token: int, num_experts: int) -> int:
    """Slots an expert: the mean load and DEVIATIONS of balanced routing, or `head_room`."""
    share = experts_per_token / num_experts
    mean = num_tokens * share
    balanced = math.ceil(mean + DEVIATIONS * math.sqrt(mean * (1 - min(share, 1))))
    slots = self.slot_multiple * math.ceil(balanced / self.slot_multiple)
    slots = max(slots, self.slot_multiple * int(self.head_room * mean / self.slot_multiple))
    return min(slots, num_tokens * experts_per_token)

  def tile(self, num_slots: int) -> int:
    """Assignments a tile: about a quarter of an expert's slots. Larger tiles carry more padding,
    smaller ones more copies of weights for the work they do."""
    quarter = self.smallest_tile * (num_slots // (4 * self.smallest_tile))
    return min(max(quarter, self.smallest_tile), self.largest_tile)

  def tiles_per_step(self, num_slots: int, num_assignments: int) -> int:
    """Tiles a step: enough rows to occupy the cores, few enough that the last step's padding stays
    small; two at least."""
    rows = max(self.fewest_rows, int(self.share_of_rows * num_assignments))
    num_tiles = max(rows // self.tile(num_slots), 2)
    return min(num_tiles, self.most_tiles) if self.most_tiles else num_tiles


CPU = PaddedSizes(
  slot_multiple=16,  # the floats of a vector register
  head_room=1.0,  # skewed routing is cheaper in the loop than in slots
  smallest_tile=16,  # as slots
  largest_tile=256,  # rows from which a product gets no faster
  fewest_rows=256,  # enough for every core
  share_of_rows=0.0,  # a step costs little compared with its rows, so it need not grow with them
  most_tiles=8,  # copies of weights that a step reads
)
GPU = PaddedSizes(
  slot_multiple=64,  # the rows of a tensor core's smallest efficient tile
  head_room=1.25,  # skew up to a quarter above the mean costs a few slots' bytes, and no loop
  smallest_tile=64,  # as slots
  largest_tile=128,  # the usual tile of a matrix product; more would be padding
  fewest_rows=256,  # two of the largest tiles
  share_of_rows=1 / 16,  # one or two steps do at a routing that overflows by a tenth
  most_tiles=0,  # weights copied for all tiles are small compared with the rows of a sixteenth
)


def padded_sizes() -> PaddedSizes:
  """The sizes of the platform that the program is traced for."""
  return GPU if platform() == "gpu" else CPU
