"""How a weight is born: its distribution, and the axis letters that say where it may be split.

A module is built with weights that are all zero, and costs nothing; `draw` fills them in. Drawing
is left to NumPy's counter-based Philox: the same seed gives the same weights on every platform and
mesh, and nothing is compiled for it (XLA:CPU takes ten seconds over the same job).
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def matrix(*shape: int, axes: str, scale: float = 1.0, fan_in: int = 0) -> nnx.Param:
  """A float32 weight to be drawn from a normal of standard deviation `scale / sqrt(fan_in)`.

  Args:
    shape: [..., fan_in, fan_out]; leading axes are stacked copies (experts).
    axes: one letter an axis (legend in STYLE: D d_model, H heads, F d_ffn, E experts, I d_expert),
      kept with the parameter for the table that maps letters to mesh axes.
    scale: 1 / sqrt(2 * num_layers) for what writes into the residual stream.
    fan_in: where it is not the last axis but one.
  """
  std = scale * (fan_in or shape[-2]) ** -0.5
  return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes, std=std)


def draw(abstract: nnx.State, seed: int) -> nnx.State:
  """Initial values of an abstract state: normal where a `std` is noted, else one (norm scales).

  Every leaf has a stream of its own, named by the seed and the leaf's path.
  """

  def leaf(path, variable: nnx.Variable):
    std = variable.get_metadata().get("std")
    shape = variable.get_value().shape
    if std is None:
      return variable.replace(np.ones(shape, np.float32))
    stream = zlib.crc32("/".join(map(str, path)).encode())
    normal = np.random.Generator(np.random.Philox(key=[seed, stream]))
    return variable.replace(normal.standard_normal(shape, np.float32) * np.float32(std))

  flat = nnx.to_flat_state(abstract)
  return nnx.from_flat_state([(path, leaf(path, variable)) for path, variable in flat])


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, computed in float32 (Zhang and Sennrich 1910.07467)."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes="D")

  def __call__(self, x):
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    return (x32 * inverse * self.scale[None, :]).astype(x.dtype)
