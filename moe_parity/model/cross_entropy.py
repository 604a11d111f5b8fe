"""Cross-entropy, -ln p(target) in nats, from final activations and the output matrix (head).

At most MAX_LOGITS_IN_MEMORY logits exist at a time (on a TPU MAX_LOGITS_ON_TPU), so that a large
vocabulary does not decide the memory of a step. The loss of a step is a weighted sum of token
losses. Its gradients are computed in the forward pass while the logits exist, up to the one factor
that the sum's own gradient is: so no logits are computed twice.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_parity.kernels.common import platform
from moe_parity.planning.memory import MAX_LOGITS_IN_MEMORY, MAX_LOGITS_ON_TPU


def logits(hidden_TD: Float[Array, "T D"], head_DV: Float[Array, "D V"]) -> Float[Array, "T V"]:
  """Logits of the next token, float32."""
  return jnp.matmul(hidden_TD, head_DV, preferred_element_type=jnp.float32)


def token_nll(
  hidden_TD: Float[Array, "T D"],
  targets_T: Int[Array, " T"],
  head_DV: Float[Array, "D V"],
  max_logits: int | None = None,
) -> Float[Array, " T"]:
  """-ln p(target) of every token, float32."""
  num_chunks = _num_chunks(hidden_TD.shape[0], head_DV.shape[1], max_logits)
  if num_chunks == 1:
    return _nll(hidden_TD, targets_T, head_DV)[0]
  chunks = _chunks(num_chunks, hidden_TD, targets_T)
  return jax.lax.map(lambda chunk: _nll(*chunk, head_DV)[0], chunks).reshape(-1)


def token_scores(
  hidden_TD: Float[Array, "T D"],
  targets_T: Int[Array, " T"],
  head_DV: Float[Array, "D V"],
  max_logits: int | None = None,
) -> tuple[Float[Array, " T"], Bool[Array, " T"]]:
  """-ln p(target) of every token, float32, and whether no other token is more likely."""

  def scores(hidden_TD, targets_T):
    nll_T, logit_TV, _ = _nll(hidden_TD, targets_T, head_DV)
    return nll_T, jnp.argmax(logit_TV, axis=-1) == targets_T

  num_chunks = _num_chunks(hidden_TD.shape[0], head_DV.shape[1], max_logits)
  if num_chunks == 1:
    return scores(hidden_TD, targets_T)
  chunks = _chunks(num_chunks, hidden_TD, targets_T)
  nll, is_top = jax.lax.map(lambda chunk: scores(*chunk), chunks)
  return nll.reshape(-1), is_top.reshape(-1)


def weighted_nll(
  hidden_TD: Float[Array, "T D"],
  targets_T: Int[Array, " T"],
  weight_T: Float[Array, " T"],
  head_DV: Float[Array, "D V"],
  max_logits: int | None = None,
) -> Float[Array, ""]:
  """Sum of weight * -ln p(target), float32. Weights get no gradient."""
  weight_T = jax.lax.stop_gradient(weight_T)
  num_chunks = _num_chunks(hidden_TD.shape[0], head_DV.shape[1], max_logits)
  if num_chunks == 1:
    return jnp.sum(weight_T * _nll(hidden_TD, targets_T, head_DV)[0])
  return _chunked_sum(num_chunks, hidden_TD, targets_T, weight_T, head_DV)


def _num_chunks(num_tokens: int, vocab_size: int, max_logits: int | None) -> int:
  """The fewest equal chunks of tokens with at most `max_logits` logits each (or a token each); None
  is the platform's number."""
  if max_logits is None:
    max_logits = MAX_LOGITS_ON_TPU if platform() == "tpu" else MAX_LOGITS_IN_MEMORY
  divisors = (n for n in range(1, num_tokens + 1) if num_tokens % n == 0)
  return next(n for n in divisors if num_tokens // n * vocab_size <= max_logits or n == num_tokens)


def _chunks(num: int, *token_arrays):
  return tuple(x.reshape(num, -1, *x.shape[1:]) for x in token_arrays)


def _nll(hidden_TD, targets_T, head_DV):
  """-ln p(target), the logits, and the logarithm of the sum of their exponentials."""
  logit_TV = logits(hidden_TD, head_DV)
  chosen_T = jnp.take_along_axis(logit_TV, targets_T[:, None], axis=-1)[:, 0]
  logsumexp_T = jax.nn.logsumexp(logit_TV, axis=-1)
  return logsumexp_T - chosen_T, logit_TV, logsumexp_T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_sum(num_chunks, hidden_TD, targets_T, weight_T, head_DV):
  chunks = _chunks(num_chunks, hidden_TD, targets_T, weight_T)

  def add(total, chunk):
    hidden_TD, targets_T, weight_T = chunk
    return total + jnp.sum(weight_T * _nll(hidden_TD, targets_T, head_DV)[0]), None

  return jax.lax.scan(add, jnp.zeros((), jnp.float32), chunks)[0]


def _chunked_sum_forward(num_chunks, hidden_TD, targets_T, weight_T, head_DV):
  """Also the sum's gradients by hidden activations and head, in their dtypes.

  The head's is summed over chunks in float32: a sum of hundreds in bfloat16 stops growing.
  """
  chunks = _chunks(num_chunks, hidden_TD, targets_T, weight_T)
  token_V = jnp.arange(head_DV.shape[1], dtype=targets_T.dtype)

  def add(carry, chunk):
    total, dhead_DV = carry
    hidden_TD, targets_T, weight_T = chunk
    nll_T, logit_TV, logsumexp_T = _nll(hidden_TD, targets_T, head_DV)
    one_hot_TV = (targets_T[:, None] == token_V[None]).astype(jnp.float32)
    dlogit_TV = weight_T[:, None] * (jnp.exp(logit_TV - logsumexp_T[:, None]) - one_hot_TV)
    # The barrier writes it once: otherwise both products below compute it again, and run slower.
    dlogit_TV = jax.lax.optimization_barrier(dlogit_TV.astype(hidden_TD.dtype))
    dhead_DV += jnp.matmul(hidden_TD.T, dlogit_TV, preferred_element_type=jnp.float32)
    return (total + jnp.sum(weight_T * nll_T), dhead_DV), jnp.matmul(dlogit_TV, head_DV.T)

  start = jnp.zeros((), jnp.float32), jnp.zeros(head_DV.shape, jnp.float32)
  (total, dhead_DV), dhidden_TD = jax.lax.scan(add, start, chunks)
  return total, (dhidden_TD.reshape(hidden_TD.shape), dhead_DV.astype(head_DV.dtype))


def _chunked_sum_backward(num_chunks, gradients, dtotal):
  # Rounded once: a factor rounded to bfloat16 would scale all gradients by up to 0.4 %.
  dhidden_TD, dhead_DV = ((g.astype(jnp.float32) * dtotal).astype(g.dtype) for g in gradients)
  return dhidden_TD, None, None, dhead_DV


_chunked_sum.defvjp(_chunked_sum_forward, _chunked_sum_backward)
