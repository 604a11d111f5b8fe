"""Which meshes an arm could train on, and in what order to try them: before any compile.

Candidates are ordered by an estimated step time, the sum of

  compute    the plan's FLOPs over the peak, a third more where layers are rematerialized
  memory     HBM bytes over their bandwidth: HBM_BYTES x tokens x layers x D_m x (K + 2), what rows
             and hidden values cost in all passes, and more where tokens are dispatched to other
             devices (EXCHANGED_BYTES, GATHERED_BYTES); PARAMETER_BYTES of the optimizer
  weights, gradients   over their links, less what overlaps (EXPOSED_GATHERS, EXPOSED_SCATTERS),
             and copies next to them where D_m / f is no multiple of 128, and experts are not
           sharded whole (COPIED_BYTES)
  exchange   over its links; where it is asynchronous, less what overlaps with computation (at most
             HIDDEN of it, and OVERLAP of compute and memory)

Bytes sent, with b the bytes of the compute dtype, W_e and W the experts' and all other parameters,
m micro-batches:

  fsdp     (f-1)/f x (W + W_e/e) x m x b x (1, weights all-gathered, + 1 where the backward pass
           gathers them again to rematerialize layers, + 1, gradients reduce-scattered)
  data     2 x b bytes of every gradient this device holds, all-reduced: expert weights over `data`,
           others over `expert` too
  expert   dispatch and combine of the slice's token dispatcher (`wire_bytes.py`), and half of the
           forward bytes once more where layers are rematerialized

A mesh axis takes whole torus axes first, the longest first. Where it fills one that wraps, it has a
ring with two links, else a line with one. Devices of one chip (tpu7x has two) share its links. In
an all-to-all rows are forwarded: along k chips of a ring the busiest link carries k/8 of what a
device sends, of a line k/4, as `aot/collectives.py` counts it where the devices' coordinates are
known.

The constants are rounded from the compiled steps of `results/compile_*.json` and of most of
`results/compiled_meshes/`; docs/devices.md shows the estimate next to the compiled time, and which
steps had no part in them. A mesh that does not fit comes after all that do. The estimate orders
candidates: compile for a mesh to see how good it is.
"""

import dataclasses
import math
from collections.abc import Iterator

from moe_parity.errors import UserError
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.expert_parallel import ExpertParallelShape, default_token_dispatch
from moe_parity.planning.memory import (
  DTYPE_BYTES,
  MAX_LOGITS_ON_TPU,
  Memory,
  device_memory,
  row_width,
)
from moe_parity.planning.mesh_sizes import (
  MeshSizes,
  check_arms,
  shards_whole_experts,
  stored_experts,
)
from moe_parity.planning.tpu_slices import LANES, Slice, ragged_unsupported
from moe_parity.planning.wire_bytes import wire_bytes

HEADROOM = 1.2  # what compilers add to planned bytes: 0.97 to 1.22 of them in compiled steps
# HBM bytes a token, layer and channel of each of K + 2 rows: without an exchange, and with one by
# its dispatcher. On v4 and v5p, whose HBM is fast, rows take longer than their bytes to permute.
# An `all_to_all` has a quarter more rows than tokens choose, and is v5e's, where no SparseCore
# permutes them.
HBM_BYTES = {"v4": 130, "v5p": 130}
OTHER_HBM_BYTES = 60
EXCHANGED_BYTES = {"ragged_all_to_all": 110, "all_to_all": 140}
# An `all_gather` has a device convert, permute and sum rows of all tokens of its group, padded to
# eight lane tiles: HBM bytes a gathered token, layer and channel.
GATHERED_BYTES = 150
PARAMETER_BYTES = 40  # Adam reads 16 and writes 12, casts and gradients are the rest
HIDDEN, OVERLAP = 0.8, 0.4  # shares of a ragged exchange and of computation that can overlap
# Shares of collectives of weights that computation does not hide. A gather of a layer starts with
# the layer, so that what is needed first is waited for. v5e gathers asynchronously, v6e's
# SparseCores gather and reduce-scatter (`sharding/compiler_options.py`); all else waits.
EXPOSED_GATHERS = {"v5e": 0.3, "v6e": 0.5}
EXPOSED_SCATTERS = {"v6e": 0.5}
# Where a device's columns are no whole lane tiles, XLA copies a weight after it is gathered and its
# gradient before it is scattered, at a quarter of the HBM's rate: read and written, bytes a byte.
# Below MIN_COLUMNS it all-reduces the gradient instead, and overlaps nothing. Both as compiled for
# a gather and its gradient alone, 7B's and 2B's w_in over 16, 32 and 64 devices of v5e and v6e.
COPIED_BYTES = 8
MIN_COLUMNS = 64


