"""Splits rows of a matrix into lane tiles: a Pallas kernel for TPUs.

XLA changes the layout by two copies, of which one transposes: at the paper's 2B (1,408 channels)
they take seven times what reading and writing the array takes.
"""

import jax
from jaxtyping import Array, Float

from moe_parity.kernels.common import interpret, pl, pltpu
from moe_parity.planning.memory import row_width
from moe_parity.planning.tpu_slices import LANES

ROWS = 256  # of a block


def split_into_lane_tiles(x_TD: Float[Array, "T D"]) -> Float[Array, "T D/128 128"]:
  """`x_TD.reshape(T, D // 128, 128)`. Blocks: [rows, D] and [rows, D / 128, 128].

  The last block of rows may extend beyond the end; nothing of the excess is written.
  """
  num, width = x_TD.shape
  tiles = width // LANES

  def kernel(matrix, lane_tiles):
    lane_tiles[...] = matrix[...].reshape(lane_tiles.shape)

  return pl.pallas_call(
    kernel,
    grid=(-(-num // ROWS),),
    in_specs=[pl.BlockSpec((ROWS, width), lambda i: (i, 0))],
    out_specs=pl.BlockSpec((ROWS, tiles, LANES), lambda i: (i, 0, 0)),
    out_shape=jax.ShapeDtypeStruct((num, tiles, LANES), x_TD.dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    cost_estimate=pl.CostEstimate(
      flops=0,
      transcendentals=0,
      bytes_accessed=num * (width + row_width(width)) * x_TD.dtype.itemsize,
    ),
    interpret=interpret(),
  )(x_TD)
