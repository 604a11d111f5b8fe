"""Rows taken and summed by gathers."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.parallel import gathers

N, T, K, D = 11, 6, 3, 4


@pytest.mark.parametrize("way", [gathers.sum_of_rows, gathers._by_gathers, gathers._by_one_gather])
def test_places_are_summed_in_float32_and_no_other_row_is_read(way):
  rng = np.random.default_rng(0)
  y = rng.normal(size=(N, D)).astype(np.float32)
  place = rng.integers(0, N + 3, size=(T, K)).astype(np.int32)
  y[list(set(range(N)) - set(place.reshape(-1).tolist()))] = np.nan
  expected = [sum((y[p] for p in row if p < N), np.zeros(D)) for row in place]
  assert (place >= N).any() and np.isnan(y).any()
  actual = way(jnp.asarray(y), jnp.asarray(place))
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
