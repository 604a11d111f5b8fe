"""The gathered exchange: every device of the axis gets every token and computes its experts' part.

One all-gather there, one reduce-scatter back, the same for any routing. Cheapest where most tokens
go to most devices anyway.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.experts.expert_ffn import expert_ffn
from moe_parity.planning.expert_parallel import Shape


def gathered(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_L2ID: Float[Array, "L 2 I D"],
  w_down_LID: Float[Array, "L I D"],
  shape: Shape,
  axis_name: str,
  *,
  implementation: str | None,
  num_slots: int,
  beside: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"] | None]:
  """`dispatch.expert_ffn_local` without drops, and `beside`'s result. Partial results are summed in
  the dtype of x."""
  here = shape.experts_per_device
  x_AD, expert_AK, gate_AK = (
    lax.all_gather(a, axis_name, tiled=True) for a in (x_TD, expert_TK, gate_TK)
  )
  mine_AK = (expert_AK // here == lax.axis_index(axis_name)) & (expert_AK < shape.num_experts)
  y_AD = expert_ffn(
    x_AD, jnp.where(mine_AK, expert_AK % here, here), gate_AK, w_in_L2ID, w_down_LID,
    implementation=implementation, num_slots=num_slots,
  )  # fmt: skip
  return lax.psum_scatter(y_AD, axis_name, tiled=True), beside and beside(x_TD)
