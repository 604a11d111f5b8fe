"""How much of an expert's work its kernels (`grouped_ffn.py`) take at a time, and what it costs.

A core's memory holds a chunk of an expert's hidden layer; the three kernels have the same chunks.
"""

from typing import NamedTuple

from jax.experimental import pallas as pl

from moe_parity.errors import UserError
from moe_parity.kernels.common import kernel_bytes
from moe_parity.planning.expert_parallel import LANES, TILE


class Sizes(NamedTuple):
  """Experts, hidden and model channels, bytes a number; chunks and their width."""

  num_experts: int
  d_expert: int
  d_model: int
  itemsize: int
  num_chunks: int
  chunk: int

  @classmethod
  def of(cls, w_in_L2ID):
    """The fewest chunks for which all three kernels have memory, of whole 128s if there must be.

    Raises:
      UserError: there are none.
    """
    num_experts, _, d_expert, d_model = w_in_L2ID.shape
    itemsize = w_in_L2ID.dtype.itemsize
    fewest = (_up(-(-d_expert // n), LANES) for n in range(1, -(-d_expert // LANES) + 1))
    for chunk in (d_expert, *fewest):
      sizes = cls(num_experts, d_expert, d_model, itemsize, -(-d_expert // chunk), chunk)
      if sizes.on_chip() <= kernel_bytes():
        return sizes
    raise UserError(
      f"d_model={d_model} in {w_in_L2ID.dtype}: an expert's kernels take "
      f"{sizes.on_chip() / 2**20:.1f} MiB of a core's memory, which has {kernel_bytes() / 2**20:g} "
      "for them; use a smaller d_model, a narrower dtype, or a chip with more"
    )

  @property
  def parts(self) -> int:
    """Of a chunk, that the experts' gradients are summed in: halves where they are whole 128s, so
    that two cores have work."""
    return 2 if self.chunk % (2 * LANES) == 0 else 1

  def on_chip(self) -> int:
    """Bytes that lie on the chip at a time in the kernel that takes most, at most: blocks of
    operands and results, twice since the next are read and the last written meanwhile; sums, in
    float32; and what is between two products, where rows whose pieces are no whole eights may be
    put together in float32."""
    rows, hidden = TILE * _up(self.d_model, 8 * LANES), TILE * _up(self.chunk, LANES)
    weights, twice = 3 * self.chunk * _up(self.d_model, LANES), 2 * self.itemsize
    matrix = rows * (4 if self.d_model % (8 * LANES) else self.itemsize)
    of_forward = twice * (3 * rows + weights + 2 * hidden) + 4 * rows + matrix + 4 * 4 * hidden
    of_rows = twice * (2 * rows + weights + 5 * hidden) + 4 * rows + 4 * (rows + 6 * hidden)
    weights, hidden = weights // self.parts, hidden // self.parts
    of_experts = twice * (2 * rows + weights + 3 * hidden) + 4 * weights + 2 * matrix
    return max(of_forward, of_rows, of_experts)

  def cost(self, expected: int, models: int, hiddens: int) -> pl.CostEstimate:
    """Of three products of D x I a row, of which so many D and so many I are read or written."""
    rows = expected + self.num_experts * TILE // 2  # the last tile is half full
    each = self.d_model * self.d_expert
    bytes_accessed = self.itemsize * (
      3 * self.num_experts * each + rows * (models * self.d_model + hiddens * self.d_expert)
    )
    return pl.CostEstimate(
      flops=2 * 3 * rows * each,
      bytes_accessed=bytes_accessed,
      transcendentals=rows * self.d_expert,
    )


def _up(size: int, unit: int) -> int:
  """The next whole multiple."""
  return -(-size // unit) * unit
