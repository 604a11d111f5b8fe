"""Rows moved by gathers in both directions: what autodiff would scatter, a gather brings back.

Rows [T, D] and their copies [N, D] know each other: copy n is of row source_N[n], and row t has its
copies at place_TK[t], a number of at least N where it has fewer than K. Taking copies and summing
them are each other's transposes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.experts.assignments import IN_BOUNDS
from moe_parity.kernels.common import platform
from moe_parity.planning.tpu_slices import LANES

# Without barriers XLA:CPU recomputes a gather or a product inside the elementwise code that reads
# it (23 ms in one profile).
barrier = lax.optimization_barrier


def as_lanes(a_ND):
  """Rows of D numbers as [N, D / 128, 128] where 128 divides D: on a TPU a row is then one
  piece of memory. Gathering rows of 2,048 bfloat16 numbers compiles in 1 to 3 CPU-seconds as such
  pieces and in 8 as a matrix (v5p, libtpu 0.0.50), and an exchange takes them as they are. A matrix
  product wants the matrix, which costs a copy; gathers and exchanges in a row need only one."""
  num, width = a_ND.shape
  return a_ND if width % LANES or width == LANES else a_ND.reshape(num, width // LANES, LANES)


def rows_at(x_TD, source):
  """The rows numbered by `source`, an array of any shape."""
  return lax.platform_dependent(x_TD, source, tpu=_lanes_at, default=_rows_at)


def _rows_at(x_TD, source):
  return barrier(x_TD.at[source].get(mode=IN_BOUNDS))


def _lanes_at(x_TD, source):
  lanes = barrier(as_lanes(x_TD).at[source.reshape(-1)].get(mode=IN_BOUNDS))
  return lanes.reshape(*source.shape, x_TD.shape[1])


def sum_of_rows(y_ND: Float[Array, "N D"], place_TK: Int[Array, "T K"]) -> Float[Array, "T D"]:
  """For every t the sum of y_ND at its places, in float32; whatever lies elsewhere is not read.

  A gather a place, except on TPU: there compiling gathers is slow, so it is one for all of them.
  """
  if platform() != "tpu":
    return _by_gathers(y_ND, place_TK)
  from moe_parity.kernels.topk_sum import topk_sum  # a quarter second, for TPUs only

  place_KT, lanes = place_TK.T, as_lanes(y_ND)
  index_A = jnp.minimum(place_KT, y_ND.shape[0] - 1).reshape(-1)
  lanes_A = barrier(lanes.at[index_A].get(mode=IN_BOUNDS))
  lanes_KT = lanes_A.reshape(*place_KT.shape, *lanes.shape[1:])
  return topk_sum(lanes_KT, place_KT < y_ND.shape[0])


def _by_gathers(y_ND, place_TK):
  y_ND, total_TD = barrier(y_ND), 0.0
  for place_T in place_TK.T:
    row_TD = y_ND.at[jnp.minimum(place_T, y_ND.shape[0] - 1)].get(mode=IN_BOUNDS)
    total_TD += jnp.where((place_T < y_ND.shape[0])[:, None], row_TD, 0).astype(jnp.float32)
  return total_TD


@jax.custom_vjp
def copies_of_rows(x_TD, source_N, place_TK):
  """[N, D]: `rows_at(x_TD, source_N)`, whose gradient is a sum of rows. The gradient of a copy that
  `place_TK` does not know counts for nothing, whatever it is."""
  return rows_at(x_TD, source_N)


def _copies_backward(place_TK, dy_ND):
  return sum_of_rows(dy_ND, place_TK).astype(dy_ND.dtype), None, None


copies_of_rows.defvjp(
  lambda x_TD, source_N, place_TK: (rows_at(x_TD, source_N), place_TK), _copies_backward
)


@jax.custom_vjp
def sum_of_copies(y_ND, source_N, place_TK):
  """[T, D]: `sum_of_rows(y_ND, place_TK)`, whose gradient is copies of rows."""
  return sum_of_rows(y_ND, place_TK)


def _sum_backward(residuals, dy_TD):
  source_N, like = residuals
  return rows_at(dy_TD.astype(like.dtype), source_N), None, None


sum_of_copies.defvjp(
  lambda y_ND, source_N, place_TK: (
    sum_of_rows(y_ND, place_TK), (source_N, jnp.zeros((), y_ND.dtype))
  ),
  _sum_backward,
)  # fmt: skip
