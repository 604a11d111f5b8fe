"""SwiGLU feed-forward (Shazeer 2002.05202): the dense layer's FFN and the shared expert."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from moe_parity.model.init import param


class FeedForward(nnx.Module):
  """silu(x W_gate) * (x W_up), then W_down: three matrices of d_model x width."""

  def __init__(self, d_model: int, width: int, num_layers: int):
    self.gate = param(d_model, width, axes="DF")
    self.up = param(d_model, width, axes="DF")
    self.down = param(width, d_model, axes="FD", scale=(2 * num_layers) ** -0.5)

  def __call__(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
    dtype = x_TD.dtype
    hidden_TF = swiglu(x_TD @ self.gate.astype(dtype), x_TD @ self.up.astype(dtype))
    return hidden_TF @ self.down.astype(dtype)


@jax.custom_vjp
def swiglu(gate_TF: Float[Array, "T F"], up_TF: Float[Array, "T F"]) -> Float[Array, "T F"]:
  """silu(gate) * up, computed in float32. Only its arguments are residuals: derived by JAX, the
  backward pass saves three more values a hidden channel."""
  return _forward(gate_TF, up_TF)[0]


def _forward(gate_TF, up_TF):
  gate, up = gate_TF.astype(jnp.float32), up_TF.astype(jnp.float32)
  return (jax.nn.silu(gate) * up).astype(gate_TF.dtype), (gate_TF, up_TF)


def _backward(residuals, dy_TF):
  gate, up, dy = (a.astype(jnp.float32) for a in (*residuals, dy_TF))
  sigmoid = jax.nn.sigmoid(gate)
  dgate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
  return dgate.astype(dy_TF.dtype), (dy * gate * sigmoid).astype(dy_TF.dtype)


swiglu.defvjp(_forward, _backward)
