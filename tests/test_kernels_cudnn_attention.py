"""What cuDNN is asked for, computed on a CPU by XLA: ALiBi as columns against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.kernels.alibi_columns import alibi_columns
from moe_parity.kernels.cudnn_attention import cudnn_attention
from moe_parity.model.attention import alibi_slopes, causal_attention
from tests.helpers import reference_transformer

B, S, H, N, Q = 2, 24, 6, 3, 10
DOCUMENT = np.array([[0] * 5 + [1] * 12 + [2] * 7, [0] * 23 + [1]])


def operands(dtype=jnp.float32):
  rng = np.random.default_rng(1)
  shapes = (B, S, H, Q), (B, S, N, Q), (B, S, N, Q), (B, S, H, Q)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def oracle(q, k, v, alibi, document=None):
  """float64, one query at a time."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  y = np.zeros((B, S, H, Q))
  for b, h, i in np.ndindex(B, H, S):
    n, slope = h // (H // N), reference_transformer.slopes(H)[h]
    score = k[b, : i + 1, n] @ q[b, i, h] / np.sqrt(Q)
    score -= slope * (i - np.arange(i + 1)) if alibi else 0
    if document is not None:
      score[document[b, : i + 1] != document[b, i]] = -np.inf
    y[b, i, h] = reference_transformer.softmax(score) @ v[b, : i + 1, n]
  return y


def by_columns(q, k, v, alibi, document=None):
  slopes = alibi_slopes(H) if alibi else None
  document = None if document is None else jnp.asarray(document)
  return cudnn_attention(q, k, v, slopes, document, implementation="xla")


@pytest.mark.parametrize("alibi, document", [(True, None), (False, None), (True, DOCUMENT)])
def test_columns_and_masks_are_attention_by_the_book(alibi, document):
  """float32, sums of at most 24 terms; a penalty reaches 11.5."""
  q, k, v, _ = operands()
  got = jax.jit(lambda q, k, v: by_columns(q, k, v, alibi, document))(q, k, v)
  np.testing.assert_allclose(got, oracle(q, k, v, alibi, document), atol=5e-6)


@pytest.mark.parametrize("alibi, document", [(True, None), (False, DOCUMENT)])
def test_gradients_of_columns_are_the_oracles_differences(alibi, document):
  """Central differences of the float64 oracle along a random direction of q, k and v each."""
  *qkv, dy = operands()

  def loss(*qkv):
    return (dy * by_columns(*qkv, alibi, document)).sum()

  grads = jax.jit(jax.grad(loss, (0, 1, 2)))(*qkv)
  rng, step = np.random.default_rng(2), 1e-4
  for i, grad in enumerate(grads):
    direction = rng.normal(size=grad.shape)

    def moved(by, i=i, direction=direction):
      rows = [np.asarray(x, np.float64) for x in qkv]
      rows[i] = rows[i] + by * direction
      return (np.asarray(dy, np.float64) * oracle(*rows, alibi, document)).sum()

    want = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose((np.asarray(grad, np.float64) * direction).sum(), want, rtol=1e-4)


def test_bfloat16_columns_are_as_exact_as_blocks():
  """512 positions, so that both bytes of a position count. Errors against float32 operands."""
  rng = np.random.default_rng(3)
  q, k, v = (jnp.asarray(rng.normal(size=(1, 512, 2, 16)), jnp.bfloat16) for _ in range(3))
  slopes = np.array([0.7, 0.003], np.float32)
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  want = causal_attention(*wide, slopes, 512)
  errors = [
    float(jnp.abs(y.astype(jnp.float32) - want).max())
    for y in (
      cudnn_attention(q, k, v, slopes, implementation="xla"),
      causal_attention(q, k, v, slopes, 512),
    )
  ]
  assert errors[0] < 2**-6 and errors[0] < 2 * errors[1]


def test_a_columns_product_is_slope_times_position():
  """To 2^-16 of it, with both factors rounded to bfloat16, at the farthest position too."""
  slopes, scale = alibi_slopes(12), 72**-0.5
  q, k = (x.astype(jnp.bfloat16).astype(np.float64) for x in alibi_columns(slopes, 65_536, scale))
  place = np.array([0, 1, 255, 256, 257, 2047, 65_535])
  want = slopes.astype(np.float64)[:, None] * place
  np.testing.assert_allclose(scale * q @ k[place].T, want, rtol=2**-16)
