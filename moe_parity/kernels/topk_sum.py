"""What comes back for each choice of a token, summed: a Pallas kernel for TPUs.

It reads rows as an exchange leaves them and writes a matrix. XLA cuts the sum into six slices, each
copied, or adds in one layout and copies the float32 sum into the other.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from moe_parity.kernels.common import kernel_bytes, platform

ROWS = (128, 64, 32, 16, 8)  # tokens at a time
BLOCK = 4 * 2**20  # bytes of rows on the chip at a time, twice over; less on a small chip


def sum_of_choices(
  rows_KT: Float[Array, "K T *D"], is_there_KT: Bool[Array, "K T"]
) -> Float[Array, "T E"]:
  """Over K in float32, [T, D], of the rows that are there; rows as matrix or as lanes. The last
  block of tokens may hang over the end: what it sums there is not written."""
  num_choices, num_tokens, *lanes = rows_KT.shape
  row_bytes = rows_KT[0, 0].size * rows_KT.dtype.itemsize
  most = min(BLOCK, kernel_bytes() // 8) // (num_choices * row_bytes)
  tokens = next((n for n in ROWS if n <= most), ROWS[-1])
  num_blocks = -(-num_tokens // tokens)

  def kernel(rows, is_there, total):
    added = 0.0
    for k in range(num_choices):
      is_here = is_there[0, k].reshape(tokens, 1) > 0
      added += jnp.where(is_here, rows[k].reshape(tokens, -1).astype(jnp.float32), 0)
    total[...] = added

  is_there_KT = jnp.pad(is_there_KT, ((0, 0), (0, num_blocks * tokens - num_tokens)))
  is_there = is_there_KT.reshape(num_choices, num_blocks, tokens).swapaxes(0, 1)
  width = rows_KT[0, 0].size
  return pl.pallas_call(
    kernel,
    grid=(num_blocks,),
    in_specs=[
      pl.BlockSpec((num_choices, tokens, *lanes), lambda i: (0, i, *[0] * len(lanes))),
      pl.BlockSpec((1, num_choices, tokens), lambda i: (i, 0, 0)),
    ],
    out_specs=pl.BlockSpec((tokens, width), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((num_tokens, width), jnp.float32),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    cost_estimate=pl.CostEstimate(
      flops=rows_KT.size,
      transcendentals=0,
      bytes_accessed=rows_KT.size * rows_KT.dtype.itemsize + 4 * num_tokens * width,
    ),
    interpret=platform() != "tpu",
  )(rows_KT, is_there.astype(jnp.int32))
