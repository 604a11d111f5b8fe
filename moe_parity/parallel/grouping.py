"""Which assignment lies where once assignments are grouped by expert. Integers only.

An assignment is one (token, choice) pair, numbered a = t * K + k; there are A = T * K of them. An
expert id equal to `num_experts` means nobody: such an assignment is computed by no expert here and
adds zero. (On a mesh these are the choices that live on another device.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

INT32_MAX = 2**31 - 1
IN_BOUNDS = "promise_in_bounds"  # an index mode of jax: no clamp, no check


class Groups(NamedTuple):
  """Assignments in expert order; within an expert in token order.

  order_A: assignment numbers, those of expert 0 first, those of nobody last.
  count_E: assignments of each expert.
  start_E: where in `order_A` each expert begins.
  """

  order_A: Int[Array, " A"]
  count_E: Int[Array, " E"]
  start_E: Int[Array, " E"]


def group_by_expert(expert_TK: Int[Array, "T K"], num_experts: int) -> Groups:
  """Sorts assignments by expert, stably, with one integer key.

  One key that carries both expert and assignment sorts in 1.0 ms where argsort takes 1.4 (16,384
  assignments, one core); a cumulative one-hot count takes 3.9.
  """
  num = expert_TK.size
  if (num_experts + 1) * num > INT32_MAX:
    order_A = jnp.argsort(expert_TK.reshape(-1), stable=True).astype(jnp.int32)
  else:
    order_A = jnp.sort(expert_TK.reshape(-1) * num + jnp.arange(num, dtype=jnp.int32)) % num
  count_E = expert_loads(expert_TK, num_experts)
  return Groups(order_A, count_E, jnp.cumsum(count_E, dtype=jnp.int32) - count_E)


def places(groups: Groups) -> Int[Array, " A"]:
  """Where each assignment lies in `order_A`: its inverse."""
  number_A = jnp.arange(groups.order_A.size, dtype=jnp.int32)
  return jnp.zeros_like(number_A).at[groups.order_A].set(
    number_A, mode=IN_BOUNDS, unique_indices=True
  )  # fmt: skip


def rank_in_group(expert_TK: Int[Array, "T K"], groups: Groups) -> Int[Array, "T K"]:
  """How many earlier assignments its expert has; of no meaning for nobody's."""
  start_TK = groups.start_E.at[expert_TK].get(mode="clip")
  return places(groups).reshape(expert_TK.shape) - start_TK


def expert_loads(expert_TK: Int[Array, "T K"], num_experts: int) -> Int[Array, " E"]:
  """Assignments of each expert, counted; their sum is T * K less those of nobody."""
  one = jnp.ones(expert_TK.size, jnp.int32)
  return jnp.zeros(num_experts, jnp.int32).at[expert_TK.reshape(-1)].add(one, mode="drop")
