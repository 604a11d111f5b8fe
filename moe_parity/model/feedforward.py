"""SwiGLU feed-forward (Shazeer 2002.05202): the dense layer's FFN and the shared expert."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from moe_parity.model.weights import matrix, ready


class FeedForward(nnx.Module):
  """silu(x W_gate) * (x W_up), then W_down: three matrices of d_model x width."""

  def __init__(self, d_model: int, width: int, num_layers: int):
    self.gate = matrix(d_model, width, axes="DF")
    self.up = matrix(d_model, width, axes="DF")
    self.down = matrix(width, d_model, axes="FD", scale=(2 * num_layers) ** -0.5)

  def __call__(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T D"]:
    dtype = x_TD.dtype
    hidden_TF = jax.nn.silu(x_TD @ ready(self.gate, dtype)) * (x_TD @ ready(self.up, dtype))
    return hidden_TF @ ready(self.down, dtype)
