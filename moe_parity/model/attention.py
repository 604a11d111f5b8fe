"""Causal self-attention: multi-head or grouped-query, with ALiBi, rotary or no positions.

Axis letters: B sequences, S positions, T tokens (B*S), D d_model, H heads, Q d_head,
N key-value heads, R query heads that share one of them (H = N*R).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_parity.kernels.common import attention_device
from moe_parity.kernels.cudnn_attention import cudnn_attention
from moe_parity.kernels.flash_attention import flash_attention
from moe_parity.kernels.splash_attention import splash_attention
from moe_parity.model.init import param
from moe_parity.model.options import ModelOptions
from moe_parity.planning.accounting import query_block
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.attention_choice import BLOCKS_SCOPE


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Slope of each head's linear penalty, [H] (Press et al. 2108.12409).

  For a power of two n they are 2^(-8/n), 2^(-16/n), ... Other counts (the paper has 11, 17, 19, 22
  heads) take the slopes of the power of two below, then every other slope of the one above.
  """
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  finer = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
  return np.array(slopes + finer[: num_heads - power], np.float32)


def rotate(
  x_BSHQ: Float[Array, "B S H Q"],
  base: float | int = 10_000.0,
  position_S: Int[Array, " S"] | None = None,
) -> Float[Array, "B S H Q"]:
  """Rotary position embedding (Su et al. 2104.09864); pairs are (q, q + d_head / 2).

  Args:
    base: of the frequencies base^(-q / (d_head / 2)).
    position_S: of each token; None counts from 0.
  """
  half = x_BSHQ.shape[-1] // 2
  frequency = float(base) ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if position_S is None:
    position_S = jnp.arange(x_BSHQ.shape[1], dtype=jnp.float32)
  angle_SQ = position_S.astype(jnp.float32)[:, None] * frequency[None, :]
  # Without the barrier XLA:CPU computes a sine and a cosine for every element of x.
  cos_SQ, sin_SQ = jax.lax.optimization_barrier((jnp.cos(angle_SQ), jnp.sin(angle_SQ)))
  return _rotate_pairs(x_BSHQ, cos_SQ, sin_SQ)


@jax.custom_vjp
def _rotate_pairs(x_BSHQ, cos_SQ, sin_SQ):
  """Each pair rotated by its angle. The gradient is the inverse rotation."""
  cos, sin = cos_SQ[None, :, None, :], sin_SQ[None, :, None, :]
  a, b = jnp.split(x_BSHQ.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_BSHQ.dtype)


_rotate_pairs.defvjp(
  lambda x, cos, sin: (_rotate_pairs(x, cos, sin), (cos, sin)),
  lambda angle, dy: (_rotate_pairs(dy, angle[0], -angle[1]), None, None),
)


@jax.custom_vjp
def attend(
  q_BNRSQ: Float[Array, "B N R S Q"],
  k_BNTQ: Float[Array, "B N T Q"],
  v_BNTQ: Float[Array, "B N T Q"],
  bias_NRST: Float[Array, "N R S T"],
  visible_BST: Bool[Array, "B S T"] | None = None,
) -> Float[Array, "B N R S Q"]:
  """softmax(q k + bias) v; scores and softmax in float32. The bias gets no gradient.

  The backward pass is written out: from the derived one, XLA:CPU computes the gradient of the
  scores twice, once for queries and once, transposed, for keys.

  Args:
    visible_BST: keys that a query attends to, at least one each; None for all.
  """
  return _attend(q_BNRSQ, k_BNTQ, v_BNTQ, bias_NRST, visible_BST)[0]


def _attend(q, k, v, bias, visible):
  scores = jnp.einsum("bnrsq,bntq->bnrst", q, k, preferred_element_type=jnp.float32) + bias[None]
  if visible is not None:
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum("bnrst,bntq->bnrsq", weights, v), (q, k, v, weights)


def _attend_backward(residuals, dy):
  q, k, v, weights = residuals
  # dv and dk transpose the narrow operand and result: for the rows of a transposed [S, T], XLA:CPU
  # copies all of it.
  dv = jnp.einsum("bnrsq,bnrst->bnqt", dy, weights).swapaxes(2, 3)
  dweights = jnp.einsum("bnrsq,bntq->bnrst", dy, v, preferred_element_type=jnp.float32)
  weighted = weights.astype(jnp.float32) * dweights
  dscores = weighted - weights.astype(jnp.float32) * jnp.sum(weighted, axis=-1, keepdims=True)
  dscores = jax.lax.optimization_barrier(dscores.astype(q.dtype))
  dq = jnp.einsum("bnrst,bntq->bnrsq", dscores, k)
  dk = jnp.einsum("bnrsq,bnrst->bnqt", q, dscores).swapaxes(2, 3)
  return dq, dk, dv, None, None


