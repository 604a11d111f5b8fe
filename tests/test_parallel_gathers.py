"""Rows taken and summed by gathers."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.parallel import gathers

N, T, K = 211, 48, 3


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("width", [4, 256])
def test_places_are_summed_in_float32_and_no_other_row_is_read(platform, width, monkeypatch):
  """Also by the kernel that a TPU takes, run step by step."""
  monkeypatch.setattr(gathers, "platform", lambda: platform)
  rng = np.random.default_rng(0)
  y = rng.normal(size=(N, width)).astype(np.float32)
  place = rng.integers(0, N + 30, size=(T, K)).astype(np.int32)
  y[list(set(range(N)) - set(place.reshape(-1).tolist()))] = np.nan
  expected = [sum((y[p] for p in row if p < N), np.zeros(width)) for row in place]
  assert (place >= N).any() and np.isnan(y).any()
  actual = gathers.sum_of_rows(jnp.asarray(y), jnp.asarray(place))
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, atol=1e-6)  # three terms of at most 4
