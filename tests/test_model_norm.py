"""RMSNorm and SwiGLU: written-out gradients against those of the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.model.feedforward import swiglu
from moe_parity.model.norm import rms_norm

T, D = 7, 12


def norm(x, scale, epsilon=1e-6):
  return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale[None, :]


def of_half(of):
  """A norm with an epsilon of the size of a mean square, so that it shows in every digit."""
  return lambda x, scale: of(x, scale, 0.5)


def gate(x, up):
  return x / (1 + jnp.exp(-x)) * up


@pytest.mark.parametrize(
  ("written", "formula", "shapes"),
  [
    (rms_norm, norm, ((T, D), (D,))),
    (of_half(rms_norm), of_half(norm), ((T, D), (D,))),
    (swiglu, gate, ((T, D),) * 2),
  ],
)
def test_written_out_gradients_are_those_of_the_formula(written, formula, shapes):
  rng = np.random.default_rng(0)
  dy, *arguments = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((T, D), *shapes))
  y, vjp = jax.vjp(written, *arguments)
  expected, expected_vjp = jax.vjp(formula, *arguments)
  for a, b in zip((y, *vjp(dy)), (expected, *expected_vjp(dy)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # float32, sums of at most 12 terms


@pytest.mark.parametrize("written", [rms_norm, swiglu])
def test_in_bfloat16_only_the_arguments_are_residuals(written):
  wide, narrow = jnp.ones((T, D), jnp.bfloat16), jnp.ones((D,), jnp.float32)
  arguments = (wide, narrow) if written is rms_norm else (wide, wide)
  y, vjp = jax.vjp(written, *arguments)
  assert [a.dtype for a in (y, *vjp(y))] == [wide.dtype, *(a.dtype for a in arguments)]
  large = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= T * D]
  assert all(leaf.dtype == jnp.bfloat16 for leaf in large) and len(large) <= 2
