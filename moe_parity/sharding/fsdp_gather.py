"""Parts of an array collected over a mesh axis, and gradients scattered while other work goes on.

On v5p libtpu has no reduce-scatter in two halves, and nothing runs beside one: 10 ms of a step of
the 7B (compiler-estimated). It has a ragged all-to-all in two halves, by which every device sends
the parts of its gradient to whom they belong, and XLA computes meanwhile: 11.81 ms a layer, 12.13
with reduce-scatters. Permutes have two halves too, but XLA puts them in a row at a layer's end.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from moe_parity.kernels.common import platform, uninitialized
from moe_parity.planning.tpu_slices import LANES
from moe_parity.sharding.mesh import has_ragged
from moe_parity.sharding.ragged_collective import ragged_all_to_all

# Every part goes its own way, so along a ring of k chips a link carries k / 8 of the array where
# a reduce-scatter takes (k - 1) / 2k: 1.3 times as much with 4, 2.3 times with 8.
MOST_DEVICES = 4


def collected(part: Shaped[Array, "..."], axis: int, axis_name: str) -> Shaped[Array, "..."]:
  """Inside `jax.shard_map`, the array whose parts along `axis` the devices of a mesh axis have.
  Gradients are summed over the devices, and a device is left with its part's."""
  few = 1 < lax.axis_size(axis_name) <= MOST_DEVICES
  overlaps = few and platform() == "tpu" and has_ragged()
  return (scattered_by_exchange if overlaps else _all_gather)(part, axis, axis_name)


def _all_gather(part, axis, axis_name):
  return lax.all_gather(part, axis_name, axis=axis, tiled=True)


# Weights on their way forward stay an all-gather. Sent the same way while attention is computed,
# they leave nothing to do while the experts' rows travel: 11.84 for 11.81 ms a layer.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def scattered_by_exchange(part, axis, axis_name):
  """`collected`, its gradient by a ragged all-to-all and a sum in float32."""
  return _all_gather(part, axis, axis_name)


def _backward(axis, axis_name, _, gradient):
  num, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
  parts_N = _cut(gradient, axis, num)
  one_N, number_N = jnp.ones(num, jnp.int32), jnp.arange(num, dtype=jnp.int32)
  memory = uninitialized(jax.ShapeDtypeStruct(parts_N.shape, parts_N.dtype), after=parts_N)
  parts_N = ragged_all_to_all(parts_N, memory, number_N, one_N, me * one_N, one_N, axis_name)
  # Not `jnp.sum`, which XLA computes at an eighth of the HBM's rate (0.3 of 12 ms a layer).
  total = functools.reduce(jnp.add, (part.astype(jnp.float32) for part in parts_N))
  return (total.astype(gradient.dtype),)


scattered_by_exchange.defvjp(
  lambda part, axis, axis_name: (_all_gather(part, axis, axis_name), None), _backward
)


def _cut(gradient, axis, num):
  """[num, ...]: its parts along an axis."""
  if axis == 0:
    return gradient.reshape(num, -1, *gradient.shape[1:])
  if axis == gradient.ndim - 1 and gradient.shape[axis] % (num * LANES) == 0:
    from moe_parity.kernels.split_columns import split_columns  # a quarter second, for TPUs only

    return split_columns(gradient, num)
  return jnp.stack(jnp.split(gradient, num, axis))
