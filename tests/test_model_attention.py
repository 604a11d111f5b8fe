import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.kernels import common
from moe_parity.kernels.cudnn_attention import cudnn_attention
from moe_parity.model import attention
from moe_parity.model.attention import alibi_slopes, attend, causal_attention, rotate
from moe_parity.model.options import ModelOptions
from tests.helpers import reference_transformer, small_model

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


@pytest.mark.parametrize(
  "named, reason",
  [("cudnn", "an NVIDIA GPU"), ("flash", "step by step"), ("splash", "step by step")],
)
def test_a_model_refuses_attention_that_cannot_run_here(named, reason):
  model = small_model.build(small_model.dense(), attention=named)
  with pytest.raises(UserError, match=reason):
    jax.eval_shape(lambda rows: model.final_hidden(rows)[0], small_model.tokens()[0])


def test_a_gpu_takes_cudnn_with_slopes_and_documents(monkeypatch):
  """Which function a GPU's program calls and with what; it is computed here by XLA."""
  calls = []

  def fused(*operands):
    calls.append([getattr(x, "shape", None) for x in operands])
    return cudnn_attention(*operands, implementation="xla")

  monkeypatch.setattr(attention, "cudnn_attention", fused)
  monkeypatch.setattr(common, "compute_capability", lambda: 8.0)
  architecture = small_model.dense(num_heads=4, num_kv_heads=2, num_layers=1)
  layer = attention.Attention(architecture, ModelOptions(dtype="bfloat16"))
  x, document = jnp.ones((24, 12), jnp.bfloat16), jnp.zeros((2, 12), jnp.int32)
  with common.simulate("gpu"):
    jax.eval_shape(lambda x: layer(x, 2, document)[0], x)
  assert calls == [[(2, 12, 4, 6), (2, 12, 2, 6), (2, 12, 2, 6), (4,), (2, 12)]]


def test_a_model_by_splash_is_the_model_by_blocks():
  """One layer whose program is a TPU's, with its kernel run step by step; ALiBi and shared keys."""
  architecture = small_model.dense(num_heads=4, num_kv_heads=2, num_layers=1)
  rows = small_model.tokens(2, 128)[0]

  def hidden(platform, attention):
    with common.simulate(platform):
      model = small_model.build(architecture, attention=attention)
      return jax.jit(lambda rows: model.final_hidden(rows)[0])(rows)

  np.testing.assert_allclose(hidden("tpu", "splash"), hidden("cpu", "blocks"), atol=2e-5)


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
