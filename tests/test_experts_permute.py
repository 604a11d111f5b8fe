"""Rows taken and summed by gathers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.experts import permute
from moe_parity.kernels import common, topk_sum

N, T, K = 211, 48, 3


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("width", [4, 256])
def test_rows_are_summed_in_float32_and_others_not_read(platform, width):
  """Also by the kernel that a TPU takes, run step by step."""
  rng = np.random.default_rng(0)
  y = rng.normal(size=(N, width)).astype(np.float32)
  place = rng.integers(0, N + 30, size=(T, K)).astype(np.int32)
  y[list(set(range(N)) - set(place.reshape(-1).tolist()))] = np.nan
  expected = [sum((y[p] for p in row if p < N), np.zeros(width)) for row in place]
  assert (place >= N).any() and np.isnan(y).any()
  with common.simulate(platform):
    actual = permute.gather_and_sum(jnp.asarray(y), jnp.asarray(place))
    rounded = permute.gather_and_sum(jnp.asarray(y), jnp.asarray(place), jnp.bfloat16)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, atol=1e-6)  # three terms of at most 4
  np.testing.assert_array_equal(rounded, actual.astype(jnp.bfloat16))


@pytest.mark.parametrize("num_tokens", [5, 50, 1003])
@pytest.mark.parametrize("lanes", [(7,), (3, 128)])
def test_any_number_of_tokens_is_summed_block_by_block(num_tokens, lanes, monkeypatch):
  """The kernel, run step by step; 32 tokens fit at most, so the last block hangs over the end."""
  monkeypatch.setattr(topk_sum, "BLOCK", 32 * K * 4 * math.prod(lanes))
  rng = np.random.default_rng(1)
  rows = rng.normal(size=(K, num_tokens, *lanes)).astype(np.float32)
  is_there = rng.random((K, num_tokens)) < 0.6
  rows[~is_there] = np.nan
  flat = rows.reshape(K, num_tokens, -1)
  expected = np.where(is_there[..., None], flat, 0).astype(np.float64).sum(0)
  operands = jnp.asarray(rows), jnp.asarray(is_there)
  (kernel,) = (
    e for e in jax.make_jaxpr(topk_sum.topk_sum)(*operands).eqns if "grid_mapping" in e.params
  )
  assert kernel.params["grid_mapping"].grid == (-(-num_tokens // 32),)
  actual = topk_sum.topk_sum(*operands)
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("num_tokens, width", [(3, 256), (517, 384), (5, 128), (5, 130)])
def test_rows_taken_on_a_tpu_are_those_taken_elsewhere(num_tokens, width, dtype):
  """Split into lane tiles by a kernel where the width is of several 128s, run step by step: in
  blocks of 256 rows, of which the last may hang over the end."""
  x = jax.random.normal(jax.random.key(2), (num_tokens, width), dtype)
  source = jnp.arange(40).reshape(4, 10) * 7 % num_tokens
  with common.simulate("tpu"):
    jaxpr = jax.make_jaxpr(permute.take_rows)(x, source)
    taken = permute.take_rows(x, source)
  assert ("pallas_call" in str(jaxpr)) == (width in (256, 384))
  np.testing.assert_array_equal(taken, x[source])
