"""a + b where a flag known only at run time is set, in place; b is not even read where it is not.

XLA reads both operands of a `where`. On a TPU this is a kernel that updates its first operand in
place and reads a single block where there is nothing to add.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_parity.kernels.common import interpret, pl, platform, pltpu

BLOCK = 2 * 2**20  # VMEM bytes of a block of the wider operand; each block is double-buffered
MIN_KERNEL_BYTES = 2**20  # bytes of an operand from which on a kernel is worth its launch


def add_if(
  pred: Bool[Array, ""], a: Float[Array, "*shape"], b: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """a + b if pred, else a: summed in float32, in the dtype of a. If not pred, b is not read."""
  if platform() != "tpu" or a.size * a.dtype.itemsize < MIN_KERNEL_BYTES:
    total = a.astype(jnp.float32) + b.astype(jnp.float32)
    return jnp.where(pred, total.astype(a.dtype), a)
  return _add_in_place(pred, a, b)


def _add_in_place(
  pred: Bool[Array, ""], a: Float[Array, "*shape"], b: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """`add_if` by a kernel that writes into the buffer of a; blocks are [rows, width] of matrices."""
  width = a.shape[-1]
  num_rows = math.prod(a.shape[:-1])
  rows = min(num_rows, max(16, BLOCK // (4 * width) // 16 * 16))

  def kernel(pred, a, b, total):
    addend = jnp.where(pred[0] > 0, b[...].astype(jnp.float32), 0)
    total[...] = (a[...].astype(jnp.float32) + addend).astype(total.dtype)

  block = pl.BlockSpec((rows, width), lambda i, pred: (i * pred[0], 0))
  total = pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(-(-num_rows // rows),), in_specs=[block] * 2, out_specs=block
    ),
    out_shape=jax.ShapeDtypeStruct((num_rows, width), a.dtype),
    input_output_aliases={1: 0},
    cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=3 * rows * width, transcendentals=0),
    interpret=interpret(),
    name="add_if",
  )(pred.astype(jnp.int32).reshape(1), a.reshape(num_rows, width), b.reshape(num_rows, width))
  return total.reshape(a.shape)
