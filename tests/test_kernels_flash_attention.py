"""The TPU attention kernels, interpreted on a CPU, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.kernels.flash_attention import flash_attention
from moe_parity.model.attention import alibi_slopes, causal_attention

B, S, H = 2, 384, 6
DOCUMENT = jnp.cumsum(jnp.arange(S) % 100 == 99)[None] + jnp.arange(B)[:, None]


def operands(num_kv_heads, width, dtype=jnp.float32):
  return tuple(
    jax.random.normal(jax.random.key(i), (B, S, heads, width), jnp.float32).astype(dtype)
    for i, heads in enumerate((H, num_kv_heads, num_kv_heads))
  )


@pytest.mark.parametrize(
  "num_kv_heads, width, alibi, document",
  [(6, 128, True, None), (3, 20, True, DOCUMENT), (2, 20, False, None)],
)
def test_the_kernels_and_their_gradients_are_plain_attentions(num_kv_heads, width, alibi, document):
  """Three chunks of 128, heads that share keys and heads narrower than a row of lanes. float32 sums
  over 384 keys; ALiBi reaches 96 in a score, whose rounding is 8e-6."""
  slopes = alibi_slopes(H) if alibi else None

  def run(attention):
    def scored(q, k, v):
      y = attention(q, k, v)
      return jnp.sum(jnp.sin(3 * y)), y

    grad = jax.value_and_grad(scored, argnums=(0, 1, 2), has_aux=True)
    return jax.jit(grad)(*operands(num_kv_heads, width))

  (_, got), got_grads = run(lambda q, k, v: flash_attention(q, k, v, slopes, document, chunk=128))
  (_, want), want_grads = run(lambda q, k, v: causal_attention(q, k, v, slopes, S, document))
  np.testing.assert_allclose(got, want, atol=2e-5)
  for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(got_grad, want_grad, atol=2e-5 * float(jnp.abs(want_grad).max()))


def test_bfloat16_is_rounded_where_plain_attention_rounds():
  """Products are of bfloat16 numbers and sums in float32: what differs is the rounding of scores'
  weights before they are divided by their sum, 2^-9 of each."""
  slopes, rows = alibi_slopes(H), operands(H, 128, jnp.bfloat16)
  got = flash_attention(*rows, slopes, chunk=128)
  want = causal_attention(*(x.astype(jnp.float32) for x in rows), slopes, S)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=2**-6)


def test_a_long_reach_of_alibi_loses_nothing():
  """Penalties count from each chunk, and 2,048 positions away they are as exact as nearby."""
  q = jnp.zeros((1, 2048, 2, 128))
  v = jax.random.normal(jax.random.key(3), q.shape)
  slopes = np.array([0.004, 0.0007], np.float32)
  got = flash_attention(q, q, v, slopes)
  distance = np.arange(2048)[:, None] - np.arange(2048)[None]
  for head, slope in enumerate(slopes.astype(np.float64)):
    weight = np.where(distance >= 0, np.exp(-slope * distance), 0.0)
    want = weight @ np.asarray(v[0, :, head], np.float64) / weight.sum(1, keepdims=True)
    np.testing.assert_allclose(got[0, :, head], want, atol=2e-6)
