"""Rows moved by gathers in both directions: what autodiff would scatter, a gather brings back.

Rows [T, D] and their copies [N, D] know each other: copy n is of row source_N[n], and row t has its
copies at place_TK[t], a number of at least N where it has fewer than K. Taking copies and summing
them are each other's transposes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.parallel.grouping import IN_BOUNDS

# Without barriers XLA:CPU recomputes a gather or a product inside the elementwise code that reads
# it (23 ms in one profile).
barrier = lax.optimization_barrier


def rows_at(x_TD, source):
  """The rows numbered by `source`, an array of any shape."""
  return barrier(x_TD.at[source].get(mode=IN_BOUNDS))


def sum_of_rows(y_ND: Float[Array, "N D"], place_TK: Int[Array, "T K"]) -> Float[Array, "T D"]:
  """For every t the sum of y_ND at its places, in float32; whatever lies elsewhere is not read.

  A gather a place, except on TPU: there XLA takes 8 CPU-seconds to compile each gather of rows of
  2,048 bfloat16 numbers (v5p, libtpu 0.0.50), so it is one gather for all of them.
  """
  return lax.platform_dependent(
    barrier(y_ND), place_TK, tpu=_by_one_gather, default=_by_gathers
  )  # fmt: skip


def _by_gathers(y_ND, place_TK):
  total_TD = 0.0
  for place_T in place_TK.T:
    row_TD = y_ND.at[jnp.minimum(place_T, y_ND.shape[0] - 1)].get(mode=IN_BOUNDS)
    total_TD += jnp.where((place_T < y_ND.shape[0])[:, None], row_TD, 0).astype(jnp.float32)
  return total_TD


def _by_one_gather(y_ND, place_TK):
  place_KT = place_TK.T
  row_KTD = y_ND.at[jnp.minimum(place_KT, y_ND.shape[0] - 1)].get(mode=IN_BOUNDS)
  return jnp.where((place_KT < y_ND.shape[0])[:, :, None], row_KTD, 0).astype(jnp.float32).sum(0)


@jax.custom_vjp
def copies(
  x_TD: Float[Array, "T D"], source_N: Int[Array, " N"], place_TK: Int[Array, "T K"]
) -> Float[Array, "N D"]:
  """`rows_at`, differentiable."""
  return rows_at(x_TD, source_N)


@jax.custom_vjp
def sum_of_copies(
  y_ND: Float[Array, "N D"], source_N: Int[Array, " N"], place_TK: Int[Array, "T K"]
) -> Float[Array, "T D"]:
  """`sum_of_rows`, differentiable; a copy that has no place gets a gradient that is not its own."""
  return sum_of_rows(y_ND, place_TK)


def _copies_backward(residuals, dy_ND):
  _, place_TK = residuals
  return sum_of_rows(dy_ND, place_TK).astype(dy_ND.dtype), None, None


def _sum_forward(y_ND, source_N, place_TK):
  return sum_of_rows(y_ND, place_TK), (source_N, jnp.zeros((), y_ND.dtype))


def _sum_backward(residuals, dy_TD):
  source_N, like = residuals
  return rows_at(dy_TD.astype(like.dtype), source_N), None, None


copies.defvjp(lambda x, source, place: (rows_at(x, source), (source, place)), _copies_backward)
sum_of_copies.defvjp(_sum_forward, _sum_backward)
