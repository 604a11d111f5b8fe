"""Splits a matrix into equal groups of columns: a Pallas kernel for TPUs."""

import math

import jax
from jaxtyping import Array, Shaped

from moe_parity.kernels.common import interpret, pl, pltpu

BLOCK = 2**20  # VMEM bytes of a block; one is read and one written, each double-buffered
BF16_SUBLANES = 16  # rows of a tile of 2-byte numbers


def split_columns(matrix: Shaped[Array, "*rest W"], num: int) -> Shaped[Array, "N *rest C"]:
  """`jnp.stack(jnp.split(matrix, num, axis=-1))` in one pass; XLA writes the result twice.

  N = num parts of C = W / num columns; a block is [rows, C], one part of some rows.
  """
  *rest, width = matrix.shape
  rows, columns = math.prod(rest), width // num
  block = min(BLOCK // (columns * matrix.dtype.itemsize), rows)
  block -= block % BF16_SUBLANES if block < rows else 0

  def kernel(matrix, part):
    part[0] = matrix[...]

  parts_N = pl.pallas_call(
    kernel,
    grid=(pl.cdiv(rows, block), num),
    in_specs=[pl.BlockSpec((block, columns), lambda i, k: (i, k))],
    out_specs=pl.BlockSpec((1, block, columns), lambda i, k: (k, i, 0)),
    out_shape=jax.ShapeDtypeStruct((num, rows, columns), matrix.dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    cost_estimate=pl.CostEstimate(
      flops=0, transcendentals=0, bytes_accessed=2 * matrix.size * matrix.dtype.itemsize
    ),
    name="split_columns",
    interpret=interpret(),
  )(matrix.reshape(rows, width))
  return parts_N.reshape(num, *rest, columns)
