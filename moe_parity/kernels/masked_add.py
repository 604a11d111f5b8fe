"""An addition that costs nothing where there is nothing to add, known only at run time.

XLA reads both operands of a selection. For TPUs it is a kernel that leaves its first operand where
it lies and, where there is nothing to add, reads one block.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_parity.kernels.common import platform

BLOCK = 2 * 2**20  # bytes of the wider operand on the chip at a time, each twice over
LEAST = 2**20  # bytes of an operand for which a kernel is worth its start


def added_where(
  is_known: Bool[Array, ""], a: Float[Array, "*shape"], b: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """a + b, summed in float32, in the dtype of a; a where b is not known, whatever lies there."""
  if platform() != "tpu" or a.size * a.dtype.itemsize < LEAST:
    total = a.astype(jnp.float32) + b.astype(jnp.float32)
    return jnp.where(is_known, total.astype(a.dtype), a)
  return _in_place(is_known, a, b)


def _in_place(is_known, a, b):
  from jax.experimental import pallas as pl  # a quarter second, for TPUs only
  from jax.experimental.pallas import tpu as pltpu

  width = a.shape[-1]
  num_rows = math.prod(a.shape[:-1])
  rows = min(num_rows, max(16, BLOCK // (4 * width) // 16 * 16))

  def kernel(is_known, a, b, total):
    known = jnp.where(is_known[0] > 0, b[...].astype(jnp.float32), 0)
    total[...] = (a[...].astype(jnp.float32) + known).astype(total.dtype)

  block = pl.BlockSpec((rows, width), lambda i, is_known: (i * is_known[0], 0))
  total = pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(-(-num_rows // rows),), in_specs=[block] * 2, out_specs=block
    ),
    out_shape=jax.ShapeDtypeStruct((num_rows, width), a.dtype),
    input_output_aliases={1: 0},
    cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=3 * rows * width, transcendentals=0),
    interpret=platform() != "tpu",
    name="added_where",
  )(is_known.astype(jnp.int32).reshape(1), a.reshape(num_rows, width), b.reshape(num_rows, width))
  return total.reshape(a.shape)
