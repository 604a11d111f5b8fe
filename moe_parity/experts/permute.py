"""Permutes rows by expert and back, with derivatives such that both directions are gathers.

Autodiff turns a gather into a scatter. Here rows [T, D] and their copies [N, D] know each other by
index: copy n is of row source_N[n], and row t has its copies at index_TK[t], a number of at least N
where it has fewer than K. Taking copies and summing them are each other's transposes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import IN_BOUNDS
from moe_parity.kernels.common import platform
from moe_parity.kernels.lane_tiles import split_into_lane_tiles
from moe_parity.kernels.topk_sum import topk_sum
from moe_parity.planning.tpu_slices import LANES

# Without barriers XLA:CPU recomputes a gather or a product inside elementwise code that reads it.
barrier = lax.optimization_barrier


def to_lane_tiles(a_ND: Float[Array, "N D"]) -> Float[Array, " N *D"]:
  """Rows of D numbers as [N, D / 128, 128] where 128 divides D.

  On a TPU a row is then contiguous: gathers of such rows compile faster, and a ragged all-to-all
  sends them as they are. A matrix product needs the matrix layout, which costs a copy.
  """
  num, width = a_ND.shape
  return a_ND.reshape(num, width // LANES, LANES) if has_lane_tiles(width) else a_ND


def has_lane_tiles(width: int) -> bool:
  """Whether rows of so many numbers are split."""
  return width % LANES == 0 and width != LANES


def take_rows(x_TD: Float[Array, "T D"], source: Int[Array, "*N"]) -> Float[Array, "*N D"]:
  """The rows numbered by `source`, an array of any shape."""
  take = _take_lane_tiles if platform() == "tpu" else _take_matrix_rows
  return take(x_TD, source)


def _take_matrix_rows(x_TD, source):
  return barrier(x_TD.at[source].get(mode=IN_BOUNDS))


def _take_lane_tiles(x_TD, source):
  tiles = split_into_lane_tiles(x_TD) if has_lane_tiles(x_TD.shape[1]) else x_TD
  lane_tiles = barrier(tiles.at[source.reshape(-1)].get(mode=IN_BOUNDS))
  return lane_tiles.reshape(*source.shape, x_TD.shape[1])


def gather_and_sum(
  y_ND: Float[Array, "N D"], index_TK: Int[Array, "T K"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "T D"]:
  """For every t the sum of the rows index_TK[t], in float32 and rounded once, to `dtype`; indices
  of at least N add nothing, and other rows are not read.

  One gather for each of K, except on TPU: there gathers are slow to compile, so it is one for all.
  """
  if platform() != "tpu":
    return _sum_by_gathers(y_ND, index_TK).astype(dtype)
  index_KT, lane_tiles = index_TK.T, to_lane_tiles(y_ND)
  index_A = jnp.minimum(index_KT, y_ND.shape[0] - 1).reshape(-1)
  tiles_A = barrier(lane_tiles.at[index_A].get(mode=IN_BOUNDS))
  tiles_KT = tiles_A.reshape(*index_KT.shape, *lane_tiles.shape[1:])
  return topk_sum(tiles_KT, index_KT < y_ND.shape[0], dtype)


def _sum_by_gathers(y_ND, index_TK):
  y_ND, total_TD = barrier(y_ND), 0.0
  for index_T in index_TK.T:
    row_TD = y_ND.at[jnp.minimum(index_T, y_ND.shape[0] - 1)].get(mode=IN_BOUNDS)
    total_TD += jnp.where((index_T < y_ND.shape[0])[:, None], row_TD, 0).astype(jnp.float32)
  return total_TD


@jax.custom_vjp
def permute_rows(
  x_TD: Float[Array, "T D"], source_N: Int[Array, " N"], index_TK: Int[Array, "T K"]
) -> Float[Array, "N D"]:
  """`take_rows(x_TD, source_N)`, whose gradient is a `gather_and_sum`. Gradients of copies that
  `index_TK` does not list are not read."""
  return take_rows(x_TD, source_N)


def _permute_forward(x_TD, source_N, index_TK):
  return take_rows(x_TD, source_N), index_TK


def _permute_backward(index_TK, dy_ND):
  return gather_and_sum(dy_ND, index_TK, dy_ND.dtype), None, None


permute_rows.defvjp(_permute_forward, _permute_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def unpermute_and_sum(
  y_ND: Float[Array, "N D"],
  source_N: Int[Array, " N"],
  index_TK: Int[Array, "T K"],
  dtype: DTypeLike = jnp.float32,
) -> Float[Array, "T D"]:
  """`gather_and_sum(y_ND, index_TK, dtype)`, whose gradient is a `take_rows`."""
  return gather_and_sum(y_ND, index_TK, dtype)


def _unpermute_forward(y_ND, source_N, index_TK, dtype):
  return gather_and_sum(y_ND, index_TK, dtype), (source_N, jnp.zeros((), y_ND.dtype))


def _unpermute_backward(dtype, residuals, dy_TD):
  source_N, like = residuals
  return take_rows(dy_TD.astype(like.dtype), source_N), None, None


unpermute_and_sum.defvjp(_unpermute_forward, _unpermute_backward)
