"""The addition in place, its kernel run step by step on a CPU."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.kernels import masked_add


@pytest.mark.parametrize("shape", [(50, 24), (3, 7, 40), (16, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_known", [True, False])
def test_b_is_added_where_it_is_known_and_whatever_else_it_holds_counts_for_nothing(
  shape, dtype, is_known, monkeypatch
):
  monkeypatch.setattr(masked_add, "BLOCK", 4 * 24 * 16)  # blocks of 16 rows, the last not full
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.normal(size=shape), t) for t in (dtype, "float32"))
  expected = (a.astype("float32") + b).astype(dtype) if is_known else a
  b = b if is_known else jnp.full_like(b, jnp.nan)
  for add in (masked_add.added_where, masked_add._in_place):
    np.testing.assert_array_equal(add(jnp.asarray(is_known), a, b), expected)
