"""-ln p(target) from final activations and a whole head, with few logits at a time.

At most LOGITS_AT_ONCE logits exist at a time, so that a vocabulary of 65,536 does not decide the
memory of a step. What a step minimises is a weighted sum of these, whose gradients can be had while
the logits are at hand, up to the one number the sum's own gradient will turn out to be: so they are
made in the forward pass, and no logits twice: 25 ms of the paper's 7B on v5p (compiler-estimated)
where it was 30.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_parity.planning.memory import LOGITS_AT_ONCE


def logits(hidden_TD: Float[Array, "T D"], head_DV: Float[Array, "D V"]) -> Float[Array, "T V"]:
  """Logits of the next token, float32."""
  return jnp.matmul(hidden_TD, head_DV, preferred_element_type=jnp.float32)


def token_nats(
  hidden_TD: Float[Array, "T D"], targets_T: Int[Array, " T"], head_DV: Float[Array, "D V"]
) -> Float[Array, " T"]:
  """-ln p(target) of every token, float32."""
  pieces = _pieces(hidden_TD.shape[0], head_DV.shape[1], hidden_TD, targets_T)
  if pieces is None:
    return _nats(hidden_TD, targets_T, head_DV)[0]
  return jax.lax.map(lambda piece: _nats(*piece, head_DV)[0], pieces).reshape(-1)


def summed_nats(
  hidden_TD: Float[Array, "T D"],
  targets_T: Int[Array, " T"],
  weight_T: Float[Array, " T"],
  head_DV: Float[Array, "D V"],
) -> Float[Array, ""]:
  """sum of weight * -ln p(target). Weights get no gradient."""
  weight_T = jax.lax.stop_gradient(weight_T)
  if _pieces(hidden_TD.shape[0], head_DV.shape[1]) is None:
    return jnp.sum(weight_T * _nats(hidden_TD, targets_T, head_DV)[0])
  return _summed(hidden_TD, targets_T, weight_T, head_DV)


def _pieces(num_tokens: int, vocabulary: int, *of_tokens):
  """Arrays of tokens cut so that a piece has few enough logits; None if it takes no cut."""
  divisors = (n for n in range(1, num_tokens + 1) if num_tokens % n == 0)
  number = next(
    n for n in divisors if num_tokens // n * vocabulary <= LOGITS_AT_ONCE or n == num_tokens
  )
  if number == 1:
    return None
  return tuple(x.reshape(number, -1, *x.shape[1:]) for x in of_tokens)


def _nats(hidden_TD, targets_T, head_DV):
  """nats, logits and the logarithm of the sum of their exponentials."""
  logit_TV = logits(hidden_TD, head_DV)
  chosen_T = jnp.take_along_axis(logit_TV, targets_T[:, None], axis=-1)[:, 0]
  logsumexp_T = jax.nn.logsumexp(logit_TV, axis=-1)
  return logsumexp_T - chosen_T, logit_TV, logsumexp_T


@jax.custom_vjp
def _summed(hidden_TD, targets_T, weight_T, head_DV):
  pieces = _pieces(hidden_TD.shape[0], head_DV.shape[1], hidden_TD, targets_T, weight_T)

  def add(total, piece):
    hidden_TD, targets_T, weight_T = piece
    return total + jnp.sum(weight_T * _nats(hidden_TD, targets_T, head_DV)[0]), None

  return jax.lax.scan(add, jnp.zeros((), jnp.float32), pieces)[0]


def _summed_forward(hidden_TD, targets_T, weight_T, head_DV):
  """Also the sum's gradients by hidden values and head, in their dtypes."""
  pieces = _pieces(hidden_TD.shape[0], head_DV.shape[1], hidden_TD, targets_T, weight_T)
  number_V = jnp.arange(head_DV.shape[1], dtype=targets_T.dtype)

  def add(carry, piece):
    total, dhead_DV = carry
    hidden_TD, targets_T, weight_T = piece
    nats_T, logit_TV, logsumexp_T = _nats(hidden_TD, targets_T, head_DV)
    missed_TV = (targets_T[:, None] == number_V[None]).astype(jnp.float32)
    dlogit_TV = weight_T[:, None] * (jnp.exp(logit_TV - logsumexp_T[:, None]) - missed_TV)
    # Written once: without the barrier each of the two products makes it again, at half its pace.
    dlogit_TV = jax.lax.optimization_barrier(dlogit_TV.astype(hidden_TD.dtype))
    dhead_DV += jnp.matmul(hidden_TD.T, dlogit_TV)
    return (total + jnp.sum(weight_T * nats_T), dhead_DV), jnp.matmul(dlogit_TV, head_DV.T)

  start = jnp.zeros((), jnp.float32), jnp.zeros_like(head_DV)
  (total, dhead_DV), dhidden_TD = jax.lax.scan(add, start, pieces)
  return total, (dhidden_TD.reshape(hidden_TD.shape), dhead_DV)


def _summed_backward(gradients, dtotal):
  dhidden_TD, dhead_DV = (g * dtotal.astype(g.dtype) for g in gradients)
  return dhidden_TD, None, None, dhead_DV


_summed.defvjp(_summed_forward, _summed_backward)
