"""The memory on a TPU's chip (VMEM), which a kernel's blocks and sums lie in."""

from jax.experimental.pallas import tpu as pltpu

from moe_parity.parallel.mesh import platform

STEPPED = 64 * 2**20  # of a v5p, where kernels are run step by step
DEFAULT = 16 * 2**20  # what the compiler lets a kernel take that does not ask


def vmem_bytes() -> int:
  """Of one core of the chip that the program being traced is for: 16 MiB on v4, 64 on v5p and
  tpu7x, 128 on v5e and v6e."""
  return pltpu.get_tpu_info().vmem_capacity_bytes if platform() == "tpu" else STEPPED


def kernel_bytes() -> int:
  """What of it a kernel may take: three quarters, the rest being for what the compiler puts beside
  it; on a v4 all of it."""
  return max(DEFAULT, 3 * vmem_bytes() // 4)
