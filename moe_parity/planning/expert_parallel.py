"""Expert parallelism on paper: which token dispatcher to use, and the sizes of its buffers.

T tokens a device, G devices on the expert axis, L = ceil(E / G) experts each: device g owns experts
[g L, (g+1) L). The token dispatchers, values of `mesh.token_dispatch`:

  all_to_all               an all-to-all of buffers of fixed size; every platform
  ragged_all_to_all        a ragged all-to-all of one row for each assignment; TPU and GPU
  ragged_all_to_all_dedup  the same of rows packed by device; TPU and GPU
  all_gather               every device gets every token; every platform

In `all_to_all` and `ragged_all_to_all_dedup` a *row* is one token's vector for one device, with up
to J of the token's experts there, their routing weights and ids. J is 1 where choices rarely share
a device, at most min(K, L), where a token is sent once a device whatever it chose there. In
`ragged_all_to_all` a row is one assignment (`experts/ragged_all_to_all.py` says why).
"""

import dataclasses
import math

from moe_parity.errors import UserError
from moe_parity.fields.check import check_kind, check_value
from moe_parity.fields.choices import TOKEN_DISPATCHERS
from moe_parity.fields.kinds import Choice
from moe_parity.planning import tpu_slices

RAGGED = ("ragged_all_to_all_dedup", "ragged_all_to_all")  # need a ragged all-to-all collective

# Buffers of the first round hold this much of the mean load of balanced routing; those of an
# overflow round a fraction of that.
CAPACITY_HEADROOM = 1.25
OVERFLOW_FRACTION = 1 / 4

# The name scope of loops that take steps only where routing is skewed: estimates of a compiled
# program's time leave them out.
OVERFLOW_SCOPE = "overflow_rounds"


