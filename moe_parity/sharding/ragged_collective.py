"""`lax.ragged_all_to_all`, and on CPU, where XLA has none, the same by an all-gather and a gather.

So that the code around it is tested on simulated devices. The stand-in sends everything to
everybody: production on CPU is refused by `planning.expert_parallel.check_exchange`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from moe_parity.kernels.common import platform, uninitialized
from moe_parity.sharding.varying import equally_varying


class Slices(NamedTuple):
  """One direction of an exchange, as `ragged_all_to_all` takes it; S by other device."""

  send_start_S: Int[Array, " S"]
  send_size_S: Int[Array, " S"]
  write_at_S: Int[Array, " S"]
  receive_size_S: Int[Array, " S"]


def exchanged(lanes, num_rows: int, slices: Slices, axis_name: str):
  """Rows sent into a buffer of `num_rows` in which anything may lie that nobody sends."""
  room = jax.ShapeDtypeStruct((num_rows, *lanes.shape[1:]), lanes.dtype)
  empty = uninitialized(room, after=slices.send_size_S)
  return ragged_all_to_all(lanes, empty, *slices, axis_name)


def ragged_all_to_all(
  operand: Shaped[Array, "N *rest"],
  output: Shaped[Array, "M *rest"],
  send_start_S: Int[Array, " S"],
  send_size_S: Int[Array, " S"],
  write_at_S: Int[Array, " S"],
  receive_size_S: Int[Array, " S"],
  axis_name: str,
) -> Shaped[Array, "M *rest"]:
  """Slices of `operand` land in the `output` of the devices they are for, at row write_at_S; the
  rest of `output` stays. S is a multiple of G: the first S / G slices are for device 0, the first
  S / G sizes of slices received are of those that came from it. Sizes in rows. Not differentiable
  on CPU."""
  operands = equally_varying(operand, output, send_start_S, send_size_S, write_at_S, receive_size_S)
  # Not `lax.platform_dependent`: XLA leaves a collective in its conditional, where `output` is
  # copied and nothing else can run meanwhile (21 ms of the paper's 7B on v5p, compiler-estimated).
  exchange = _by_all_gather if platform() == "cpu" else lax.ragged_all_to_all
  return exchange(*operands, axis_name=axis_name)


def _by_all_gather(operand, output, send_start_S, send_size_S, write_at_S, _, *, axis_name):
  num, num_devices = operand.shape[0], lax.axis_size(axis_name)
  operand = lax.all_gather(operand, axis_name, tiled=True)

  def for_me(a_S):  # by source
    a_GGS = lax.all_gather(a_S, axis_name).reshape(num_devices, num_devices, -1)
    return a_GGS[:, lax.axis_index(axis_name)].reshape(-1)

  start_S, size_S, write_at_S = map(for_me, (send_start_S, send_size_S, write_at_S))
  start_S += num * (jnp.arange(start_S.size, dtype=jnp.int32) // (start_S.size // num_devices))
  offset_SM = jnp.arange(output.shape[0], dtype=jnp.int32)[None, :] - write_at_S[:, None]
  hit_SM = (offset_SM >= 0) & (offset_SM < size_S[:, None])
  row_M = jnp.where(hit_SM, start_S[:, None] + offset_SM, 0).sum(0)
  hit_M = hit_SM.any(0).reshape(-1, *[1] * (operand.ndim - 1))
  return jnp.where(hit_M, operand[row_M], output)
