"""What kernels share: platform, on-chip memory (VMEM), uninitialized buffers, small helpers."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_parity.errors import UserError
from moe_parity.planning.attention_choice import Device
from moe_parity.planning.tpu_slices import LANES

INTERPRET_VMEM_BYTES = 64 * 2**20  # a v5p's, where kernels are interpreted
DEFAULT_SCOPED_VMEM_BYTES = 16 * 2**20  # the compiler's limit for a kernel that states none
F32 = jnp.float32


class _LazyModule:
  """A module imported at its first use."""

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, attribute: str) -> Any:
    return getattr(importlib.import_module(self._name), attribute)


# Pallas takes a quarter of a second to import, and only programs for TPUs use it.
pl = _LazyModule("jax.experimental.pallas")
pltpu = _LazyModule("jax.experimental.pallas.tpu")

_simulated: contextvars.ContextVar[str] = contextvars.ContextVar("simulated platform", default="")
_capability: contextvars.ContextVar[float] = contextvars.ContextVar("described GPU", default=0.0)


def platform() -> str:
  """The platform ("cpu", "gpu" or "tpu") of the program being traced: whatever differs between
  platforms asks here."""
  return _simulated.get() or device_platform()


def device_platform() -> str:
  """The platform of the devices of the mesh in use, or of this machine's without one. It differs
  from `platform` only inside `simulate`."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def attention_device() -> Device:
  """The device of the program being traced, as the choice of attention sees it."""
  return Device(platform(), compute_capability() if platform() == "gpu" else 0.0)


def compute_capability() -> float:
  """Of the NVIDIA GPU that is described, or else this machine's, such as 9.0; 0 without one
  (another maker's has none)."""
  if device_platform() != "gpu":
    return 0.0
  if described := _capability.get():
    return described
  capability = getattr(jax.local_devices()[0], "compute_capability", "")
  return float(capability) if re.fullmatch(r"\d+\.\d+", str(capability)) else 0.0


@contextlib.contextmanager
def describe_gpu(capability: float) -> Iterator[None]:
  """Programs traced inside for a mesh of GPUs are for cards of a compute capability, which are not
  attached (`aot/gpu_topology.py`)."""
  token = _capability.set(capability)
  try:
    yield
  finally:
    _capability.reset(token)


@contextlib.contextmanager
def simulate(name: str) -> Iterator[None]:
  """Programs traced inside take the formulations of another platform, with TPU kernels interpreted:
  how a CPU tests a TPU's program."""
  token = _simulated.set(name)
  try:
    yield
  finally:
    _simulated.reset(token)


def interpret() -> bool:
  """Whether Pallas has to interpret a TPU kernel: on a CPU, for tests.

  Raises:
    UserError: on a GPU, where interpreting would only be slow.
  """
  name = device_platform()
  if name == "gpu":
    raise UserError(
      "a TPU kernel cannot run on a GPU, where it would be interpreted step by step; use the "
      "'padded' implementation of experts and model.attention='', which a GPU takes by default"
    )
  return name != "tpu"


def vmem_bytes() -> int:
  """VMEM of one core of the chip that the program is traced for: 16 MiB on v4, 64 on v5p and
  tpu7x, 128 on v5e and v6e."""
  if device_platform() != "tpu":
    return INTERPRET_VMEM_BYTES
  return pltpu.get_tpu_info().vmem_capacity_bytes


def num_cores() -> int:
  """Cores that share the work of a kernel: 2 on v4 and v5p, whose chips are one device; else 1."""
  return pltpu.get_tpu_info().num_cores if device_platform() == "tpu" else 1


def vmem_budget_bytes() -> int:
  """VMEM a kernel may use: three quarters, which leaves the rest to the compiler; all of a v4's."""
  return max(DEFAULT_SCOPED_VMEM_BYTES, 3 * vmem_bytes() // 4)


def uninitialized(like: Any, after: Array) -> Any:
  """Buffers to write into, of any content, allocated once `after` is computed.

  On a TPU they are the results of a kernel that writes nothing. `lax.empty` depends on no operand,
  so JAX hoists it out of a loop over layers, and then every layer copies the whole buffer.

  Args:
    like: a pytree of what has a shape and a dtype. One kernel makes all of it: XLA merges two equal
      kernels, and would then copy one buffer into the other.
  """
  leaves, tree = jax.tree.flatten(like)
  if device_platform() != "tpu" or not leaves:
    return jax.tree.map(lambda a: lax.empty(a.shape, a.dtype), like)
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  buffers = pl.pallas_call(
    lambda after, *buffers: None,
    in_specs=[anywhere],
    out_specs=[anywhere] * len(leaves),
    out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves],
    cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=0, transcendentals=0),
    name="uninitialized",
  )(after)
  return tree.unflatten(buffers)


def product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
  """A matrix product inside a kernel, over one axis of `a` and one of `b`, in float32."""
  dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=F32)


def to_row(column: Float[Array, "C 1"]) -> Float[Array, "1 C"]:
  """A column as a row inside a kernel: by a transpose, since a v4 cannot reshape it."""
  return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def to_column(row: Array) -> Array:
  """[1, C] as [C, 1] inside a kernel."""
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def swiglu_gate_gradient(dhidden: Array, gate: Array, up: Array, sigmoid: Array) -> Array:
  """d(silu(gate) * up) / d(gate) times dhidden, with sigmoid = sigmoid(gate)."""
  return dhidden * up * sigmoid * (1 + gate * (1 - sigmoid))
