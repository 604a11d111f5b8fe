"""All-gathers weights over a mesh axis, with gradients reduce-scattered alongside other work.

libtpu has no asynchronous reduce-scatter on v5p, so nothing overlaps with one. It has an
asynchronous ragged all-to-all, by which every device can send the shards of its gradient to their
owners, and XLA computes meanwhile. Collective-permutes are asynchronous too, but XLA schedules them
one after another at a layer's end.

Elsewhere columns of a gradient are reduce-scattered as shards one after another, where a shard is
whole lane tiles, and else as a matrix's. Of columns of arrays with more axes XLA makes an
all-reduce (v5e), or transposes the array first, which takes longer than the links do (v6e).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from moe_parity.kernels.common import platform, uninitialized
from moe_parity.kernels.split_columns import split_columns
from moe_parity.planning.tpu_slices import LANES
from moe_parity.sharding.mesh import supports_ragged_all_to_all
from moe_parity.sharding.ragged_collective import ragged_all_to_all

# Every shard is sent to its owner alone, so along a ring of k chips a link carries k / 8 of the
# array where a reduce-scatter puts (k - 1) / 2k on it: 1.3 times as much with 4, 2.3 times with 8.
MAX_ASYNC_REDUCE_SCATTER_DEVICES = 4


def all_gather_weight(
  part: Shaped[Array, "..."], axis: int, axis_name: str
) -> Shaped[Array, "..."]:
  """Inside `jax.shard_map`, the whole array whose shards along `axis` are on a mesh axis's devices.
  The gradient is summed over the devices, and each keeps its own shard's."""
  num_devices = lax.axis_size(axis_name)
  if platform() != "tpu" or num_devices == 1:
    return _all_gather(part, axis, axis_name)
  is_small = num_devices <= MAX_ASYNC_REDUCE_SCATTER_DEVICES
  if is_small and supports_ragged_all_to_all():
    return all_gather_async_reduce_scatter(part, axis, axis_name)
  return all_gather_plain_reduce_scatter(part, axis, axis_name)


def _all_gather(part: Shaped[Array, "..."], axis: int, axis_name: str) -> Shaped[Array, "..."]:
  if axis < part.ndim - 1:
    return lax.all_gather(part, axis_name, axis=axis, tiled=True)
  # As a matrix: the columns of an array of more axes arrive in tiles of few rows, where they are no
  # whole lane tiles, and XLA's copy out of them takes longer than the links.
  matrix = lax.all_gather(part.reshape(-1, part.shape[-1]), axis_name, axis=1, tiled=True)
  return matrix.reshape(*part.shape[:-1], -1)


# The forward all-gather stays one. Emulated in the same way it would overlap with attention, and
# leave nothing to overlap with dispatch and combine.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def all_gather_async_reduce_scatter(
  part: Shaped[Array, "..."], axis: int, axis_name: str
) -> Shaped[Array, "..."]:
  """`all_gather_weight` with its gradient by a ragged all-to-all and a sum in float32."""
  return _all_gather(part, axis, axis_name)


def _backward(axis, axis_name, _, gradient):
  num, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
  parts_N = _split_shards(gradient, axis, num)
  one_N, number_N = jnp.ones(num, jnp.int32), jnp.arange(num, dtype=jnp.int32)
  buffer = uninitialized(jax.ShapeDtypeStruct(parts_N.shape, parts_N.dtype), after=parts_N)
  parts_N = ragged_all_to_all(parts_N, buffer, number_N, one_N, me * one_N, one_N, axis_name)
  # Not `jnp.sum`, which XLA computes at an eighth of the HBM's bandwidth.
  total = functools.reduce(jnp.add, (part.astype(jnp.float32) for part in parts_N))
  return (total.astype(gradient.dtype),)


all_gather_async_reduce_scatter.defvjp(
  lambda part, axis, axis_name: (_all_gather(part, axis, axis_name), None), _backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def all_gather_plain_reduce_scatter(
  part: Shaped[Array, "..."], axis: int, axis_name: str
) -> Shaped[Array, "..."]:
  """`all_gather_weight` with its gradient by a reduce-scatter in an order that XLA keeps."""
  return _all_gather(part, axis, axis_name)


def _reduce_scatter(axis, axis_name, _, gradient):
  num, width = lax.axis_size(axis_name), gradient.shape[axis]
  if axis < gradient.ndim - 1:
    return (lax.psum_scatter(gradient, axis_name, scatter_dimension=axis, tiled=True),)
  if width % (num * LANES) == 0:
    parts_N = split_columns(gradient, num)
    return (lax.psum_scatter(parts_N, axis_name, scatter_dimension=0),)
  matrix = gradient.reshape(-1, width)
  part = lax.psum_scatter(matrix, axis_name, scatter_dimension=1, tiled=True)
  return (part.reshape(*gradient.shape[:-1], -1),)


all_gather_plain_reduce_scatter.defvjp(
  lambda part, axis, axis_name: (_all_gather(part, axis, axis_name), None), _reduce_scatter
)


def _split_shards(gradient: Shaped[Array, "..."], axis: int, num: int) -> Shaped[Array, "N ..."]:
  """Splits an array into its shards along an axis."""
  if axis == 0:
    return gradient.reshape(num, -1, *gradient.shape[1:])
  if axis == gradient.ndim - 1 and gradient.shape[axis] % (num * LANES) == 0:
    return split_columns(gradient, num)
  return jnp.stack(jnp.split(gradient, num, axis))
