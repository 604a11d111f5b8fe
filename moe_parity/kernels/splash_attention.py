"""Causal attention by JAX's splash kernels on TPUs, maintained there: a fall-back for ours.

Splash attention takes [H, S, Q] and has no bias, so operands are transposed and ALiBi comes as
channels of q and k (`alibi_columns.py`), which widens heads of 128 to 256 there.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from moe_parity.kernels.alibi_columns import append_columns, pad_channels
from moe_parity.kernels.common import interpret
from moe_parity.planning.tpu_slices import LANES

BLOCKS = (512, 256, 128)  # positions at a time: the first that divides S, as in `flash_attention`


def splash_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  v_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  document_BS: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H Q"]:
  """Causal attention as `attention.causal_attention` defines it; S is a multiple of 128.

  Args:
    slope_H: ALiBi's slopes; None for no penalty.
    document_BS: document ids; a position attends only within its own document.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  (_, S, H, Q), scale = q_BSHQ.shape, q_BSHQ.shape[3] ** -0.5
  # The kernel scales nothing. Scaled columns round to bfloat16 as unscaled ones would.
  q_BSHW, k_BSNW = append_columns(q_BSHQ * scale, k_BSNQ, slope_H, 1.0, LANES)
  v_BSNW = pad_channels(v_BSNQ, LANES * -(-Q // LANES))
  q_BHSW, k_BNSW, v_BNSW = (x.transpose(0, 2, 1, 3) for x in (q_BSHW, k_BSNW, v_BSNW))
  attend = _kernel(S, H, interpret())
  if document_BS is None:
    y_BHSW = jax.vmap(attend)(q_BHSW, k_BNSW, v_BNSW)
  else:
    segments = splash.SegmentIds(document_BS, document_BS)
    y_BHSW = jax.vmap(lambda q, k, v, ids: attend(q, k, v, segment_ids=ids))(
      q_BHSW, k_BNSW, v_BNSW, segments
    )
  return y_BHSW.transpose(0, 2, 1, 3)[..., :Q]


def _kernel(seq_len: int, num_heads: int, is_interpreted: bool):
  """JAX's kernel for one sequence: (q [H S W], k [N S W], v) -> [H S W]."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  block = next(size for size in BLOCKS if seq_len % size == 0)
  fields = (field.name for field in dataclasses.fields(splash.BlockSizes))
  sizes = dict.fromkeys((name for name in fields if name.startswith("block_")), block)
  causal = masks.CausalMask((seq_len, seq_len))
  return splash.make_splash_mha(
    masks.MultiHeadMask([causal] * num_heads),
    block_sizes=splash.BlockSizes(**sizes),
    head_shards=1,
    q_seq_shards=1,
    interpret=is_interpreted,
  )