@dataclasses.dataclass(frozen=True)
class MeshCandidate:
  """A mesh an arm can train on, with its estimates for one device."""

  sizes: MeshSizes
  memory: Memory
  wire_bytes: float
  seconds: float
  fits: bool


def candidates(
  plan: ArmPlan,
  slice_: Slice,
  *,
  micro_batch_sequences: int = 0,
  dtype: str = "bfloat16",
  remat: str = "layer",
  kernels: bool = False,
) -> list[MeshCandidate]:
  """Meshes of all of a slice's devices for an arm, best first; those planned not to fit come last.

  Args:
    micro_batch_sequences: sequences in memory at a time over all devices; 0 is the whole batch.
  Raises:
    UserError: no mesh of so many devices can train the arm; gives the simplest mesh's reason.
  """
  micro = plan.batch_sequences // (micro_batch_sequences or plan.batch_sequences)
  result, first_error = [], None
  for sizes in _all_sizes(slice_.num_devices, plan.architecture.is_moe):
    try:
      check_arms(sizes, [plan], micro_batch_sequences)
    except UserError as error:
      first_error = first_error or error
      continue
    memory = device_memory(
      plan.architecture, plan.seq_len, plan.batch_sequences, dataclasses.asdict(sizes),
      dtype=dtype, remat=remat, micro_batches=micro, kernels=kernels,
      max_logits=MAX_LOGITS_ON_TPU,
    )  # fmt: skip
    result.append(_estimate(plan, slice_, sizes, memory, DTYPE_BYTES[dtype], micro, remat))
  if not result:
    raise UserError(f"no mesh of {slice_.num_devices} devices: {first_error}")
  return sorted(result, key=lambda c: (not c.fits, round(c.seconds, 3), c.memory.total))