@dataclasses.dataclass(frozen=True)
class ExpertParallelShape:
  """Sizes of one layer's dispatch and combine.

  Attributes:
    num_tokens: T, tokens of one device.
    experts_per_token: K.
    num_experts: E, without padding experts.
    num_devices: G.
    capacity_factor: 0 for dropless, else an expert's assignments from one device over T K / E.
  """

  num_tokens: int
  experts_per_token: int
  num_experts: int
  num_devices: int
  capacity_factor: int | float = 0.0

  @property
  def experts_per_device(self) -> int:
    """L; on the last devices some of them are padding experts that no token can choose."""
    return -(-self.num_experts // self.num_devices)

  @property
  def max_choices_per_device(self) -> int:
    """The most experts of one device that a token can choose."""
    return min(self.experts_per_token, self.experts_per_device)

  @property
  def capacity(self) -> int:
    """Assignments an expert takes from one device; all of them when dropless."""
    if self.capacity_factor == 0:
      return self.num_tokens
    mean = self.num_tokens * self.experts_per_token / self.num_experts
    return min(math.ceil(self.capacity_factor * mean), self.num_tokens)

  def expected_rows_per_pair(self, choices_per_row: int) -> float:
    """The mean number of rows a token sends to a device with L experts at balanced routing."""
    total = math.comb(self.num_experts, self.experts_per_token)
    local = self.experts_per_device
    return sum(
      -(-chosen // choices_per_row)
      * math.comb(local, chosen)
      * math.comb(self.num_experts - local, self.experts_per_token - chosen)
      / total
      for chosen in range(1, self.max_choices_per_device + 1)
    )

  @property
  def choices_per_row(self) -> int:
    """J: the smallest whose number of rows is within 2 % of the smallest possible."""
    largest = self.max_choices_per_device
    fewest = self.expected_rows_per_pair(largest)
    return next(j for j in range(1, largest + 1) if self.expected_rows_per_pair(j) <= 1.02 * fewest)

  @property
  def rows_per_token(self) -> int:
    """P: the most rows one token can need, over all devices."""
    spread = min(self.num_devices, self.experts_per_token)
    most = (self.experts_per_token + spread * (self.choices_per_row - 1)) // self.choices_per_row
    return min(self.experts_per_token, most)

  @property
  def max_rows_per_pair(self) -> int:
    """The most rows one device can have for another, whatever the routing."""
    rows = self.num_tokens * -(-self.max_choices_per_device // self.choices_per_row)
    return min(rows, self.experts_per_device * self.capacity)

  @property
  def first_choices(self) -> int:
    """Assignments per pair of devices in the first round of `ragged_all_to_all`; all of them when
    there is a capacity."""
    if self.capacity_factor:
      return self._max_choices_per_pair
    share = self.experts_per_device / self.num_experts
    expected = self.num_tokens * self.experts_per_token * share
    return _first_round(expected, self._max_choices_per_pair)

  @property
  def overflow_choices(self) -> int:
    """Assignments per pair in each overflow round; 0 where the first round holds all."""
    return _overflow_round(self.first_choices, self._max_choices_per_pair)

  @property
  def _max_choices_per_pair(self) -> int:
    most = self.num_tokens * self.max_choices_per_device
    return min(most, self.experts_per_device * self.capacity)

  @property
  def first_rows(self) -> int:
    """Rows per pair of devices in the first round of `all_to_all`; all of them when there is a
    capacity."""
    if self.capacity_factor:
      return self.max_rows_per_pair
    expected = self.num_tokens * self.expected_rows_per_pair(self.choices_per_row)
    return _first_round(expected, self.max_rows_per_pair)

  @property
  def overflow_rows(self) -> int:
    """Rows per pair in each overflow round; 0 where the first round holds all."""
    return _overflow_round(self.first_rows, self.max_rows_per_pair)


def _first_round(expected: float, most: int) -> int:
  """Slots per pair of devices in the first round: the expected number with headroom."""
  return min(16 * math.ceil(CAPACITY_HEADROOM * expected / 16), most)


def _overflow_round(first: int, most: int) -> int:
  """Slots per pair in each overflow round; 0 where the first round holds all."""
  return 0 if first == most else 16 * math.ceil(first * OVERFLOW_FRACTION / 16)


def tile_padded_rows(num_rows: int, num_experts: int) -> int:
  """Rows of a buffer that holds `num_rows` sorted by expert, whatever the counts.

  Every expert starts at a whole tile and has at least one. The number of tiles is even, for a
  chip's two cores.
  """
  num_tiles = num_rows // tpu_slices.ROW_TILE + num_experts
  return (num_tiles + num_tiles % 2) * tpu_slices.ROW_TILE


def check_name(token_dispatch: str) -> None:
  """
  Raises:
    UserError: no such token dispatcher.
  """
  check_kind("mesh.token_dispatch", token_dispatch, Choice(TOKEN_DISPATCHERS))


def check_token_dispatch(
  token_dispatch: str,
  platform: str,
  *,
  num_experts: int,
  num_devices: int,
  capacity_factor: int | float = 0.0,
) -> None:
  """Refuses, before anything compiles, a token dispatcher that cannot run.

  Args:
    platform: "cpu", "gpu" or "tpu": where the program will run.
    num_devices: size of the expert axis.
  Raises:
    UserError: no such token dispatcher; a ragged one on CPU; more devices than experts; a capacity
      factor that is negative or not finite.
  """
  check_name(token_dispatch)
  if token_dispatch in RAGGED and platform == "cpu":
    raise UserError(
      f"token_dispatch={token_dispatch!r} needs a TPU or GPU: XLA has no ragged all-to-all on CPU;"
      " use 'all_to_all', which is exact too, or 'all_gather'"
    )
  if num_devices > num_experts:
    raise UserError(
      f"{num_devices} devices on the expert axis share {num_experts} experts, so some would own"
      f" none; use at most {num_experts}"
    )
  check_value("model.capacity_factor", capacity_factor)


def default_token_dispatch(
  platform: str,
  *,
  num_experts: int,
  experts_per_token: int,
  num_devices: int,
  has_ragged: bool = True,
) -> str:
  """The token dispatcher of a platform, where the config names none.

  `all_gather` where a token goes to at least 1 / CAPACITY_HEADROOM = 0.8 of the devices at balanced
  routing: fixed-size buffers then hold every token anyway, and a ragged all-to-all, which sends a
  token once for each of its choices, would save a fifth at most. Otherwise `ragged_all_to_all` on
  TPU and `all_to_all` elsewhere: on CPU XLA has no ragged all-to-all, on GPU its fast kernel stops
  at 8 devices.

  Args:
    has_ragged: whether the TPU slice has a ragged all-to-all (`tpu_slices.ragged_unsupported`).
  """
  one_token = ExpertParallelShape(1, experts_per_token, num_experts, num_devices)
  rows = one_token.expected_rows_per_pair(one_token.max_choices_per_device)
  if CAPACITY_HEADROOM * rows >= 1:
    return "all_gather"
  return "ragged_all_to_all" if platform == "tpu" and has_ragged else "all_to_all"
