"""Token dispatch by all-to-alls of packed rows in slots of fixed number: on every platform.

With `is_ragged` only the slots in use are sent (`ragged_all_to_all_dedup.py`).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_parity.experts.deduplicate import DedupRows, pack_choices_by_device, pack_gates
from moe_parity.experts.expert_ffn import Operands, expert_ffn, slots_per_expert
from moe_parity.experts.overflow_rounds import tie_gradients, with_overflow_rounds
from moe_parity.experts.packed_dispatch import combine, dispatch, plan_dispatch
from moe_parity.experts.permute import barrier
from moe_parity.planning.expert_parallel import ExpertParallelShape


def all_to_all_ffn(
  operands: Operands,
  shape: ExpertParallelShape,
  axis_name: str,
  *,
  implementation: str | None,
  num_slots: int,
  is_ragged: bool = False,
  overlap_fn: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"] | None]:
  """`expert_parallel_ffn` without drops, summed in float32; and overlap_fn(x_TD).

  Args:
    is_ragged: send only slots in use.
    overlap_fn: computed while the first round's results are combined.
  """

  def one_round(start, num_rows, num_slots, operands, overlap_fn, rows: DedupRows):
    x_TD, gate_TPJ, *weights = operands
    x_TD, weights = tie_gradients(x_TD, weights)
    plan = plan_dispatch(rows, start, num_rows, axis_name if is_ragged else None)
    x_RD, gate_RJ, expert_RJ = dispatch(x_TD, gate_TPJ, rows.expert_TPJ, plan, shape, axis_name)
    is_valid_R1 = (expert_RJ[:, 0] < shape.experts_per_device)[:, None]
    reads_padding = is_ragged and implementation != "grouped"  # whose kernels read valid rows only
    y_RD = expert_ffn(
      jnp.where(is_valid_R1, x_RD, 0) if reads_padding else x_RD, expert_RJ, gate_RJ, *weights,
      implementation=implementation, num_slots=num_slots,
    )  # fmt: skip
    if reads_padding:
      y_RD = jnp.where(is_valid_R1, y_RD, 0)  # masks the gradient, which is undefined in padding
    if overlap_fn is not None:  # not started before combine is
      y_RD, x_TD = barrier((y_RD, x_TD))
    return combine(y_RD, plan, axis_name), overlap_fn and overlap_fn(x_TD)

  def first_round(operands, overlap_fn, rows: DedupRows):
    return one_round(0, shape.first_rows, num_slots, operands, overlap_fn, rows)

  def overflow_round(index, operands, rows: DedupRows):
    start = shape.first_rows + index * shape.overflow_rows
    num_received = shape.overflow_rows * shape.num_devices
    num_slots = slots_per_expert(num_received, 1, shape.experts_per_device)
    return one_round(start, shape.overflow_rows, num_slots, operands, None, rows)[0]

  x_TD, expert_TK, gate_TK, *weights = operands
  rows = pack_choices_by_device(expert_TK, shape)
  operands = x_TD, pack_gates(gate_TK, rows), *weights
  if not shape.overflow_rows:
    return first_round(operands, overlap_fn, rows)
  max_rows = lax.pmax(jnp.max(rows.by_device.count_E), axis_name)  # of any pair of devices
  num_rounds = -(-jnp.maximum(max_rows - shape.first_rows, 0) // shape.overflow_rows)
  return with_overflow_rounds(first_round, overflow_round, operands, overlap_fn, rows, num_rounds)
