"""RMSNorm, with a written-out backward pass."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, computed in float32 (Zhang and Sennrich 1910.07467)."""

  def __init__(self, width: int, epsilon: float = 1e-6):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes="-")

  def __call__(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
    return rms_norm(x_TD, self.scale[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(
  x_TD: Float[Array, "T D"], scale_D: Float[Array, " D"], epsilon: float = 1e-6
) -> Float[Array, "T D"]:
  """See `RMSNorm`. The only residual of x's size is x itself: derived by JAX, the backward pass
  saves three float32 copies of it, which a stack of layers writes and reads in every step.

  Args:
    epsilon: added to the mean square.
  """
  return _forward(x_TD, scale_D, epsilon)[0]


def _forward(x_TD, scale_D, epsilon):
  x32_TD = x_TD.astype(jnp.float32)
  inverse_rms_T = jax.lax.rsqrt(jnp.mean(jnp.square(x32_TD), axis=-1) + epsilon)
  y_TD = x32_TD * inverse_rms_T[:, None] * scale_D[None, :]
  return y_TD.astype(x_TD.dtype), (x_TD, inverse_rms_T, scale_D)


def _backward(epsilon, residuals, dy_TD):
  x_TD, inverse_rms_T, scale_D = residuals
  unit_TD = x_TD.astype(jnp.float32) * inverse_rms_T[:, None]
  dy32_TD = dy_TD.astype(jnp.float32)
  dunit_TD = dy32_TD * scale_D[None, :]
  row_dot_T = jnp.mean(dunit_TD * unit_TD, axis=-1)
  dx_TD = (dunit_TD - unit_TD * row_dot_T[:, None]) * inverse_rms_T[:, None]
  return dx_TD.astype(x_TD.dtype), jnp.sum(dy32_TD * unit_TD, axis=0)


rms_norm.defvjp(_forward, _backward)
