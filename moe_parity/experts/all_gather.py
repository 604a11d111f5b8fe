"""Token dispatch by all-gather: every device gets every token and computes its own experts' part.

One all-gather and one reduce-scatter, the same for any routing. Cheapest where most tokens go to
most devices anyway.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_parity.experts.expert_ffn import Operands, expert_ffn
from moe_parity.planning.expert_parallel import ExpertParallelShape


def all_gather_ffn(
  operands: Operands,
  shape: ExpertParallelShape,
  axis_name: str,
  *,
  implementation: str | None,
  num_slots: int,
  overlap_fn: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"] | None]:
  """`expert_parallel_ffn` without drops, and overlap_fn(x_TD). Partial results are summed in the
  dtype of x."""
  x_TD, expert_TK, gate_TK, w_in_L2ID, w_down_LID = operands
  num_local = shape.experts_per_device
  x_AD, expert_AK, gate_AK = (
    lax.all_gather(a, axis_name, tiled=True) for a in (x_TD, expert_TK, gate_TK)
  )
  is_local_AK = expert_AK // num_local == lax.axis_index(axis_name)
  is_local_AK &= expert_AK < shape.num_experts
  expert_AK = jnp.where(is_local_AK, expert_AK % num_local, num_local)
  y_AD = expert_ffn(
    x_AD, expert_AK, gate_AK, w_in_L2ID, w_down_LID,
    implementation=implementation, num_slots=num_slots,
  )  # fmt: skip
  return lax.psum_scatter(y_AD, axis_name, tiled=True), overlap_fn and overlap_fn(x_TD)
