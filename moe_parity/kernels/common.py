"""What all kernels share: the platform, the memory on a TPU's chip (VMEM), memory to write into."""

from typing import Any

import jax
from jax import lax
from jaxtyping import Array

STEPPED = 64 * 2**20  # of a v5p, where kernels are run step by step
DEFAULT = 16 * 2**20  # what the compiler lets a kernel take that does not ask


def platform() -> str:
  """What the program being traced is for, as JAX names it: its mesh's devices or this machine's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def vmem_bytes() -> int:
  """Of one core of the chip that the program being traced is for: 16 MiB on v4, 64 on v5p and
  tpu7x, 128 on v5e and v6e."""
  if platform() != "tpu":
    return STEPPED
  from jax.experimental.pallas import tpu as pltpu  # a quarter second, for TPUs only

  return pltpu.get_tpu_info().vmem_capacity_bytes


def kernel_bytes() -> int:
  """What of it a kernel may take: three quarters, the rest being for what the compiler puts beside
  it; on a v4 all of it."""
  return max(DEFAULT, 3 * vmem_bytes() // 4)


def uninitialized(like: Any, after: Array) -> Any:
  """Memory to write into, whatever lies there, taken once `after` is known.

  On a TPU it is a kernel's result that the kernel does not write. `lax.empty` depends on nothing,
  so JAX takes it out of a loop over layers, and every layer copies what nobody has written (0.9 of
  23 ms a layer of the 7B on v5p, compiler-estimated).

  Args:
    like: a pytree of what has a shape and a dtype. All of it is one kernel's: XLA merges two that
      are equal, and then copies one memory into another.
  """
  leaves, tree = jax.tree.flatten(like)
  if platform() != "tpu" or not leaves:
    return jax.tree.map(lambda a: lax.empty(a.shape, a.dtype), like)
  from jax.experimental import pallas as pl  # a quarter second, for TPUs only

  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  memory = pl.pallas_call(
    lambda after, *memory: None,
    in_specs=[anywhere],
    out_specs=[anywhere] * len(leaves),
    out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves],
    cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=0, transcendentals=0),
    name="uninitialized",
  )(after)
  return tree.unflatten(memory)
