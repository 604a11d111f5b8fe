"""Which meshes an arm could train on, and in what order to try them: before any compile.

Order is by planned wire bytes, what one device would send in a step, with b the bytes of the
compute dtype, W_e and W the experts' and all other parameters, m micro-batches:

  fsdp     (f-1)/f x (W + W_e/e) x m x (2 b, weights collected forward and again backward, + 4,
           their gradients scattered)
  data     2 x 4 bytes of every gradient this device holds, summed over the copies: expert weights
           over `data`, others over `expert` too
  expert   (e-1)/e x b x K T D_m a layer, 4 times (there and back, forward and backward) and 2 more
           where layers are computed again

A mesh that does not fit comes after all that do. The estimate orders candidates and nothing more:
what a compiler makes of a mesh is seen by compiling it.
"""

import dataclasses

from moe_parity.errors import UserError
from moe_parity.resources.architecture import Architecture
from moe_parity.resources.arm_plan import ArmPlan
from moe_parity.resources.memory import DTYPE_BYTES, Memory, device_memory
from moe_parity.resources.mesh import MeshSizes, check_arms

HEADROOM = 1.2  # what compilers add to planned bytes


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A mesh an arm can train on, with what was planned for it a device."""

  sizes: MeshSizes
  memory: Memory
  wire_bytes: float


def candidates(
  plan: ArmPlan,
  num_devices: int,
  hbm_bytes: int,
  *,
  micro_batch_sequences: int = 0,
  dtype: str = "bfloat16",
  remat: str = "layer",
) -> list[Candidate]:
  """Meshes of all the devices for an arm, best first.

  Args:
    hbm_bytes: of a device; meshes planned to need more of it come last.
    micro_batch_sequences: sequences in memory at a time over all devices; 0 is the whole batch.
  Raises:
    UserError: no mesh of so many devices can train the arm; says why the simplest cannot.
  """
  micro = plan.batch_sequences // (micro_batch_sequences or plan.batch_sequences)
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
        dtype=dtype, remat=remat, micro_batches=micro,
      )  # fmt: skip
      tokens = plan.batch_sequences * plan.seq_len // num_devices
      again = remat != "none"
      wire = wire_bytes(plan.architecture, sizes, tokens, DTYPE_BYTES[dtype], micro, again)
      found.append(Candidate(sizes, memory, wire))
  if not found:
    raise UserError(f"no mesh of {num_devices} devices: {refused}")
  return sorted(found, key=lambda c: (c.memory.total * HEADROOM > hbm_bytes, c.wire_bytes))


def wire_bytes(
  architecture: Architecture, sizes: MeshSizes, tokens: int, item: int, micro: int, again: bool
) -> float:
  """Bytes one device sends in a step (see the top of the file).

  Args:
    tokens: of one device and step. item: bytes of the compute dtype. again: whether layers are
      computed a second time in the backward pass.
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
  copies = sizes.data * sizes.expert
  summed = 8 * (_left(sizes.data) * here + _left(copies) * others) / sizes.fsdp
  trips = 6 if again else 4
  rows = a.num_moe_layers * a.experts_per_token * tokens * a.d_model * item
  return collected + summed + trips * _left(sizes.expert) * rows


def _left(n: int) -> float:
  return (n - 1) / n


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
