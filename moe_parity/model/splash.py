"""Causal attention by JAX's splash kernel for TPUs: scores stay on the chip.

The kernel takes no bias, and ALiBi needs none: within a query's row, -slope (i - j) differs from
slope j by a constant, which softmax takes out again. So four columns are put behind every head of
q and k, whose product is slope j: slope as the sum of two bfloat16, j as 256 times a byte and a
byte, each exact in bfloat16 up to S = 65,536. They cost nothing but the padding to whole 128s that
the matrix unit would do anyway where a head has 128 channels: twice the q k product.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float, Int

LANES = 128  # a sequence has to be a multiple of this
BLOCKS = (1024, 512, 256, 128)


def splash_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  v_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  document_BS: Int[Array, "B S"] | None = None,
  *,
  block: int = 0,
  interpret: bool = False,
) -> Float[Array, "B S H Q"]:
  """`attention.causal_attention` in one kernel, of the sequences at hand.

  Args:
    block: rows of q and of k at a time; 0 is the largest of BLOCKS that divides S.
    interpret: run the kernel's program step by step on any platform, for tests.
  """
  q_BSHQ = q_BSHQ * q_BSHQ.shape[-1] ** -0.5
  if slope_H is not None:
    q_BSHQ, k_BSNQ = with_alibi(q_BSHQ, k_BSNQ, slope_H)
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BSHQ, k_BSNQ, v_BSNQ))
  size = block or next(size for size in BLOCKS if q.shape[2] % size == 0)
  run = kernel(q.shape[1], q.shape[2], size, interpret)
  if document_BS is None:
    return jax.vmap(run)(q, k, v).transpose(0, 2, 1, 3)
  segments = splash.SegmentIds(document_BS, document_BS)
  return jax.vmap(run)(q, k, v, segments).transpose(0, 2, 1, 3)


def with_alibi(q_BSHQ, k_BSNQ, slope_H: np.ndarray):
  """q and k with the columns whose product is slope * position, padded to whole lanes."""
  dtype, (S, Q) = q_BSHQ.dtype, q_BSHQ.shape[1::2]
  high_H = slope_H.astype(jnp.bfloat16).astype(np.float32)
  low_H = slope_H - high_H
  position_S = np.arange(S)
  byte_S, rest_S = position_S // 256 * 256, position_S % 256
  q_HC = np.stack([high_H, high_H, low_H, low_H], axis=-1)
  k_SC = np.stack([byte_S, rest_S, byte_S, rest_S], axis=-1)
  width = -(-(Q + 4) // LANES) * LANES - Q

  def widened(x, columns):
    # Padded and added to, which XLA fuses with what comes next; it copies a concatenation.
    tail = np.zeros((*columns.shape[:-1], Q + width), np.float32)
    tail[..., Q : Q + 4] = columns
    return jnp.pad(x, ((0, 0),) * 3 + ((0, width),)) + jnp.asarray(tail, dtype)

  return widened(q_BSHQ, q_HC[None, None]), widened(k_BSNQ, k_SC[None, :, None])


@functools.cache
def kernel(num_heads: int, seq_len: int, size: int, interpret: bool):
  """The compiled-in causal mask and block sizes for [H, S, Q] operands."""
  blocks = splash.BlockSizes(
    block_q=size, block_kv=size, block_kv_compute=min(size, 512),
    block_q_dkv=size, block_kv_dkv=size, block_kv_dkv_compute=min(size, 512),
    block_q_dq=size, block_kv_dq=size,
  )  # fmt: skip
  mask = splash.MultiHeadMask([splash.CausalMask((seq_len, seq_len))] * num_heads)
  with jax.ensure_compile_time_eval():  # its tables are constants, not values of one trace
    return splash.make_splash_mha(
      mask=mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
    )
