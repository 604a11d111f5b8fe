"""Parameters: how one is declared, and how its initial values are drawn.

A module is built with parameters that are all zero, which costs nothing; `init_params` draws them
with NumPy's counter-based Philox generator. So the same seed gives the same values on every
platform and mesh, a device's shard is drawn without the rest, and nothing is compiled for it.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCK = 2**18  # numbers drawn at a time: a megabyte
DrawShard = Callable[[Sequence[slice]], np.ndarray]  # index of a shard -> its values


def param(*shape: int, axes: str, scale: float = 1.0, fan_in: int = 0) -> nnx.Param:
  """A float32 parameter to be drawn from a normal of standard deviation `scale / sqrt(fan_in)`.

  Args:
    shape: [..., fan_in, fan_out]; leading axes are stacked copies (experts).
    axes: one letter an axis (legend in sharding/mesh.py; "-" is replicated), stored with the
      parameter: `sharding.partition_specs` maps them to mesh axes. Stacked layers have one more
      axis in front.
    scale: 1 / sqrt(2 * num_layers) for parameters that write into the residual stream.
    fan_in: where it is not the last axis but one.
  """
  std = scale * (fan_in or shape[-2]) ** -0.5
  return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes, std=std)


def init_params(
  abstract: nnx.State,
  seed: int,
  make_array: Callable[[nnx.Variable, DrawShard], jax.Array] | None = None,
) -> nnx.State:
  """Initial values of an abstract state: normal where a `std` is stored, else one (norm scales).

  Every leaf has a stream of its own, named by the seed and the leaf's path.

  Args:
    make_array: makes a leaf's array from the function that draws any shard of it; None draws the
      whole leaf as a NumPy array.
  """

  def init_leaf(path, variable: nnx.Variable):
    std, shape = variable.get_metadata().get("std"), variable.get_value().shape
    stream = zlib.crc32("/".join(map(str, path)).encode())
    draw_shard = functools.partial(init_shard, shape, std, (seed, stream))
    if make_array is not None:
      return variable.replace(make_array(variable, draw_shard))
    return variable.replace(draw_shard(tuple(slice(0, size) for size in shape)))

  flat = nnx.to_flat_state(abstract)
  return nnx.from_flat_state([(path, init_leaf(path, variable)) for path, variable in flat])


def init_shard(
  shape: Sequence[int], std: float | None, key: tuple[int, int], index: Sequence[slice]
) -> np.ndarray:
  """The shard `index` of a leaf of this shape, float32, without drawing or holding the rest.

  A leaf is a stack of matrices, and a matrix a column of blocks of about BLOCK numbers. Philox is a
  counter, so every block starts at a position of its own in the leaf's stream.

  Args:
    std: standard deviation; None fills with ones.
    index: may reach past the shape: those values are zero (experts that pad the expert axis).
  """
  ranges = [
    range(part.start or 0, size if part.stop is None else part.stop)
    for part, size in zip(index, shape, strict=True)
  ]
  out = np.zeros([len(r) for r in ranges], np.float32)
  real = [range(r.start, min(r.stop, size)) for r, size in zip(ranges, shape, strict=True)]
  if std is None:
    out[tuple(slice(0, len(r)) for r in real)] = 1
    return out
  *stack, rows, columns = shape
  *real_stack, real_rows, real_columns = real
  height = max(1, BLOCK // columns)
  num_blocks = -(-rows // height)
  for position in itertools.product(*real_stack):
    matrix = int(np.ravel_multi_index(position, stack)) if stack else 0
    target = out[tuple(p - r.start for p, r in zip(position, ranges, strict=False))]
    for block in range(real_rows.start // height, -(-real_rows.stop // height)):
      top = block * height
      generator = np.random.Philox(key=key, counter=[0, 0, matrix * num_blocks + block, 0])
      values = np.random.Generator(generator).standard_normal(
        (min(height, rows - top), columns), np.float32
      )
      first, last = max(top, real_rows.start), min(top + height, real_rows.stop)
      target[first - real_rows.start : last - real_rows.start, : len(real_columns)] = values[
        first - top : last - top, real_columns.start : real_columns.stop
      ] * np.float32(std)
  return out
