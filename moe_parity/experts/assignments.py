"""Which assignment lies where once assignments are grouped by expert. Integers only.

An assignment is one (token, choice) pair, numbered a = t * K + k; there are A = T * K of them. An
expert id equal to `num_experts` means nobody: such an assignment is computed by no expert here and
adds zero. (On a mesh these are the choices that live on another device.)
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

INT32_MAX = 2**31 - 1
LARGEST_COUNT = 2**26  # numbers that counting keeps at once; beyond, a sort it is
IN_BOUNDS = "promise_in_bounds"  # an index mode of jax: no clamp, no check


class Groups(NamedTuple):
  """Assignments in expert order; within an expert in token order.

  order_A: assignment numbers, those of expert 0 first, those of nobody last.
  place_A: where each assignment lies in `order_A`: its inverse.
  count_E: assignments of each expert.
  start_E: where in `order_A` each expert begins.
  """

  order_A: Int[Array, " A"]
  place_A: Int[Array, " A"]
  count_E: Int[Array, " E"]
  start_E: Int[Array, " E"]


def group_by_expert(expert_TK: Int[Array, "T K"], num_experts: int) -> Groups:
  """Groups assignments by expert, stably; no communication.

  Sorts on CPU and GPU, counts on TPU. There XLA takes 9 CPU-seconds to compile each sort (24,576
  int32 on v5p, libtpu 0.0.50) and a layer has several.
  """
  group = functools.partial(_by_sorting, num_experts=num_experts)
  count = functools.partial(_by_counting, num_experts=num_experts)
  if expert_TK.size * (num_experts + 1) > LARGEST_COUNT:
    count = group
  return lax.platform_dependent(expert_TK, tpu=count, default=group)


def _by_sorting(expert_TK, num_experts: int) -> Groups:
  """One key that carries both expert and assignment sorts in 1.0 ms where argsort takes 1.4 (16,384
  assignments, one core); a cumulative one-hot count takes 3.9."""
  num = expert_TK.size
  if (num_experts + 1) * num > INT32_MAX:
    order_A = jnp.argsort(expert_TK.reshape(-1), stable=True).astype(jnp.int32)
  else:
    order_A = jnp.sort(expert_TK.reshape(-1) * num + jnp.arange(num, dtype=jnp.int32)) % num
  count_E = expert_loads(expert_TK, num_experts)
  start_E = jnp.cumsum(count_E, dtype=jnp.int32) - count_E
  return Groups(order_A, _inverse(order_A), count_E, start_E)


def _by_counting(expert_TK, num_experts: int) -> Groups:
  """An assignment's place is the number of those before it: its expert's earlier ones and all of
  lower experts. Products of zeros and ones with triangles of ones count them, block by block; a
  block's counts are whole numbers up to 256, exact in bfloat16, and sums are float32, exact to
  2^24."""
  num, block = expert_TK.size, 256
  num_blocks = -(-num // block)
  expert_A = jnp.pad(expert_TK.reshape(-1), (0, num_blocks * block - num), constant_values=-1)
  group_E = jnp.arange(num_experts + 1, dtype=jnp.int32)  # the last is nobody's
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
  place_NBE = rank_NBE + (earlier_NE + lower_E[None, :])[:, None, :]
  place_A = jnp.where(is_of_NBE, place_NBE, 0).sum(2).astype(jnp.int32).reshape(-1)[:num]
  count_E, start_E = (a[:-1].astype(jnp.int32) for a in (count_E, lower_E))
  return Groups(_inverse(place_A), place_A, count_E, start_E)


def _inverse(permutation_A):
  number_A = jnp.arange(permutation_A.size, dtype=jnp.int32)
  return jnp.zeros_like(number_A).at[permutation_A].set(
    number_A, mode=IN_BOUNDS, unique_indices=True
  )  # fmt: skip


def rank_in_group(expert_TK: Int[Array, "T K"], groups: Groups) -> Int[Array, "T K"]:
  """How many earlier assignments its expert has; of no meaning for nobody's."""
  start_TK = groups.start_E.at[expert_TK].get(mode="clip")
  return groups.place_A.reshape(expert_TK.shape) - start_TK


def expert_loads(expert_TK: Int[Array, "T K"], num_experts: int) -> Int[Array, " E"]:
  """Assignments of each expert, counted; their sum is T * K less those of nobody."""
  one = jnp.ones(expert_TK.size, jnp.int32)
  return jnp.zeros(num_experts, jnp.int32).at[expert_TK.reshape(-1)].add(one, mode="drop")


def moved(
  place_N: Int[Array, " N"], from_S: Int[Array, " S"], size_S: Int[Array, " S"], to_S
) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
  """Where places go when stretches of them move, and whether each is in one; 0 if it is not."""
  offset_NS = place_N[:, None] - from_S[None, :]
  inside_NS = (offset_NS >= 0) & (offset_NS < size_S[None, :])
  return jnp.where(inside_NS, to_S[None, :] + offset_NS, 0).sum(1), inside_NS.any(1)


def drop_beyond_capacity(
  expert_TK: Int[Array, "T K"], num_experts: int, capacity: int
) -> tuple[Int[Array, "T K"], Int[Array, ""]]:
  """Each expert's first `capacity` assignments in token order stay; the others become nobody's.

  Communicates nothing: it bounds what this device's tokens ask of an expert, so no device's tokens
  displace another's.

  Args:
    expert_TK: ids in [0, num_experts) or num_experts for nobody.
  Returns:
    expert_TK with num_experts in place of what was dropped, and how many were dropped.
  """
  groups = group_by_expert(expert_TK, num_experts)
  dropped_TK = (expert_TK < num_experts) & (rank_in_group(expert_TK, groups) >= capacity)
  return jnp.where(dropped_TK, num_experts, expert_TK), dropped_TK.sum(dtype=jnp.int32)
