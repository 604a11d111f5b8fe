"""SwiGLU of all experts as batched products over their slots: [E, C, D] in, [E, C, D] out.

The hidden layer is stored transposed, [E, H, C] with slots last; H = 2 * I, gate rows then up rows.
Gate and up are then contiguous, a routing weight per slot is a vector along them, and a sum over I
adds rows, so XLA:CPU vectorizes everything between the products. The products themselves cost the
same either way.

The routing weight multiplies the narrow hidden layer, not the wide output: combining is then a
plain sum, and the weight's gradient is computed from the hidden layer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_parity.experts.permute import barrier
from moe_parity.kernels.common import swiglu_gate_gradient


def _product(axes, a, b, dtype):
  return jnp.einsum(axes, a, b, preferred_element_type=dtype)


def _split_gate_up(h_EHC):
  """Gate and up in float32, [E, I, C] each."""
  gate, up = jnp.split(h_EHC, 2, axis=1)
  return gate.astype(jnp.float32), up.astype(jnp.float32)


def forward(
  x_ECD: Float[Array, "E C D"],
  weight_EC: Float[Array, "E C"],
  w_in_EHD: Float[Array, "E H D"],
  w_down_EID: Float[Array, "E I D"],
):
  """weight * down(silu(gate(x)) * up(x)), and the saved residual.

  Returns:
    y_ECD in the dtype of x, and h_EHC: the hidden layer before the activation.
  """
  dtype = x_ECD.dtype
  h_EHC = barrier(_product("EHD,ECD->EHC", w_in_EHD, x_ECD, dtype))
  gate, up = _split_gate_up(h_EHC)
  s_EIC = (jax.nn.silu(gate) * up * weight_EC[:, None, :]).astype(dtype)
  return _product("EIC,EID->ECD", s_EIC, w_down_EID, dtype), h_EHC


def backward(
  dy_ECD: Float[Array, "E C D"],
  x_ECD: Float[Array, "E C D"],
  weight_EC: Float[Array, "E C"],
  w_in_EHD: Float[Array, "E H D"],
  w_down_EID: Float[Array, "E I D"],
  h_EHC: Float[Array, "E H C"],
):
  """Gradients of `forward` for x (its dtype), weight, w_in and w_down (float32)."""
  dtype = x_ECD.dtype
  weight_E1C = weight_EC[:, None, :]
  ds_EIC = barrier(_product("EID,ECD->EIC", w_down_EID, dy_ECD, dtype)).astype(jnp.float32)
  gate, up = _split_gate_up(
    barrier(h_EHC)
  )  # recomputed, where XLA would save what forward computed
  sigmoid = jax.nn.sigmoid(gate)
  a_EIC = barrier((gate * sigmoid * up).astype(dtype)).astype(jnp.float32)
  dweight_EC = (ds_EIC * a_EIC).sum(1)
  s_EIC = (a_EIC * weight_E1C).astype(dtype)
  da_EIC = ds_EIC * weight_E1C
  dgate = swiglu_gate_gradient(da_EIC, gate, up, sigmoid)
  dup = da_EIC * gate * sigmoid
  dh_EHC = barrier(jnp.concatenate([dgate.astype(dtype), dup.astype(dtype)], axis=1))
  dx_ECD = _product("EHC,EHD->ECD", dh_EHC, w_in_EHD, dtype)
  dw_in_EHD = _product("EHC,ECD->EHD", dh_EHC, x_ECD, jnp.float32)
  dw_down_EID = _product("EIC,ECD->EID", s_EIC, dy_ECD, jnp.float32)
  return dx_ECD, dweight_EC, dw_in_EHD, dw_down_EID
