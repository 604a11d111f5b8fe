"""How the grouped SwiGLU kernels (`grouped_swiglu.py`) tile an expert, and what a call costs.

VMEM holds one chunk of an expert's hidden layer at a time; the three kernels use the same chunks.
"""

from __future__ import annotations

from typing import NamedTuple

from moe_parity.errors import UserError
from moe_parity.kernels import common
from moe_parity.kernels.common import pl
from moe_parity.planning import tpu_slices
from moe_parity.planning.memory import matrix_width, row_width
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
    rows, hidden, weights, matrix = self._block_sizes()
    twice = 2 * self.itemsize
    forward = twice * (3 * rows + weights + 2 * hidden) + 4 * rows + matrix + 4 * 4 * hidden
    dgrad = self._dgrad_bytes(2, 5)
    weights, hidden = weights // self.wgrad_splits, hidden // self.wgrad_splits
    wgrad = twice * (2 * rows + weights + 3 * hidden) + 4 * weights + 2 * matrix
    return max(forward, dgrad, wgrad)

  @property
  def has_room_for_rows(self) -> bool:
    """Whether dgrad has VMEM for the rows too, to compute the hidden layer again from them."""
    matrix = self._block_sizes()[-1]
    return self._dgrad_bytes(3, 3) + matrix <= common.vmem_budget_bytes()

  @property
  def has_room_for_sums(self) -> bool:
    """Whether one kernel has VMEM for all gradients, those of an expert's weights in float32: the
    whole hidden layer is one chunk."""
    rows, hidden, weights, matrix = self._block_sizes()
    blocks = 2 * self.itemsize * (3 * rows + 2 * hidden + 2 * weights) + 4 * weights
    total = blocks + 2 * matrix + 4 * (rows + 8 * hidden)
    return self.num_chunks == 1 and total <= common.vmem_budget_bytes()

  def _dgrad_bytes(self, row_arrays: int, hidden_arrays: int) -> int:
    rows, hidden, weights, _ = self._block_sizes()
    blocks = row_arrays * rows + weights + hidden_arrays * hidden
    return 2 * self.itemsize * blocks + 4 * rows + 4 * (rows + 6 * hidden)

  def _block_sizes(self) -> tuple[int, int, int, int]:
    """Numbers in a tile of rows, in its hidden chunk and in the chunk's weights, with padding; and
    the bytes of a tile of rows as a matrix."""
    tile, d_model = tpu_slices.ROW_TILE, self.d_model
    rows, hidden = tile * round_up(d_model, 8 * LANES), tile * round_up(self.chunk, LANES)
    weights = 3 * self.chunk * round_up(d_model, LANES)
    return rows, hidden, weights, rows * (4 if d_model % (8 * LANES) else self.itemsize)

  def cost(
    self,
    expected_rows: int,
    num_products: int,
    num_model_arrays: int,
    num_hidden_arrays: int,
    num_weights: int = 1,
  ) -> pl.CostEstimate:
    """The estimate XLA schedules by.

    Args:
      num_products: of d_model x d_expert a row.
      num_model_arrays, num_hidden_arrays: of that width, read or written a row, as they are stored.
      num_weights: arrays of all experts' weights, read or written once.
    """
    rows = expected_rows + self.num_experts * tpu_slices.ROW_TILE // 2  # last tiles are half full
    matrix = self.d_model * self.d_expert
    row_numbers = num_model_arrays * row_width(self.d_model)
    row_numbers += num_hidden_arrays * matrix_width(self.d_expert)
    all_weights = 3 * self.num_experts * matrix
    return pl.CostEstimate(
      flops=2 * num_products * rows * matrix,
      bytes_accessed=self.itemsize * (num_weights * all_weights + rows * row_numbers),
      transcendentals=rows * self.d_expert,
    )


def round_up(size: int, unit: int) -> int:
  """The smallest multiple of `unit` that is at least `size`."""
  return -(-size // unit) * unit