attend.defvjp(_attend, _attend_backward)


def causal_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  k_BSNQ: Float[Array, "B S N Q"],
  v_BSNQ: Float[Array, "B S N Q"],
  slope_H: np.ndarray | None,
  block_size: int,
  document_BS: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H Q"]:
  """softmax(q k / sqrt(Q) - slope * distance) v, causal.

  Queries are computed in blocks, each against the keys up to its end, so that less than the full
  S*S product is computed.

  Args:
    slope_H: ALiBi slopes; None for none.
    block_size: queries in a block, a divisor of S.
    document_BS: which document each position is in, if attention must not cross documents.
  """
  B, S, H, Q = q_BSHQ.shape
  N = k_BSNQ.shape[2]
  R = H // N
  slope_NR = np.zeros((N, R), np.float32) if slope_H is None else slope_H.reshape(N, R)
  q_BNRSQ = (q_BSHQ * Q**-0.5).reshape(B, S, N, R, Q).transpose(0, 2, 3, 1, 4)
  k_BNSQ, v_BNSQ = k_BSNQ.transpose(0, 2, 1, 3), v_BSNQ.transpose(0, 2, 1, 3)
  blocks = []
  for start in range(0, S, block_size):
    stop = start + block_size
    distance_ST = jnp.arange(start, stop)[:, None] - jnp.arange(stop)[None, :]
    penalty = -slope_NR[:, :, None, None] * distance_ST.astype(jnp.float32)[None, None]
    bias_NRST = jnp.where((distance_ST >= 0)[None, None], penalty, -jnp.inf)
    visible_BST = None
    if document_BS is not None:
      visible_BST = document_BS[:, start:stop, None] == document_BS[:, None, :stop]
    q, k, v = q_BNRSQ[:, :, :, start:stop], k_BNSQ[:, :, :stop], v_BNSQ[:, :, :stop]
    with jax.named_scope(BLOCKS_SCOPE):
      blocks.append(attend(q, k, v, bias_NRST, visible_BST))
  return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, S, H, Q)


class KeyValues(NamedTuple):
  """Keys (after rotary embedding) and values of T positions of one layer, by head; of stacked
  layers with an axis in front."""

  k_BNTQ: Float[Array, "*layers B N T Q"]
  v_BNTQ: Float[Array, "*layers B N T Q"]


class Past(NamedTuple):
  """What new tokens attend to in addition to themselves: the cache of one layer.

  Attributes:
    cached: slot t holds position t of its sequence; slots from a sequence's first new position on
      hold any finite numbers.
    position_BS: of the new tokens; below T and increasing by one.
    document_BT: which document each position is in, the new ones included; None where attention
      crosses documents.
  """

  cached: KeyValues
  position_BS: Int[Array, "B S"]
  document_BT: Int[Array, "B T"] | None = None


def by_head(k_BSNQ: Float[Array, "B S N Q"], v_BSNQ: Float[Array, "B S N Q"]) -> KeyValues:
  """Keys and values of tokens in the layout of a cache."""
  return KeyValues(k_BSNQ.transpose(0, 2, 1, 3), v_BSNQ.transpose(0, 2, 1, 3))


def update_cache(cached: KeyValues, new: KeyValues, position_BS: Int[Array, "B S"]) -> KeyValues:
  """The cache with the keys and values of new tokens written to the slots of their positions.

  Args:
    cached, new: of one layer or of stacked ones; `new` has S in place of T.
  """
  axis = cached.k_BNTQ.ndim - 4

  def update_one(cached, new, position_S):
    return cached.at[..., position_S, :].set(new, mode="promise_in_bounds", unique_indices=True)

  update = jax.vmap(update_one, in_axes=(axis, axis, 0), out_axes=axis)
  return KeyValues(*(update(c, n, position_BS) for c, n in zip(cached, new, strict=True)))