def _all_sizes(num_devices: int, is_moe: bool) -> Iterator[MeshSizes]:
  for expert in _divisors(num_devices) if is_moe else [1]:
    for fsdp in _divisors(num_devices // expert):
      yield MeshSizes(num_devices // expert // fsdp, fsdp, expert)


def _estimate(
  plan: ArmPlan, slice_: Slice, sizes: MeshSizes, memory: Memory, item: int, micro: int, remat: str
) -> MeshCandidate:
  """The step time estimated for a mesh."""
  generation, is_rematerialized = slice_.generation, remat != "none"
  link_bandwidth = generation.link_bandwidth / generation.devices_per_chip
  tokens = plan.batch_sequences * plan.seq_len // slice_.num_devices
  dispatch = _dispatch(plan.architecture, slice_, sizes.expert)
  rows = exchange_bytes(plan.architecture, dispatch, sizes.expert, tokens, item, is_rematerialized)
  compute = plan.train_flops_per_token * tokens * (4 / 3 if is_rematerialized else 1)
  moved = PARAMETER_BYTES / 4 * memory.parameters  # float32
  moved += _row_bytes(plan.architecture, generation.name, dispatch, sizes.expert, tokens)
  device = compute / generation.flops_per_device + moved / generation.bandwidth_per_device
  busiest = _busiest(sizes.expert, slice_)
  if dispatch == "all_gather":
    busiest = 1 / _links(sizes.expert, slice_)
  exchange = rows * busiest / link_bandwidth
  if not ragged_unsupported(generation.name, slice_.num_devices):
    exchange -= min(HIDDEN * exchange, OVERLAP * device)
  weights = weight_bytes(plan.architecture, sizes, item, micro, is_rematerialized)
  narrow, other = weights.narrow_share, 1 - weights.narrow_share
  waited = weights.gathered * (narrow + other * EXPOSED_GATHERS.get(generation.name, 1))
  waited += weights.scattered * (2 * narrow + other * EXPOSED_SCATTERS.get(generation.name, 1))
  seconds = device + exchange + waited / (_links(sizes.fsdp, slice_) * link_bandwidth)
  seconds += COPIED_BYTES * weights.copied / generation.bandwidth_per_device
  copies = _links(sizes.data * sizes.expert, slice_)
  seconds += weights.reduced / (copies * link_bandwidth)
  fits = memory.total * HEADROOM <= generation.hbm_bytes
  return MeshCandidate(sizes, memory, weights.sent + rows, seconds, fits)


def _row_bytes(
  architecture: Architecture, generation: str, dispatch: str, expert: int, tokens: int
) -> int | float:
  """HBM bytes of rows and hidden values in all passes of a step."""
  a = architecture
  rows = tokens * a.num_layers * a.d_model * (a.experts_per_token + 2)
  own = HBM_BYTES.get(generation, OTHER_HBM_BYTES)
  moved = EXCHANGED_BYTES.get(dispatch, own) * rows
  if dispatch == "all_gather":
    moved += GATHERED_BYTES * expert * tokens * a.num_moe_layers * row_width(a.d_model)
  return moved


def _dispatch(architecture: Architecture, slice_: Slice, expert: int) -> str:
  """The token dispatcher of a slice; "" where every device has all experts."""
  if expert == 1:
    return ""
  return default_token_dispatch(
    "tpu",
    num_experts=architecture.num_experts,
    experts_per_token=architecture.experts_per_token,
    num_devices=expert,
    has_ragged=not ragged_unsupported(slice_.generation.name, slice_.num_devices),
  )


def _torus_axes(size: int, slice_: Slice) -> list[tuple[int, bool]]:
  """(chips, whether they are a ring) along every torus axis that a mesh axis of `size` takes."""
  axes = []
  for axis in sorted(range(len(slice_.grid)), key=lambda axis: -slice_.grid[axis]):
    chips = math.gcd(size, slice_.grid[axis])
    if chips > 1:
      axes.append((chips, chips == slice_.grid[axis] and slice_.wraps(axis)))
      size //= chips
  return axes


def _links(size: int, slice_: Slice) -> int:
  """Links that a device sends over in collectives along a mesh axis."""
  return sum(2 if is_ring else 1 for _, is_ring in _torus_axes(size, slice_)) or 1


def _busiest(size: int, slice_: Slice) -> float:
  """What the busiest link of an all-to-all carries, over what a device sends."""
  if size == 1:
    return 0.0
  worst = max(
    (chips / (8 if is_ring else 4) for chips, is_ring in _torus_axes(size, slice_)), default=0.0
  )
  return worst / _sent_fraction(size)


@dataclasses.dataclass(frozen=True)
class WeightBytes:
  """Bytes of one device and step.

  Attributes:
    gathered, scattered, reduced: sent to all-gather weights over `fsdp`, to reduce-scatter their
      gradients over it, and to all-reduce gradients over the other axes.
    copied: of weights and gradients that are copied next to a collective.
    narrow_share: of what is gathered and scattered, the share in columns below MIN_COLUMNS.
  """

  gathered: float
  scattered: float
  reduced: float
  copied: float
  narrow_share: float

  @property
  def sent(self) -> float:
    """All that is sent."""
    return self.gathered + self.scattered + self.reduced


def weight_bytes(
  architecture: Architecture, sizes: MeshSizes, item: int, micro: int, is_rematerialized: bool
) -> WeightBytes:
  """Bytes of weights and gradients (see the top).

  Args:
    item: bytes of the compute dtype.
    is_rematerialized: whether the backward pass gathers weights again.
  """
  a = architecture
  experts = 3 * a.num_moe_layers * a.num_experts * a.d_model * a.d_expert
  attention = 2 * a.d_model * a.d_head * (a.num_heads + a.num_kv_heads) * a.num_layers
  others = attention + 3 * a.d_model * (
    a.num_dense_layers * a.d_ffn + a.num_moe_layers * a.d_shared
  )
  others += 2 * a.vocab_size * a.d_model
  axes = a.num_experts, sizes.fsdp, sizes.expert
  local = experts / a.num_experts * stored_experts(*axes) if experts else 0
  whole, passes = (others + local) * micro * item, 2 if is_rematerialized else 1
  in_columns = others + (0 if shards_whole_experts(*axes) else local)
  sharded = _sent_fraction(sizes.fsdp) * whole
  copies = sizes.data * sizes.expert
  reduced = _sent_fraction(sizes.data) * local + _sent_fraction(copies) * others
  is_copied = sizes.fsdp > 1 and a.d_model % (sizes.fsdp * LANES)
  is_narrow = a.d_model // sizes.fsdp < MIN_COLUMNS
  return WeightBytes(
    gathered=passes * sharded,
    scattered=sharded,
    reduced=2 * item * reduced / sizes.fsdp,
    copied=float((passes + 1) * in_columns * micro * item) if is_copied else 0.0,
    narrow_share=in_columns / (others + local) if is_narrow else 0.0,
  )


def exchange_bytes(
  architecture: Architecture,
  dispatch: str,
  expert: int,
  tokens: int,
  item: int,
  is_rematerialized: bool,
) -> int | float:
  """Bytes that one device sends in a step to dispatch and combine tokens.

  Args:
    dispatch: the token dispatcher. expert: devices on that axis. tokens: of one device and step.
    is_rematerialized: whether layers are computed a second time in the backward pass.
  """
  if expert == 1:
    return 0.0
  a = architecture
  shape = ExpertParallelShape(tokens, a.experts_per_token, a.num_experts, expert)
  sent = wire_bytes(dispatch, shape, d_model=a.d_model, itemsize=item)
  return a.num_moe_layers * (sent.forward * (1.5 if is_rematerialized else 1.0) + sent.backward)


def _sent_fraction(n: int) -> float:
  return (n - 1) / n


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
