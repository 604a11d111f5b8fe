"""Which meshes an arm could train on, and in what order to try them: before any compile.

Order is by a price on paper: the plan's FLOPs over the peak, a third more where layers are computed
again, and what one device would send in a step over its links, nothing overlapped and no pass over
memory counted. Compiled steps take longer, all of them. What is sent, with b the bytes of the
compute dtype, W_e and W the experts' and all other parameters, m micro-batches:

  fsdp     (f-1)/f x (W + W_e/e) x m x (2 b, weights collected forward and again backward, + 4,
           their gradients scattered); twice that where a device's D_m / f is no multiple of 128:
           XLA:TPU then collects by adding up whole matrices, mostly zeros
  data     2 x 4 bytes of every gradient this device holds, summed over the copies: expert weights
           over `data`, others over `expert` too
  expert   what the slice's exchange sends a layer (`exchange.wire_bytes`), and half of its forward
           bytes once more where layers are computed again

The first two go over two links of a ring. An all-to-all's rows travel on: along k chips in a ring
the busiest link carries k/8 of what a device sends (`aot/collectives.py` prices them so, where
the devices' places are known; here k is the axis, at most the slice's longest side).

A mesh that does not fit comes after all that do. The price orders candidates and nothing more: what
a compiler makes of a mesh is seen by compiling it.
"""

import dataclasses

from moe_parity.errors import UserError
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.expert_parallel import (
  Shape,
  default_exchange,
  lacks_ragged,
  wire_bytes,
)
from moe_parity.planning.memory import DTYPE_BYTES, MAX_LOGITS_IN_MEMORY, Memory, device_memory
from moe_parity.planning.mesh_sizes import MeshSizes, check_arms
from moe_parity.planning.tpu_slices import LANES, Slice

HEADROOM = 1.2  # what compilers add to planned bytes


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A mesh an arm can train on, with what was planned for it a device."""

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
) -> list[Candidate]:
  """Meshes of all of a slice's devices for an arm, best first; those planned not to fit come last.

  Args:
    micro_batch_sequences: sequences in memory at a time over all devices; 0 is the whole batch.
  Raises:
    UserError: no mesh of so many devices can train the arm; says why the simplest cannot.
  """
  micro = plan.batch_sequences // (micro_batch_sequences or plan.batch_sequences)
  generation, num_devices = slice_.generation, slice_.num_devices
  tokens, again = plan.batch_sequences * plan.seq_len // num_devices, remat != "none"
  found, refused = [], None
  for expert in _divisors(num_devices) if plan.architecture.is_moe else [1]:
    for fsdp in _divisors(num_devices // expert):
      sizes = MeshSizes(num_devices // expert // fsdp, fsdp, expert)
      try:
        check_arms(sizes, [plan], micro_batch_sequences)
      except UserError as error:
        refused = refused or error
        continue
      memory = device_memory(
        plan.architecture, plan.seq_len, plan.batch_sequences, dataclasses.asdict(sizes),
        dtype=dtype, remat=remat, micro_batches=micro, kernels=kernels,
        most_logits=MAX_LOGITS_IN_MEMORY,
      )  # fmt: skip
      weights = weight_bytes(plan.architecture, sizes, DTYPE_BYTES[dtype], micro)
      rows = row_bytes(plan.architecture, slice_, sizes.expert, tokens, DTYPE_BYTES[dtype], again)
      compute = plan.train_flops_per_token * tokens * (4 / 3 if again else 1)
      along = min(expert, max(slice_.grid))
      sent = weights / 2 + rows * max(along / 8, 0.5)
      seconds = compute / generation.flops_per_device + sent / generation.link_bandwidth
      fits = memory.total * HEADROOM <= generation.hbm_bytes
      found.append(Candidate(sizes, memory, weights + rows, seconds, fits))
  if not found:
    raise UserError(f"no mesh of {num_devices} devices: {refused}")
  return sorted(found, key=lambda c: (not c.fits, round(c.seconds, 3), c.memory.total))


def weight_bytes(architecture: Architecture, sizes: MeshSizes, item: int, micro: int) -> float:
  """Bytes of weights and their gradients that one device sends in a step (see the top of the file).

  Args:
    item: bytes of the compute dtype.
  """
  a = architecture
  experts = 3 * a.num_moe_layers * a.num_experts * a.d_model * a.d_expert
  attention = 2 * a.d_model * a.d_head * (a.num_heads + a.num_kv_heads) * a.num_layers
  others = attention + 3 * a.d_model * (
    a.num_dense_layers * a.d_ffn + a.num_moe_layers * a.d_shared
  )
  others += 2 * a.vocab_size * a.d_model
  here = experts / sizes.expert
  collected = _left(sizes.fsdp) * (others + here) * micro * (2 * item + 4)
  if a.d_model % (sizes.fsdp * LANES):
    collected *= 2
  copies = sizes.data * sizes.expert
  return collected + 8 * (_left(sizes.data) * here + _left(copies) * others) / sizes.fsdp


def row_bytes(
  architecture: Architecture, slice_: Slice, expert: int, tokens: int, item: int, again: bool
) -> float:
  """Bytes of rows to and from experts that one device sends in a step.

  Args:
    expert: devices on that axis. tokens: of one device and step. again: whether layers are computed
      a second time in the backward pass.
  """
  if expert == 1:
    return 0.0
  a = architecture
  name = default_exchange(
    "tpu", num_experts=a.num_experts, experts_per_token=a.experts_per_token, num_devices=expert,
    has_ragged=not lacks_ragged(slice_.generation.name, slice_.num_devices),
  )  # fmt: skip
  shape = Shape(tokens, a.experts_per_token, a.num_experts, expert)
  sent = wire_bytes(name, shape, d_model=a.d_model, itemsize=item)
  return a.num_moe_layers * (sent.forward * (1.5 if again else 1) + sent.backward)


def _left(n: int) -> float:
  return (n - 1) / n


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