def cached_attention(
  q_BSHQ: Float[Array, "B S H Q"],
  new: KeyValues,
  past: Past,
  slope_H: np.ndarray | None,
) -> Float[Array, "B S H Q"]:
  """`causal_attention` of new tokens to a layer's cache and to themselves.

  Computes scores of all T slots and masks those after a token's own position.
  """
  B, S, H, Q = q_BSHQ.shape
  k_BNTQ, v_BNTQ = update_cache(past.cached, new, past.position_BS)
  N, T = k_BNTQ.shape[1:3]
  slope_NR = np.zeros((N, H // N), np.float32) if slope_H is None else slope_H.reshape(N, H // N)
  q_BNRSQ = (q_BSHQ * Q**-0.5).reshape(B, S, N, H // N, Q).transpose(0, 2, 3, 1, 4)
  distance_BST = past.position_BS[:, :, None] - jnp.arange(T, dtype=jnp.int32)[None, None, :]
  visible_BST = distance_BST >= 0
  if past.document_BT is not None:
    own_BS = jnp.take_along_axis(past.document_BT, past.position_BS, axis=1)
    visible_BST &= own_BS[:, :, None] == past.document_BT[:, None, :]

  def attend_one(q_NRSQ, k_NTQ, v_NTQ, distance_ST, visible_ST):
    bias_NRST = -slope_NR[:, :, None, None] * distance_ST.astype(jnp.float32)[None, None]
    return attend(q_NRSQ[None], k_NTQ[None], v_NTQ[None], bias_NRST, visible_ST[None])[0]

  y_BNRSQ = jax.vmap(attend_one)(q_BNRSQ, k_BNTQ, v_BNTQ, distance_BST, visible_BST)
  return y_BNRSQ.transpose(0, 3, 1, 2, 4).reshape(B, S, H, Q)


class Attention(nnx.Module):
  """Four projections around `causal_attention` or a fused form of it. No biases (paper, 3)."""

  def __init__(self, architecture: Architecture, options: ModelOptions):
    d, q = architecture.d_model, architecture.d_head
    self.num_heads, self.num_kv_heads = architecture.num_heads, architecture.num_kv_heads
    self.options = options
    self.query = param(d, self.num_heads * q, axes="DH")
    self.key = param(d, self.num_kv_heads * q, axes="DN")
    self.value = param(d, self.num_kv_heads * q, axes="DN")
    shrink = (2 * architecture.num_layers) ** -0.5  # keeps the residual stream's variance near 1
    self.out = param(self.num_heads * q, d, axes="HD", scale=shrink)

  def __call__(
    self,
    x_TD: Float[Array, "T D"],
    batch: int,
    document_BS: Int[Array, "B S"] | None = None,
    past: Past | None = None,
  ) -> tuple[Float[Array, "T D"], tuple[Float[Array, "B S N Q"], Float[Array, "B S N Q"]]]:
    """Attention of `batch` sequences that lie end to end in x_TD.

    Flat, because XLA:CPU computes the weight gradients of [B, S, D] activations far slower in
    bfloat16.

    Args:
      document_BS: which document each position is in; for sequences without `past`.
      past: the cache of the positions before x_TD; None where x_TD starts its sequences.
    Returns:
      y_TD; keys and values of these tokens (`by_head` gives a cache's layout).
    """
    T, S = x_TD.shape[0], x_TD.shape[0] // batch
    q = (x_TD @ self.query.astype(x_TD.dtype)).reshape(batch, S, self.num_heads, -1)
    k = (x_TD @ self.key.astype(x_TD.dtype)).reshape(batch, S, self.num_kv_heads, -1)
    v = (x_TD @ self.value.astype(x_TD.dtype)).reshape(batch, S, self.num_kv_heads, -1)
    if self.options.position == "rope" and past is None:
      q, k = (rotate(x, self.options.rope_base) for x in (q, k))
    elif self.options.position == "rope":
      q, k = (_rotate_at(x, past.position_BS, self.options.rope_base) for x in (q, k))
    slopes = alibi_slopes(self.num_heads) if self.options.position == "alibi" else None
    if past is not None:
      y = cached_attention(q, by_head(k, v), past, slopes)
    else:
      choice = self.options.attention_choice(attention_device(), S, q.shape[3])
      y = self._attend(choice.implementation, q, k, v, slopes, document_BS)
    return y.reshape(T, -1) @ self.out.astype(x_TD.dtype), (k, v)

  def _attend(self, implementation, q, k, v, slopes, document_BS):
    """Causal attention by an implementation of `planning/attention_choice.py`."""
    if implementation == "blocks":
      block = query_block(q.shape[1], self.options.attention_block)
      return causal_attention(q, k, v, slopes, block, document_BS)
    fused = {"cudnn": cudnn_attention, "flash": flash_attention, "splash": splash_attention}
    return fused[implementation](q, k, v, slopes, document_BS)


def _rotate_at(x_BSHQ, position_BS, base):
  """`rotate` with positions of each sequence."""

  def rotate_one(x_SHQ, position_S):
    return rotate(x_SHQ[None], base, position_S)[0]

  return jax.vmap(rotate_one)(x_BSHQ, position_BS)
