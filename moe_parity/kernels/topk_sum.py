"""Sums what a token's K experts returned: a Pallas kernel for TPUs.

It reads rows in the layout an all-to-all leaves them in and writes a matrix. XLA would cut the sum
into slices and copy each, or copy the float32 sum from one layout into the other.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from moe_parity.kernels.common import interpret, pl, pltpu, vmem_budget_bytes
from moe_parity.planning.memory import row_width

TOKEN_BLOCKS = (128, 64, 32, 16, 8)  # tokens a block may hold
BLOCK = 4 * 2**20  # VMEM bytes of a block of rows, which is double-buffered; less on a small chip


def topk_sum(
  rows_KT: Float[Array, "K T *D"], is_valid_KT: Bool[Array, "K T"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "T E"]:
  """The sum over K of valid rows, [T, E] with E the product of *D: rows come as matrices [K, T, E]
  or as lane tiles [K, T, E/128, 128]. Blocks: [K, tokens, *D] and [tokens, E].

  Sums are in float32 and rounded once, to `dtype`. The last block of tokens may extend beyond the
  end; nothing of the excess is written.
  """
  num_choices, num_tokens, *lanes = rows_KT.shape
  row_bytes = rows_KT[0, 0].size * rows_KT.dtype.itemsize
  max_tokens = min(BLOCK, vmem_budget_bytes() // 8) // (num_choices * row_bytes)
  tokens = next((n for n in TOKEN_BLOCKS if n <= max_tokens), TOKEN_BLOCKS[-1])
  num_blocks = -(-num_tokens // tokens)

  def kernel(rows, is_valid, total):
    added = 0.0
    for k in range(num_choices):
      mask = is_valid[0, k].reshape(tokens, 1) > 0
      added += jnp.where(mask, rows[k].reshape(tokens, -1).astype(jnp.float32), 0)
    total[...] = added.astype(dtype)

  is_valid_KT = jnp.pad(is_valid_KT, ((0, 0), (0, num_blocks * tokens - num_tokens)))
  is_valid = is_valid_KT.reshape(num_choices, num_blocks, tokens).swapaxes(0, 1)
  width = rows_KT[0, 0].size
  return pl.pallas_call(
    kernel,
    grid=(num_blocks,),
    in_specs=[
      pl.BlockSpec((num_choices, tokens, *lanes), lambda i: (0, i, *[0] * len(lanes))),
      pl.BlockSpec((1, num_choices, tokens), lambda i: (i, 0, 0)),
    ],
    out_specs=pl.BlockSpec((tokens, width), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((num_tokens, width), dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    cost_estimate=pl.CostEstimate(
      flops=rows_KT.size,
      transcendentals=0,
      bytes_accessed=num_choices * num_tokens * row_width(width) * rows_KT.dtype.itemsize
      + num_tokens * width * jnp.dtype(dtype).itemsize,
    ),
    interpret=interpret(),
  )(rows_KT, is_valid.astype(jnp.int32))
