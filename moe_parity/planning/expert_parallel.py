"""What an exchange of tokens between the devices that hold the experts sends, and which to take.

T tokens a device, G devices on the expert axis, L = ceil(E / G) experts each: device g owns experts
[g L, (g+1) L). A padded or merged exchange's *row* is one token's vector on its way to one device,
with up to J of its chosen experts there, their routing weights and ids. J is 1 where choices rarely
meet on a device, at most min(K, L), where a token crosses the wire once per device whatever it
chose there. A ragged exchange's row is one assignment (`experts/ragged_all_to_all.py` says why).
"""

import dataclasses
import math

from moe_parity.errors import UserError
from moe_parity.planning import tpu_slices

EXCHANGES = ("padded", "merged", "ragged", "gathered")
WITHOUT_SLOTS = ("merged", "ragged")  # by a ragged all-to-all

# First buffers hold this much of the mean load of a fair draw, replays a quarter of that.
SLACK = 1.25
REPLAY_SHARE = 4

# Loops that take a step only where routing is skewed stand under this name in a compiled program:
# whoever prices it on paper leaves them out.
REPLAYS = "replays"


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of one exchange.

  Attributes:
    num_tokens: T, tokens of one device.
    experts_per_token: K.
    num_experts: E, the real ones.
    num_devices: G.
    capacity_factor: 0 for dropless, else assignments kept per (device, expert) over T K / E.
  """

  num_tokens: int
  experts_per_token: int
  num_experts: int
  num_devices: int
  capacity_factor: int | float = 0.0

  @property
  def experts_per_device(self) -> int:
    """L; on the last devices some of them are phantoms that no token can choose."""
    return -(-self.num_experts // self.num_devices)

  @property
  def most_choices(self) -> int:
    """The most experts of one device that a token can choose."""
    return min(self.experts_per_token, self.experts_per_device)

  @property
  def capacity(self) -> int:
    """Assignments an expert takes from one device; all of them when dropless."""
    if self.capacity_factor == 0:
      return self.num_tokens
    mean = self.num_tokens * self.experts_per_token / self.num_experts
    return min(math.ceil(self.capacity_factor * mean), self.num_tokens)

  def rows_per_pair(self, choices_per_row: int) -> float:
    """Rows a token sends to a device full of experts, in the mean over choices drawn fairly."""
    total = math.comb(self.num_experts, self.experts_per_token)
    here = self.experts_per_device
    return sum(
      -(-met // choices_per_row)
      * math.comb(here, met)
      * math.comb(self.num_experts - here, self.experts_per_token - met)
      / total
      for met in range(1, self.most_choices + 1)
    )

  @property
  def choices_per_row(self) -> int:
    """J: the fewest whose rows are within 2 % of the fewest possible."""
    most = self.most_choices
    fewest = self.rows_per_pair(most)
    return next(j for j in range(1, most + 1) if self.rows_per_pair(j) <= 1.02 * fewest)

  @property
  def rows_per_token(self) -> int:
    """P: the most rows one token can need, over all devices."""
    spread = min(self.num_devices, self.experts_per_token)
    most = (self.experts_per_token + spread * (self.choices_per_row - 1)) // self.choices_per_row
    return min(self.experts_per_token, most)

  @property
  def most_rows(self) -> int:
    """The most rows one device can have for another: what no routing can exceed."""
    rows = self.num_tokens * -(-self.most_choices // self.choices_per_row)
    return min(rows, self.experts_per_device * self.capacity)

  @property
  def first_choices(self) -> int:
    """Assignments per pair of devices that the first round of a ragged exchange has room for, and
    so its rows. All when there is a capacity."""
    most = min(self.num_tokens * self.most_choices, self.experts_per_device * self.capacity)
    if self.capacity_factor:
      return most
    share = self.experts_per_device / self.num_experts
    mean = SLACK * self.num_tokens * self.experts_per_token * share
    return min(16 * math.ceil(mean / 16), most)

  @property
  def replay_choices(self) -> int:
    """What each further round has room for; 0 when the first carries all there can be."""
    most = min(self.num_tokens * self.most_choices, self.experts_per_device * self.capacity)
    if self.first_choices == most:
      return 0
    return 16 * math.ceil(self.first_choices / (16 * REPLAY_SHARE))

  @property
  def first_rows(self) -> int:
    """Rows per pair of devices that the first round of a padded exchange carries. All when there
    is a capacity."""
    if self.capacity_factor:
      return self.most_rows
    mean = SLACK * self.num_tokens * self.rows_per_pair(self.choices_per_row)
    return min(16 * math.ceil(mean / 16), self.most_rows)

  @property
  def replay_rows(self) -> int:
    """Rows per pair that each further round carries; 0 when the first carries all there can be."""
    if self.first_rows == self.most_rows:
      return 0
    return 16 * math.ceil(self.first_rows / (16 * REPLAY_SHARE))


def room_for(num_rows: int, num_experts: int) -> int:
  """Rows of a buffer that holds `num_rows` sorted by expert, however they are spread: each expert's
  begin at a whole tile, and it has one at least. An even number of tiles, for a chip's two cores.
  """
  num_tiles = num_rows // tpu_slices.ROW_TILE + num_experts
  return (num_tiles + num_tiles % 2) * tpu_slices.ROW_TILE


def check_exchange(
  exchange: str,
  platform: str,
  *,
  num_experts: int,
  num_devices: int,
  capacity_factor: int | float = 0.0,
) -> None:
  """Refuses, before anything compiles, an exchange that cannot run.

  Args:
    platform: "cpu", "gpu" or "tpu": where the program will run.
    num_devices: size of the expert axis.
  Raises:
    UserError: no such exchange; ragged or merged on CPU; more devices than experts; a capacity
      factor that is negative or not finite.
  """
  if exchange not in EXCHANGES:
    raise UserError(
      f"exchange={exchange!r} is not one of {', '.join(EXCHANGES)}; leave it out for the platform's"
      " own"
    )
  if exchange in WITHOUT_SLOTS and platform == "cpu":
    raise UserError(
      f"exchange={exchange!r} needs a TPU or GPU: XLA has no ragged all-to-all on CPU; use"
      " 'padded', which is exact too, or 'gathered'"
    )
  if num_devices > num_experts:
    raise UserError(
      f"{num_devices} devices on the expert axis share {num_experts} experts, so some would own"
      f" none; use at most {num_experts}"
    )
  if not 0 <= capacity_factor < math.inf:
    raise UserError(
      f"capacity_factor={capacity_factor} must be 0 (nothing dropped) or positive; 1.25 is usual"
    )


def default_exchange(
  platform: str,
  *,
  num_experts: int,
  experts_per_token: int,
  num_devices: int,
  has_ragged: bool = True,
) -> str:
  """The exchange to take when none is named.

  `gathered` where a fairly routed token goes to at least 1 / SLACK = 0.8 of the devices: padded
  buffers then hold every token anyway, and a ragged exchange, which sends a token once for each of
  its choices, would save a fifth at most. Otherwise
  `ragged` on TPU and `padded` elsewhere: on CPU XLA has no ragged all-to-all, on GPU its fast
  kernel stops at 8 devices.

  Args:
    has_ragged: whether a TPU's slice has a ragged all-to-all (`lacks_ragged`).
  """
  fair = Shape(1, experts_per_token, num_experts, num_devices)
  if SLACK * fair.rows_per_pair(fair.most_choices) >= 1:
    return "gathered"
  return "ragged" if platform == "tpu" and has_ragged else "padded"


def lacks_ragged(device_kind: str, num_devices: int) -> bool:
  """Whether a TPU slice has no ragged all-to-all: v5e of more than 16 chips, where libtpu 0.0.50
  refuses it ("not supported in limited ICI routing settings"). It compiles for 4 x 4 of them, and
  for v6e up to 16 x 16 and v5p at all sizes tried.

  Args:
    device_kind: as JAX names it, or the generation's name.
  """
  return ("v5 lite" in device_kind or device_kind == "v5e") and num_devices > 16


@dataclasses.dataclass(frozen=True)
class WireBytes:
  """Bytes one device sends to others in one layer.

  Attributes:
    forward: what the first (mostly the only) round of the forward pass sends.
    backward: the same of the backward pass, not counting a forward pass that remat repeats.
    replay_forward, replay_backward: what every further round sends; 0 where there is none.
  """

  forward: int
  backward: int
  replay_forward: int = 0
  replay_backward: int = 0


def wire_bytes(exchange: str, shape: Shape, *, d_model: int, itemsize: int) -> WireBytes:
  """What the collectives of one layer send, in buffers' bytes less what stays on the device.

  With b bytes a number, a padded exchange's row carries D b of its vector and its tags there (ids
  and routing weights, 8 J), D b back; its gradient D b there, D b and 4 J of tags back. A merged
  exchange sends the vectors of rows there are, and tags of all slots. A ragged exchange's row is an
  assignment; routing weights and their gradients go in all-gathers.

      padded    forward (G-1) C (2 D b + 8 J)               backward (G-1) C (2 D b + 4 J)
      merged    forward n 2 D b + (G-1) (8 J C + 4 G)       backward n 2 D b + (G-1) 4 J C
      ragged    forward n 2 D b + 4 (G-1) (T K + G L)       backward n 2 D b + 4 (G-1) R
      gathered  forward (G-1) T (2 D b + 8 K)               backward (G-1) T (2 D b + 4 K)

  C = `Shape.first_rows`, J = `Shape.choices_per_row`. n counts the rows there are, here those of a
  fair draw to devices full of experts, and R the rows of a buffer for G `Shape.first_choices`
  (`room_for`). A further round has `Shape.replay_rows` or `Shape.replay_choices` instead, and its
  backward pass sends rows and what goes with them there once more (n is not known then, and not
  counted).
  """
  others, vector = shape.num_devices - 1, d_model * itemsize
  if exchange == "gathered":
    rows, choices = others * shape.num_tokens, shape.experts_per_token
    return WireBytes(rows * (2 * vector + 8 * choices), rows * (2 * vector + 4 * choices))
  if exchange == "ragged":
    here, sent = shape.experts_per_device, shape.num_tokens * shape.experts_per_token
    rows = others * sent * here / shape.num_experts
    room = room_for(shape.num_devices * shape.first_choices, here)
    return WireBytes(
      round(rows * 2 * vector) + 4 * others * (sent + shape.num_devices * here),
      round(rows * 2 * vector) + 4 * others * room,
    )
  if exchange == "merged":
    rows = others * shape.num_tokens * shape.rows_per_pair(shape.choices_per_row)
    tags = 4 * others * shape.choices_per_row * shape.first_rows
    vectors = round(rows * 2 * vector)
    return WireBytes(vectors + 2 * tags + 4 * others * shape.num_devices, vectors + tags)
  tags, tags_back = 8 * shape.choices_per_row, 4 * shape.choices_per_row
  rows, again = others * shape.first_rows, others * shape.replay_rows
  return WireBytes(
    rows * (2 * vector + tags),
    rows * (2 * vector + tags_back),
    again * (2 * vector + tags),
    again * (3 * vector + tags + tags_back),
  )
