"""How the grouped SwiGLU kernels (`grouped_swiglu.py`) tile an expert, and what a call costs.

VMEM holds one chunk of an expert's hidden layer at a time; the three kernels use the same chunks.
"""

from __future__ import annotations

from typing import NamedTuple

from moe_parity.errors import UserError
from moe_parity.kernels import common
from moe_parity.kernels.common import pl
from moe_parity.planning import tpu_slices
from moe_parity.planning.tpu_slices import LANES


class SwigluTiling(NamedTuple):
  """Sizes of the experts' weights, bytes a number, and the chunks of the hidden layer."""

  num_experts: int
  d_expert: int
  d_model: int
  itemsize: int
  num_chunks: int
  chunk: int

  @classmethod
  def of(cls, w_in_L2ID) -> SwigluTiling:
    """The fewest chunks with which all three kernels fit in VMEM, of whole 128s if more than one.

    Raises:
      UserError: no number of chunks fits.
    """
    num_experts, _, d_expert, d_model = w_in_L2ID.shape
    itemsize, budget = w_in_L2ID.dtype.itemsize, common.vmem_budget_bytes()
    widths = (round_up(-(-d_expert // n), LANES) for n in range(1, -(-d_expert // LANES) + 1))
    for chunk in (d_expert, *widths):
      tiling = cls(num_experts, d_expert, d_model, itemsize, -(-d_expert // chunk), chunk)
      if tiling.vmem_bytes() <= budget:
        return tiling
    raise UserError(
      f"d_model={d_model} in {w_in_L2ID.dtype}: an expert's kernels take "
      f"{tiling.vmem_bytes() / 2**20:.1f} MiB of a core's memory, which has {budget / 2**20:g} "
      "for them; use a smaller d_model, a narrower dtype, or a chip with more"
    )

  @property
  def wgrad_splits(self) -> int:
    """Parts of a chunk over which the weight gradient is computed: two where both are whole 128s,
    so that two cores have work."""
    return 2 if self.chunk % (2 * LANES) == 0 else 1

  def vmem_bytes(self) -> int:
    """An upper bound on the VMEM of the largest of the three kernels.

    Blocks of operands and results count twice (double buffering), accumulators once in float32,
    then the values between two products. A matrix whose width is no multiple of eight lane tiles
    may be assembled in float32.
    """
    tile, d_model = tpu_slices.ROW_TILE, self.d_model
    rows, hidden = tile * round_up(d_model, 8 * LANES), tile * round_up(self.chunk, LANES)
    weights, twice = 3 * self.chunk * round_up(d_model, LANES), 2 * self.itemsize
    matrix = rows * (4 if d_model % (8 * LANES) else self.itemsize)
    forward = twice * (3 * rows + weights + 2 * hidden) + 4 * rows + matrix + 4 * 4 * hidden
    dgrad = twice * (2 * rows + weights + 5 * hidden) + 4 * rows + 4 * (rows + 6 * hidden)
    weights, hidden = weights // self.wgrad_splits, hidden // self.wgrad_splits
    wgrad = twice * (2 * rows + weights + 3 * hidden) + 4 * weights + 2 * matrix
    return max(forward, dgrad, wgrad)

  def cost(
    self, expected_rows: int, num_model_reads: int, num_hidden_reads: int
  ) -> pl.CostEstimate:
    """The estimate XLA schedules by: three products of d_model x d_expert a row.

    Args:
      num_model_reads, num_hidden_reads: arrays of that width read or written a row.
    """
    rows = expected_rows + self.num_experts * tpu_slices.ROW_TILE // 2  # last tiles are half full
    matrix = self.d_model * self.d_expert
    row_numbers = num_model_reads * self.d_model + num_hidden_reads * self.d_expert
    return pl.CostEstimate(
      flops=2 * 3 * rows * matrix,
      bytes_accessed=self.itemsize * (3 * self.num_experts * matrix + rows * row_numbers),
      transcendentals=rows * self.d_expert,
    )


def round_up(size: int, unit: int) -> int:
  """The smallest multiple of `unit` that is at least `size`."""
  return -(-size // unit) * unit
