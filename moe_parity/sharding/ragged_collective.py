"""`lax.ragged_all_to_all`, and the same by an all-gather and a gather on CPU, where XLA has none.

So that the code around it is tested on simulated devices. The emulation sends everything to every
device: `planning.expert_parallel.check_token_dispatch` refuses it for training on a CPU.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from moe_parity.kernels.common import device_platform, uninitialized
from moe_parity.sharding.vma import match_varying_axes


class RaggedOffsets(NamedTuple):
  """Offsets and sizes of one ragged all-to-all, in rows; S by other device. Named as JAX's."""

  input_offset_S: Int[Array, " S"]
  send_size_S: Int[Array, " S"]
  output_offset_S: Int[Array, " S"]
  recv_size_S: Int[Array, " S"]


def ragged_send(
  rows: Shaped[Array, "N *rest"], num_rows: int, offsets: RaggedOffsets, axis_name: str
) -> Shaped[Array, "M *rest"]:
  """Sends rows into a buffer of `num_rows`; rows that nothing is sent to are undefined."""
  shape = jax.ShapeDtypeStruct((num_rows, *rows.shape[1:]), rows.dtype)
  buffer = uninitialized(shape, after=offsets.send_size_S)
  return ragged_all_to_all(rows, buffer, *offsets, axis_name)


def ragged_all_to_all(
  operand: Shaped[Array, "N *rest"],
  output: Shaped[Array, "M *rest"],
  input_offset_S: Int[Array, " S"],
  send_size_S: Int[Array, " S"],
  output_offset_S: Int[Array, " S"],
  recv_size_S: Int[Array, " S"],
  axis_name: str,
) -> Shaped[Array, "M *rest"]:
  """Writes slices of `operand` into the `output` of other devices, at row output_offset_S; the rest
  of `output` is unchanged.

  S is a multiple of G: the first S / G slices are for device 0, the first S / G of recv_size_S come
  from it. Offsets and sizes are in rows. Not differentiable on CPU.
  """
  offsets = input_offset_S, send_size_S, output_offset_S, recv_size_S
  operands = match_varying_axes(operand, output, *offsets)
  # Not `lax.platform_dependent`: XLA leaves a collective inside its conditional, where `output` is
  # copied and nothing can be overlapped. A simulated platform has a CPU's collectives.
  collective = _by_all_gather if device_platform() == "cpu" else lax.ragged_all_to_all
  return collective(*operands, axis_name=axis_name)


def _by_all_gather(operand, output, input_offset_S, send_size_S, output_offset_S, _, *, axis_name):
  num, num_devices = operand.shape[0], lax.axis_size(axis_name)
  operand = lax.all_gather(operand, axis_name, tiled=True)

  def for_me(a_S):  # by source
    a_GGS = lax.all_gather(a_S, axis_name).reshape(num_devices, num_devices, -1)
    return a_GGS[:, lax.axis_index(axis_name)].reshape(-1)

  start_S, size_S, output_offset_S = map(for_me, (input_offset_S, send_size_S, output_offset_S))
  start_S += num * (jnp.arange(start_S.size, dtype=jnp.int32) // (start_S.size // num_devices))
  offset_SM = jnp.arange(output.shape[0], dtype=jnp.int32)[None, :] - output_offset_S[:, None]
  is_hit_SM = (offset_SM >= 0) & (offset_SM < size_S[:, None])
  row_M = jnp.where(is_hit_SM, start_S[:, None] + offset_SM, 0).sum(0)
  is_hit_M = is_hit_SM.any(0).reshape(-1, *[1] * (operand.ndim - 1))
  return jnp.where(is_hit_M, operand[row_M], output)
