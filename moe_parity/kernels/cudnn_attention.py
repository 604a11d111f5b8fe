"""Causal attention by cuDNN's fused kernels on NVIDIA GPUs: scores never reach HBM.

ALiBi comes as channels of q and k (`alibi_columns.py`). As a bias it would be S x S numbers a head
in HBM, with a gradient of the same size that cuDNN always computes. `MaskType.ALIBI` of JAX's cuDNN
bindings is no way either: XLA sets neither a causal mask nor the penalty for it, and attention is
then silently full.
"""

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from moe_parity.kernels.alibi_columns import append_columns, pad_channels
from moe_parity.planning.attention_choice import CUDNN_MULTIPLE


def cudnn_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  v_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  document_BS: Int[Array, "B S"] | None = None,
  *,
  implementation: str = "cudnn",
) -> Float[Array, "B S H Q"]:
  """Causal attention as `attention.causal_attention` defines it, in bfloat16.

  Args:
    slope_H: ALiBi's slopes; None for no penalty.
    document_BS: document ids; a position attends only within its own document. They become a
      boolean mask of S x S values a sequence, shared by its heads.
    implementation: of `jax.nn.dot_product_attention`; "xla" computes the same on any device.
  """
  Q = q_BSHQ.shape[3]
  scale = Q**-0.5
  q_BSHW, k_BSNW = append_columns(q_BSHQ, k_BSNQ, slope_H, scale, CUDNN_MULTIPLE)
  v_BSNW = pad_channels(v_BSNQ, q_BSHW.shape[3])  # one width for all three
  mask_B1SS = None
  if document_BS is not None:
    mask_B1SS = (document_BS[:, :, None] == document_BS[:, None, :])[:, None]
  y_BSHW = jax.nn.dot_product_attention(
    q_BSHW,
    k_BSNW,
    v_BSNW,
    mask=mask_B1SS,
    scale=scale,
    is_causal=True,
    implementation=implementation,
  )
  return y_BSHW[..., :Q]
