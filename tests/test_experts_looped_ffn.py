"""The loop over assignments against a loop over tokens and choices in float64."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from moe_parity.experts.expert_ffn import expert_ffn
from tests.helpers import reference
from tests.helpers.routed import FLOAT32_ERROR, ROUTINGS, draw

T, E, K = 5, 11, 3


@functools.cache
def ffn(implementation):
  return jax.jit(functools.partial(expert_ffn, implementation=implementation))


@hypothesis.given(seed=st.integers(0, 2**32 - 1), routing=st.sampled_from(ROUTINGS))
@hypothesis.settings(max_examples=15)
def test_looped_experts_equal_the_loop_over_tokens(seed, routing):
  *arguments, _ = draw(np.random.default_rng(seed), routing, T, E, K)
  with jax.numpy_dtype_promotion("strict"):
    actual = ffn("looped")(*arguments)
  expected = reference.expert_ffn(*arguments)
  scale = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, atol=FLOAT32_ERROR)


def test_looped_bfloat16_stays_near_float32():
  x, expert, gate, w_in, w_down, _ = draw(np.random.default_rng(4), "fair", T, E, K)
  exact = reference.expert_ffn(x, expert, gate, w_in, w_down)
  narrow = (a.astype(jax.numpy.bfloat16) for a in (w_in, w_down))
  y = ffn("looped")(x.astype(jax.numpy.bfloat16), expert, gate, *narrow)
  assert y.dtype == jax.numpy.bfloat16
  # 8 bits of mantissa in every operand
  assert np.abs(np.asarray(y, np.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_a_formulation_that_does_not_exist_is_refused():
  arguments = draw(np.random.default_rng(5), "fair", T, E, K)[:-1]
  with pytest.raises(ValueError, match="'loop' is not one of padded, grouped, looped"):
    expert_ffn(*(jax.numpy.asarray(a) for a in arguments), implementation="loop")
