"""How a weight is born: its distribution, and the axis letters that say where it may be split."""

import jax
import jax.numpy as jnp
from flax import nnx


def matrix(rngs: nnx.Rngs, *shape: int, axes: str, scale: float = 1.0, fan_in: int = 0):
  """A float32 weight, normal with standard deviation `scale / sqrt(fan_in)`.

  Args:
    shape: [..., fan_in, fan_out]; leading axes are stacked copies (experts).
    fan_in: where it is not the last axis but one.
    axes: one letter an axis (legend in STYLE: D d_model, H heads, F d_ffn, E experts, I d_expert),
      kept with the parameter for the table that maps letters to mesh axes.
    scale: 1 / sqrt(2 * num_layers) for what writes into the residual stream.
  """
  std = scale * (fan_in or shape[-2]) ** -0.5
  return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, computed in float32 (Zhang and Sennrich 1910.07467)."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes="D")

  def __call__(self, x):
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    return (x32 * inverse * self.scale[None, :]).astype(x.dtype)
