import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.model.attention import alibi_slopes, attend, causal_attention, rotate
from tests.helpers import reference_transformer

B, S, H, N, Q = 2, 12, 6, 3, 5


def operands(seed):
  """(q, k, v) and the gradient of the result."""
  keys = jax.random.split(jax.random.key(seed), 4)
  shapes = (B, S, H, Q), (B, S, N, Q), (B, S, N, Q), (B, S, H, Q)
  *qkv, dy = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
  return qkv, dy


def gradients(function, seed):
  qkv, dy = operands(seed)
  return jax.jit(jax.value_and_grad(lambda *qkv: (dy * function(*qkv)).sum(), (0, 1, 2)))(*qkv)


def plain(q, k, v, slopes, visible=True):
  """The same attention with JAX's own derivative and no blocks."""
  k, v = (jnp.repeat(x, H // N, axis=2) for x in (k, v))
  distance = jnp.arange(S)[:, None] - jnp.arange(S)[None]
  scores = jnp.einsum("bshq,bthq->bhst", q, k) / np.sqrt(Q)
  scores -= jnp.asarray(slopes)[None, :, None, None] * distance[None, None]
  scores = jnp.where((distance >= 0)[None, None] & visible, scores, -jnp.inf)
  return jnp.einsum("bhst,bthq->bshq", jax.nn.softmax(scores, -1), v)


@functools.cache
def of_plain_attention(alibi):
  slopes = np.array(reference_transformer.slopes(H), np.float32)
  return gradients(lambda *qkv: plain(*qkv, slopes if alibi else 0 * slopes), 0)


@pytest.mark.parametrize("size", [12, 4, 3])
@pytest.mark.parametrize("alibi", [True, False])
def test_attention_in_any_blocks_equals_plain_attention(size, alibi):
  slopes = alibi_slopes(H) if alibi else None
  value, got = gradients(lambda *qkv: causal_attention(*qkv, slopes, size), 0)
  expected_value, expected = of_plain_attention(alibi)
  np.testing.assert_allclose(value, expected_value, rtol=1e-5)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)  # float32, sums of at most 12 terms


@pytest.mark.parametrize("size", [12, 4])
def test_attention_within_documents_equals_a_plain_mask(size):
  document = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3], [0] * 9 + [1] * 3])
  visible = (document[:, :, None] == document[:, None, :])[:, None]
  slopes = alibi_slopes(H)
  value, got = gradients(lambda *qkv: causal_attention(*qkv, slopes, size, document), 1)
  expected_value, expected = gradients(lambda *qkv: plain(*qkv, slopes, visible), 1)
  np.testing.assert_allclose(value, expected_value, rtol=1e-5)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)  # float32, sums of at most 12 terms


def test_scores_far_from_zero_stay_finite():
  q = jnp.full((1, 1, 1, 3, 4), 300.0)
  bias = jnp.where(jnp.tri(3, dtype=bool), 0.0, -jnp.inf)[None, None]
  grads = jax.grad(lambda q: attend(q, q[:, :, 0], q[:, :, 0], bias).sum())(q)
  assert np.isfinite(grads).all()


def test_rotary_embedding_rotates_as_complex_numbers_do():
  """Position s turns pair q by s / base^(q / pairs); a rotation's gradient turns back."""
  rng = np.random.default_rng(0)
  x, dy = rng.normal(size=(2, 2, 5, 3, 6)).astype(np.float32)
  turn = np.exp(1j * np.arange(5)[:, None] / 100.0 ** (np.arange(3) / 3))[None, :, None, :]

  def turned(z, by):
    pairs = (z[..., :3] + 1j * z[..., 3:]) * by
    return np.concatenate([pairs.real, pairs.imag], -1)

  y, gradient = jax.vjp(lambda x: rotate(x, base=100.0), x)
  np.testing.assert_allclose(y, turned(x, turn), atol=1e-6)
  np.testing.assert_allclose(gradient(dy)[0], turned(dy, turn.conj()), atol=1e-6)
