"""The TPU attention kernel, interpreted on a CPU, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity.model.attention import alibi_slopes, causal_attention
from moe_parity.model.splash import splash_attention, with_alibi

B, S, H, N, Q = 2, 256, 6, 3, 20


def operands(dtype, seed=0):
  q, k, v = (
    jax.random.normal(jax.random.key(seed + i), (B, S, heads, Q), jnp.float32).astype(dtype)
    for i, heads in enumerate((H, N, N))
  )
  return q, k, v


DOCUMENT = jnp.cumsum(jnp.arange(S) % 100 == 99)[None].repeat(B, 0)


def test_the_kernel_and_its_gradients_are_plain_attentions():
  """float32 sums over 256 keys; ALiBi reaches 64 in a score, whose rounding is 4e-6."""

  slopes, document = alibi_slopes(H), DOCUMENT

  def run(attention):
    def scored(q, k, v):
      y = attention(q, k, v)
      return jnp.sum(jnp.sin(3 * y)), y

    return jax.value_and_grad(scored, argnums=(0, 1, 2), has_aux=True)(*operands(jnp.float32))

  (_, got), got_grads = run(
    lambda q, k, v: splash_attention(q, k, v, slopes, document, block=128, interpret=True)
  )
  (_, want), want_grads = run(lambda q, k, v: causal_attention(q, k, v, slopes, S, document))
  np.testing.assert_allclose(got, want, atol=2e-5)
  for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(got_grad, want_grad, atol=2e-5 * float(jnp.abs(want_grad).max()))


def test_alibi_columns_are_exact_in_bfloat16():
  """Products of bfloat16 columns, summed in float32, give slope * position to 2^-16 of itself."""
  slopes = alibi_slopes(11)
  q, k = jnp.zeros((1, 3000, 11, Q), jnp.bfloat16), jnp.zeros((1, 3000, 1, Q), jnp.bfloat16)
  q, k = with_alibi(q, k, slopes)
  assert q.shape[-1] == k.shape[-1] == 128
  score_HT = jnp.einsum("hq,tq->ht", q[0, 0], k[0, :, 0], preferred_element_type=jnp.float32)
  want = slopes[:, None] * np.arange(3000)[None]
  np.testing.assert_allclose(score_HT, want, rtol=2**-16)
