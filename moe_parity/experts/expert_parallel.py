"""Expert parallelism: routed experts on several devices, with dispatch and combine of tokens.

Pure functions for use inside `jax.shard_map`, without any model. `moe_parity.planning.
expert_parallel` chooses a token dispatcher; `moe_parity.planning.wire_bytes` counts its traffic.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.errors import UserError
from moe_parity.experts.all_gather import all_gather_ffn
from moe_parity.experts.all_to_all import all_to_all_ffn
from moe_parity.experts.assignments import drop_beyond_capacity
from moe_parity.experts.expert_ffn import Operands, expert_ffn, slots_per_expert
from moe_parity.experts.ragged_all_to_all import ragged_all_to_all_ffn
from moe_parity.experts.ragged_all_to_all_dedup import ragged_all_to_all_dedup_ffn
from moe_parity.planning.expert_parallel import ExpertParallelShape, check_name
from moe_parity.sharding.vma import match_varying_axes

DISPATCHERS = {
  "all_to_all": all_to_all_ffn,
  "ragged_all_to_all": ragged_all_to_all_ffn,
  "ragged_all_to_all_dedup": ragged_all_to_all_dedup_ffn,
  "all_gather": all_gather_ffn,
}


def expert_parallel_ffn(
  x_TD: Float[Array, "T D"],
  expert_TK: Int[Array, "T K"],
  gate_TK: Float[Array, "T K"],
  w_in_L2ID: Float[Array, "L 2 I D"],
  w_down_LID: Float[Array, "L I D"],
  *,
  num_experts: int,
  axis_name: str = "expert",
  token_dispatch: str = "all_to_all",
  capacity_factor: int | float = 0.0,
  implementation: str | None = None,
  num_slots: int | None = None,
  overlap_fn: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
  """`expert_ffn` with the experts sharded over `axis_name`, G devices with L experts each.

  Call inside shard_map; T counts this device's tokens. Device g owns experts [g L, (g+1) L), L =
  ceil(num_experts / G), a single one may have more; ids from num_experts on are padding experts, to
  which no row goes. Sends per layer what `planning.wire_bytes` counts; nothing when G is 1. Works
  under jit, scan, remat and gradients in x, gates and weights, but for kernels with check_vma.

  Dropless (capacity_factor 0) it is exact for any routing: what does not fit the first round's
  buffers is sent in overflow rounds. With a capacity an expert takes at most
  ceil(capacity_factor * T K / num_experts) assignments from each device, in token order.

  Args:
    x_TD: finite.
    expert_TK: int32, distinct within a row; the sentinel id num_experts is unassigned.
    gate_TK: float32 routing weights, normalized or not.
    token_dispatch: one of DISPATCHERS; the same on every device.
    implementation: as for `expert_ffn`, on the rows that arrive.
    num_slots: slots per expert of the padded implementation, for the tokens of all G devices; only
      speed depends on it.
    overlap_fn: of x_TD, added to the result; a pytree of the arrays it uses
      (`jax.tree_util.Partial`). Except by "all_gather" it is overlapped with combine.
  Returns:
    y_TD in the dtype of x, and how many of this device's assignments were dropped (int32).
  Raises:
    UserError: a token dispatcher that does not exist; weights of another number of experts than L.
  """
  num_tokens, experts_per_token = expert_TK.shape
  shape = ExpertParallelShape(
    num_tokens, experts_per_token, num_experts, lax.axis_size(axis_name), capacity_factor
  )
  _check(shape, w_in_L2ID.shape[0], token_dispatch)
  if num_slots is None:
    num_slots = slots_per_expert(num_tokens * shape.num_devices, experts_per_token, num_experts)
  x_TD, gate_TK, *weights = match_varying_axes(x_TD, gate_TK, w_in_L2ID, w_down_LID)
  num_dropped = jnp.zeros((), jnp.int32)
  if capacity_factor:
    expert_TK, num_dropped = drop_beyond_capacity(expert_TK, num_experts, shape.capacity)
  operands = Operands(x_TD, expert_TK, gate_TK, *weights)
  ffn = _on_one_device if shape.num_devices == 1 else DISPATCHERS[token_dispatch]
  y_TD, overlap_TD = ffn(
    operands, shape, axis_name, implementation=implementation, num_slots=num_slots,
    overlap_fn=overlap_fn,
  )  # fmt: skip
  y_TD = y_TD if overlap_TD is None else y_TD + overlap_TD.astype(y_TD.dtype)
  return y_TD.astype(x_TD.dtype), num_dropped


def _on_one_device(operands: Operands, shape, axis_name, *, overlap_fn, **options):
  """What a dispatcher does, without an exchange. The sentinel id of `expert_ffn` counts padding
  experts too."""
  num_local = operands.w_in_L2ID.shape[0]
  if num_local > shape.num_experts:
    is_assigned_TK = operands.expert_TK < shape.num_experts
    operands = operands._replace(expert_TK=jnp.where(is_assigned_TK, operands.expert_TK, num_local))
  return expert_ffn(*operands, **options), overlap_fn and overlap_fn(operands.x_TD)


def _check(shape: ExpertParallelShape, num_local: int, token_dispatch: str) -> None:
  is_padded = shape.num_devices == 1 and num_local > shape.num_experts
  if num_local != shape.experts_per_device and not is_padded:
    raise UserError(
      f"{num_local} experts are on this device where {shape.num_experts} over {shape.num_devices}"
      f" devices make {shape.experts_per_device}; pad the last device with unused experts"
    )
  check_name(token_dispatch)
