"""How a weight is born: its distribution, and the axis letters that say where it may be split.

A module is built with weights that are all zero, and costs nothing; `draw` fills them in. Drawing
is left to NumPy's counter-based Philox: the same seed gives the same weights on every platform and
mesh, a device's part is drawn without the rest, and nothing is compiled for it (XLA:CPU takes ten
seconds over the same job).
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from moe_parity.sharding import fsdp_gather, mesh

BLOCK = 2**18  # numbers drawn at a time: a megabyte
Draw = Callable[[Sequence[slice]], np.ndarray]


def matrix(*shape: int, axes: str, scale: float = 1.0, fan_in: int = 0) -> nnx.Param:
  """A float32 weight to be drawn from a normal of standard deviation `scale / sqrt(fan_in)`.

  Args:
    shape: [..., fan_in, fan_out]; leading axes are stacked copies (experts).
    axes: one letter an axis (legend in sharding/mesh.py; "-" is whole everywhere), kept with the
      parameter for the table that maps letters to mesh axes. Stacking layers puts an axis in front.
    scale: 1 / sqrt(2 * num_layers) for what writes into the residual stream.
    fan_in: where it is not the last axis but one.
  """
  std = scale * (fan_in or shape[-2]) ** -0.5
  return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes, std=std)


def narrowed(weights: nnx.State, dtype: str) -> nnx.State:
  """The matrices in `dtype`, as they are computed with; what is whole everywhere as it is."""
  return _each(lambda array, axes: array.astype(dtype) if axes.strip("-") else array, weights)


def specs(weights: nnx.State) -> nnx.State:
  """Where each weight lies on the mesh: a device's part of it is what `jax.shard_map` gives."""
  return _each(lambda _, axes: mesh.spec(axes, mesh.WEIGHTS), weights)


def collected(weights: nnx.State) -> nnx.State:
  """A device's parts of weights, inside `jax.shard_map`, collected over `fsdp`. Their gradients are
  summed over it and scattered back."""

  def of(array, axes):
    cut = [axis for axis, letter in enumerate(axes) if mesh.WEIGHTS.get(letter) == "fsdp"]
    return fsdp_gather.collected(array, cut[0], "fsdp") if cut else array

  return _each(of, weights)


def _each(function: Callable, weights: nnx.State) -> nnx.State:
  """`function(array, axes)` on every weight, "-" in axes for those of stacked layers."""

  def of(weight: nnx.Variable):
    value = weight.get_value()
    return weight.replace(function(value, weight.axes.rjust(value.ndim, "-")))

  return jax.tree.map(of, weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def draw(
  abstract: nnx.State, seed: int, place: Callable[[nnx.Variable, Draw], jax.Array] | None = None
) -> nnx.State:
  """Initial values of an abstract state: normal where a `std` is noted, else one (norm scales).

  Every leaf has a stream of its own, named by the seed and the leaf's path.

  Args:
    place: makes an array of a leaf from the function that draws any part of it; None draws the
      whole leaf as a NumPy array.
  """

  def leaf(path, variable: nnx.Variable):
    std, shape = variable.get_metadata().get("std"), variable.get_value().shape
    stream = zlib.crc32("/".join(map(str, path)).encode())
    part = functools.partial(draw_part, shape, std, (seed, stream))
    whole = tuple(slice(0, size) for size in shape)
    return variable.replace(place(variable, part) if place else part(whole))

  flat = nnx.to_flat_state(abstract)
  return nnx.from_flat_state([(path, leaf(path, variable)) for path, variable in flat])


def draw_part(
  shape: Sequence[int], std: float | None, key: tuple[int, int], index: Sequence[slice]
) -> np.ndarray:
  """The part `index` of a leaf of this shape, float32, without drawing or holding the rest.

  A leaf is a stack of matrices and a matrix a pile of BLOCK numbers or so; Philox counts, so every
  block begins at a place of its own in the leaf's stream.

  Args:
    index: may reach past the shape: zeros lie there (experts that do not exist).
  """
  ranges = [range(part.start or 0, size if part.stop is None else part.stop)
            for part, size in zip(index, shape, strict=True)]  # fmt: skip
  out = np.zeros([len(r) for r in ranges], np.float32)
  real = [range(r.start, min(r.stop, size)) for r, size in zip(ranges, shape, strict=True)]
  inside = tuple(slice(0, len(r)) for r in real)
  if std is None:
    out[inside] = 1
    return out
  *stack, rows, columns = shape
  *places, real_rows, real_columns = real
  height = max(1, BLOCK // columns)
  blocks = -(-rows // height)
  for place in itertools.product(*places):
    matrix_number = int(np.ravel_multi_index(place, stack)) if stack else 0
    target = out[tuple(p - r.start for p, r in zip(place, ranges, strict=False))]
    for block in range(real_rows.start // height, -(-real_rows.stop // height)):
      top = block * height
      generator = np.random.Philox(key=key, counter=[0, 0, matrix_number * blocks + block, 0])
      values = np.random.Generator(generator).standard_normal(
        (min(height, rows - top), columns), np.float32
      )
      first, last = max(top, real_rows.start), min(top + height, real_rows.stop)
      target[first - real_rows.start : last - real_rows.start, : len(real_columns)] = values[
        first - top : last - top, real_columns.start : real_columns.stop
      ] * np.float32(std)
  return out


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, computed in float32 (Zhang and Sennrich 1910.07467)."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes="-")

  def __call__(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
    return _normed(x_TD, self.scale[...])


@jax.custom_vjp
def _normed(x_TD, scale_D):
  """The backward pass is written out: left to itself JAX keeps three float32 copies of x, which in
  a stack of layers are written, copied and read (30 of 746 ms of the paper's 7B on v5p,
  compiler-estimated)."""
  return _normed_forward(x_TD, scale_D)[0]


def _normed_forward(x_TD, scale_D):
  x32_TD = x_TD.astype(jnp.float32)
  inverse_T = jax.lax.rsqrt(jnp.mean(jnp.square(x32_TD), axis=-1) + 1e-6)
  y_TD = x32_TD * inverse_T[:, None] * scale_D[None, :]
  return y_TD.astype(x_TD.dtype), (x_TD, inverse_T, scale_D)


def _normed_backward(residuals, dy_TD):
  x_TD, inverse_T, scale_D = residuals
  even_TD = x_TD.astype(jnp.float32) * inverse_T[:, None]
  dy32_TD = dy_TD.astype(jnp.float32)
  deven_TD = dy32_TD * scale_D[None, :]
  along_T = jnp.mean(deven_TD * even_TD, axis=-1)
  dx_TD = (deven_TD - even_TD * along_T[:, None]) * inverse_T[:, None]
  return dx_TD.astype(x_TD.dtype), jnp.sum(dy32_TD * even_TD, axis=0)


_normed.defvjp(_normed_forward, _normed_backward)
