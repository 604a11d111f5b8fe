"""Which meshes an arm could train on, and in what order to try them: before any compile.

Candidates are ordered by an estimated step time, the sum of

  compute    the plan's FLOPs over the peak, a third more where layers are rematerialized
  memory     HBM_BYTES x tokens x layers x D_m x (K + 2) over the HBM bandwidth: what rows and
             hidden values cost in all passes. It is the same for every mesh of a slice, and
             gives communication its weight
  weights, gradients   over their links, not overlapped; where XLA all-gathers asynchronously
             (v5e), EXPOSED_GATHERS of the gathers
  exchange   over its links; of a ragged dispatcher, whose start and done stand apart, less what
             overlaps with computation (at most HIDDEN of it, and OVERLAP of compute and memory)

Bytes sent, with b the bytes of the compute dtype, W_e and W the experts' and all other parameters,
m micro-batches:

  fsdp     (f-1)/f x (W + W_e/e) x m x b x (1, weights all-gathered, + 1 where the backward pass
           gathers them again to rematerialize layers, + 1, gradients reduce-scattered, which is an
           all-reduce of twice as much where D_m / f is no multiple of 128)
  data     2 x b bytes of every gradient this device holds, all-reduced: expert weights over `data`,
           others over `expert` too
  expert   dispatch and combine of the slice's token dispatcher (`wire_bytes.py`), and half of the
           forward bytes once more where layers are rematerialized

A mesh axis takes whole torus axes first, the longest first. Where it fills one that wraps, it has
a ring with two links, else a line with one. In an all-to-all rows are forwarded: along k chips of a
ring the busiest link carries k/8 of what a device sends, of a line k/4, as `aot/collectives.py`
counts it where the devices' coordinates are known.

HBM_BYTES, HIDDEN, OVERLAP and EXPOSED_GATHERS are rounded from compiled steps, those of
`results/compile_*.json`; docs/devices.md shows the estimate next to the compiled time of these and
of others (`results/compiled_meshes/`). A mesh that does not fit comes after all that
do. The estimate orders candidates: compile for a mesh to see how good it is.
"""

import dataclasses
import math
from collections.abc import Iterator

from moe_parity.errors import UserError
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.expert_parallel import ExpertParallelShape, default_token_dispatch
from moe_parity.planning.memory import DTYPE_BYTES, MAX_LOGITS_IN_MEMORY, Memory, device_memory
from moe_parity.planning.mesh_sizes import MeshSizes, check_arms
from moe_parity.planning.tpu_slices import LANES, Slice, ragged_unsupported
from moe_parity.planning.wire_bytes import wire_bytes

HEADROOM = 1.2  # what compilers add to planned bytes
HBM_BYTES = 130  # read and written a token, layer and channel of each of K + 2 rows
HIDDEN, OVERLAP = 0.8, 0.4  # shares of a ragged exchange and of computation that can overlap
EXPOSED_GATHERS = 0.3  # share of asynchronous all-gathers that computation does not hide


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
      max_logits=MAX_LOGITS_IN_MEMORY,
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
  tokens = plan.batch_sequences * plan.seq_len // slice_.num_devices
  gathered, reduced = weight_bytes(plan.architecture, sizes, item, micro, is_rematerialized)
  rows = exchange_bytes(plan.architecture, slice_, sizes.expert, tokens, item, is_rematerialized)
  compute = plan.train_flops_per_token * tokens * (4 / 3 if is_rematerialized else 1)
  rows_in_hbm = plan.architecture.num_layers * (plan.architecture.experts_per_token + 2)
  moved = HBM_BYTES * tokens * plan.architecture.d_model * rows_in_hbm
  device = compute / generation.flops_per_device + moved / generation.bandwidth_per_device
  exchange, waited = rows * _busiest(sizes.expert, slice_) / generation.link_bandwidth, gathered
  if ragged_unsupported(generation.name, slice_.num_devices):
    waited *= EXPOSED_GATHERS
  else:
    exchange -= min(HIDDEN * exchange, OVERLAP * device)
  links = _links(max(sizes.fsdp, sizes.data), slice_)
  seconds = device + exchange + (waited + reduced) / (links * generation.link_bandwidth)
  fits = memory.total * HEADROOM <= generation.hbm_bytes
  return MeshCandidate(sizes, memory, gathered + reduced + rows, seconds, fits)


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


def weight_bytes(
  architecture: Architecture, sizes: MeshSizes, item: int, micro: int, is_rematerialized: bool
) -> tuple[float, float]:
  """Bytes that one device sends in a step: of weights it gathers, and of gradients (see the top).

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
  local = experts / sizes.expert
  sharded = _sent_fraction(sizes.fsdp) * (others + local) * micro * item
  scattered = sharded * (2 if a.d_model % (sizes.fsdp * LANES) else 1)
  copies = sizes.data * sizes.expert
  reduced = _sent_fraction(sizes.data) * local + _sent_fraction(copies) * others
  return sharded * (2 if is_rematerialized else 1), scattered + 2 * item * reduced / sizes.fsdp


def exchange_bytes(
  architecture: Architecture,
  slice_: Slice,
  expert: int,
  tokens: int,
  item: int,
  is_rematerialized: bool,
) -> int | float:
  """Bytes that one device sends in a step to dispatch and combine tokens.

  Args:
    expert: devices on that axis. tokens: of one device and step.
    is_rematerialized: whether layers are computed a second time in the backward pass.
  """
  if expert == 1:
    return 0.0
  a = architecture
  name = default_token_dispatch(
    "tpu", num_experts=a.num_experts, experts_per_token=a.experts_per_token, num_devices=expert,
    has_ragged=not ragged_unsupported(slice_.generation.name, slice_.num_devices),
  )  # fmt: skip
  shape = ExpertParallelShape(tokens, a.experts_per_token, a.num_experts, expert)
  sent = wire_bytes(name, shape, d_model=a.d_model, itemsize=item)
  return a.num_moe_layers * (sent.forward * (1.5 if is_rematerialized else 1.0) + sent.backward)


def _sent_fraction(n: int) -> float:
  return (n - 1) / n


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
