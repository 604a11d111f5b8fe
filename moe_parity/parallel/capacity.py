"""Capacity: an expert takes a bounded number of assignments from each device, the rest drop."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_parity.parallel.grouping import group_by_expert, rank_in_group


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
