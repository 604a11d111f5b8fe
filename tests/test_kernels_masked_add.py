"""The addition in place, its kernel run step by step on a CPU."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.kernels import common, masked_add


@pytest.mark.parametrize("shape", [(50, 24), (3, 7, 40), (16, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pred", [True, False])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_b_is_added_if_the_flag_is_set_and_not_read_otherwise(
  shape, dtype, pred, platform, monkeypatch
):
  monkeypatch.setattr(masked_add, "BLOCK", 4 * 24 * 16)  # blocks of 16 rows, the last not full
  monkeypatch.setattr(masked_add, "MIN_KERNEL_BYTES", 0)
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.normal(size=shape), t) for t in (dtype, "float32"))
  expected = (a.astype("float32") + b).astype(dtype) if pred else a
  b = b if pred else jnp.full_like(b, jnp.nan)
  with common.simulate(platform):
    np.testing.assert_array_equal(masked_add.add_if(jnp.asarray(pred), a, b), expected)
