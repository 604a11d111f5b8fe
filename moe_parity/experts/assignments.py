"""Sorts assignments by expert and applies capacity. Integers only.

An assignment is one (token, choice) pair, numbered a = t * K + k; there are A = T * K of them. The
expert id `num_experts` is a sentinel: such an assignment is unassigned, computed by no expert here,
and adds zero. (With expert parallelism these are the choices of experts on other devices.)
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_parity.kernels.common import platform

INT32_MAX = 2**31 - 1
MAX_COUNTING_ELEMENTS = 2**26  # one-hot elements up to which assignments are sorted by counting
IN_BOUNDS = "promise_in_bounds"  # an index mode of jax: no clamp, no check


class SortedAssignments(NamedTuple):
  """Assignments in expert order; within an expert in token order.

  Attributes:
    sort_index_A: assignment numbers, those of expert 0 first, unassigned ones last.
    inverse_A: the position of each assignment in `sort_index_A`: its inverse.
    count_E: assignments of each expert.
    start_E: the position in `sort_index_A` at which each expert starts.
  """

  sort_index_A: Int[Array, " A"]
  inverse_A: Int[Array, " A"]
  count_E: Int[Array, " E"]
  start_E: Int[Array, " E"]


def sort_by_expert(expert_TK: Int[Array, "T K"], num_experts: int) -> SortedAssignments:
  """Sorts assignments by expert, stably; no communication.

  By a sort on CPU and GPU, by counting on TPU: there a sort takes XLA seconds to compile, and a
  layer has several.
  """
  fits = expert_TK.size * (num_experts + 1) <= MAX_COUNTING_ELEMENTS
  sort = _by_counting if platform() == "tpu" and fits else _by_sorting
  return sort(expert_TK, num_experts)


def _by_sorting(expert_TK, num_experts: int) -> SortedAssignments:
  """Sorts one key that holds both expert and assignment, which is faster than an argsort."""
  num = expert_TK.size
  if (num_experts + 1) * num > INT32_MAX:
    sort_index_A = jnp.argsort(expert_TK.reshape(-1), stable=True).astype(jnp.int32)
  else:
    sort_index_A = jnp.sort(expert_TK.reshape(-1) * num + jnp.arange(num, dtype=jnp.int32)) % num
  count_E = expert_loads(expert_TK, num_experts)
  start_E = jnp.cumsum(count_E, dtype=jnp.int32) - count_E
  return SortedAssignments(sort_index_A, _inverse(sort_index_A), count_E, start_E)


def _by_counting(expert_TK, num_experts: int) -> SortedAssignments:
  """An assignment's position is the number of those before it: its expert's earlier ones and all of
  lower experts. Products of one-hot blocks with triangular matrices of ones count them; a block's
  counts are integers up to 256, exact in bfloat16, and sums are float32, exact to 2^24."""
  num, block = expert_TK.size, 256
  num_blocks = -(-num // block)
  expert_A = jnp.pad(expert_TK.reshape(-1), (0, num_blocks * block - num), constant_values=-1)
  group_E = jnp.arange(num_experts + 1, dtype=jnp.int32)  # with the sentinel
  is_of_NBE = expert_A.reshape(num_blocks, block, 1) == group_E[None, None, :]
  one_NBE = is_of_NBE.astype(jnp.bfloat16)

  def before(size):
    index = jnp.arange(size, dtype=jnp.int32)
    return (index[None, :] < index[:, None]).astype(jnp.bfloat16)

  exact = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  count_NE = is_of_NBE.sum(1, dtype=jnp.float32)
  earlier_NE = exact("MN,NE->ME", before(num_blocks), count_NE.astype(jnp.bfloat16))
  count_E = count_NE.sum(0)
  lower_E = jnp.where(group_E[None, :] < group_E[:, None], count_E[None, :], 0).sum(1)
  rank_NBE = exact("CB,NBE->NCE", before(block), one_NBE)
  position_NBE = rank_NBE + (earlier_NE + lower_E[None, :])[:, None, :]
  inverse_A = jnp.where(is_of_NBE, position_NBE, 0).sum(2).astype(jnp.int32).reshape(-1)[:num]
  count_E, start_E = (a[:-1].astype(jnp.int32) for a in (count_E, lower_E))
  return SortedAssignments(_inverse(inverse_A), inverse_A, count_E, start_E)


def _inverse(permutation_A):
  number_A = jnp.arange(permutation_A.size, dtype=jnp.int32)
  return jnp.zeros_like(number_A).at[permutation_A].set(
    number_A, mode=IN_BOUNDS, unique_indices=True
  )  # fmt: skip


def rank_in_group(expert_TK: Int[Array, "T K"], by_expert: SortedAssignments) -> Int[Array, "T K"]:
  """How many earlier assignments its expert has; undefined for unassigned ones."""
  start_TK = by_expert.start_E.at[expert_TK].get(mode="clip")
  return by_expert.inverse_A.reshape(expert_TK.shape) - start_TK


def expert_loads(expert_TK: Int[Array, "T K"], num_experts: int) -> Int[Array, " E"]:
  """Counts the assignments of each expert; their sum is T * K less the unassigned ones."""
  one = jnp.ones(expert_TK.size, jnp.int32)
  return jnp.zeros(num_experts, jnp.int32).at[expert_TK.reshape(-1)].add(one, mode="drop")


def map_segments(
  position_N: Int[Array, " N"], old_start_S: Int[Array, " S"], size_S: Int[Array, " S"], new_start_S
) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
  """Maps positions from old segments to new ones of the same sizes.

  Returns:
    the new position, 0 if in no segment; and whether it is in one.
  """
  offset_NS = position_N[:, None] - old_start_S[None, :]
  is_inside_NS = (offset_NS >= 0) & (offset_NS < size_S[None, :])
  return jnp.where(is_inside_NS, new_start_S[None, :] + offset_NS, 0).sum(1), is_inside_NS.any(1)


def drop_beyond_capacity(
  expert_TK: Int[Array, "T K"], num_experts: int, capacity: int
) -> tuple[Int[Array, "T K"], Int[Array, ""]]:
  """Keeps each expert's first `capacity` assignments in token order; the others are unassigned.

  Communicates nothing: capacity bounds the assignments of this device's tokens to an expert, so no
  device's tokens displace another's.

  Args:
    expert_TK: ids in [0, num_experts), or num_experts if unassigned.
  Returns:
    expert_TK with num_experts in place of what was dropped, and how many were dropped.
  """
  by_expert = sort_by_expert(expert_TK, num_experts)
  dropped_TK = (expert_TK < num_experts) & (rank_in_group(expert_TK, by_expert) >= capacity)
  return jnp.where(dropped_TK, num_experts, expert_TK), dropped_TK.sum(dtype=jnp.int32)
