"""What may be drawn, how often, and which settings are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.inference.sampling import LEAST, Sampling, sample

LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32))


@functools.partial(jax.jit, static_argnums=(1, 2))
def draws(logits, sampling, number):
  """`number` draws: rows of one batch with the same logits."""
  rows = jnp.tile(logits[None], (number, 1))
  return sample(rows, jax.random.key(7), jnp.zeros(number, jnp.int32), sampling)


def frequencies(sampling, number=4000):
  tokens = np.asarray(draws(jnp.asarray(LOGITS), sampling, number))
  return np.bincount(tokens, minlength=LOGITS.size) / number


@pytest.mark.parametrize(
  "sampling, expected",
  [
    (Sampling(), [0, 1, 0, 0, 0]),
    (Sampling(1.0), [0.05, 0.4, 0.15, 0.3, 0.1]),
    (Sampling(0.5), np.square([0.05, 0.4, 0.15, 0.3, 0.1]) / 0.285),
    (Sampling(1.0, top_k=3), [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
    # 0.4 + 0.3 reach 0.6: the token that reaches it is in
    (Sampling(1.0, top_p=0.6), [0, 0.4 / 0.7, 0, 0.3 / 0.7, 0]),
    # of the three most likely, 0.47 and 0.35 reach 0.8: top-p comes after top-k
    (Sampling(1.0, top_k=3, top_p=0.8), [0, 0.4 / 0.7, 0, 0.3 / 0.7, 0]),
    (Sampling(1.0, top_p=1e-6), [0, 1, 0, 0, 0]),
  ],
)
def test_tokens_are_drawn_as_often_as_they_should(sampling, expected):
  # four standard deviations of a share of 4000 draws
  np.testing.assert_allclose(frequencies(sampling), expected, rtol=0, atol=4 * 0.5 / 4000**0.5)
  assert (frequencies(sampling)[np.array(expected) == 0] == 0).all()


def test_a_draw_depends_on_key_row_and_position_only():
  logits, key = jnp.zeros((6, 50)), jax.random.key(3)
  position_B = jnp.arange(6, dtype=jnp.int32)
  whole = sample(logits, key, position_B, Sampling(1.0))
  np.testing.assert_array_equal(sample(logits[:2], key, position_B[:2], Sampling(1.0)), whole[:2])
  assert len(set(np.asarray(whole).tolist())) > 2
  later = sample(logits, key, position_B + 1, Sampling(1.0))
  other = sample(logits, jax.random.key(4), position_B, Sampling(1.0))
  assert (later != whole).any() and (other != whole).any()


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(temperature=-0.5), "temperature=-0.5 must be.*at least 0; use 0"),
    (dict(temperature=float("nan")), "temperature=nan must be"),
    (dict(temperature=float("inf")), "temperature=inf must be"),
    (dict(temperature=1e-38), "temperature=1e-38 is below 1e-30, where logits overflow; use 0"),
    (dict(temperature=1.0, top_k=-1), "top_k=-1 is negative; use 0"),
    (dict(temperature=1.0, top_p=0.0), r"top_p=0.0 must lie in \(0, 1\]; use 1"),
    (dict(temperature=1.0, top_p=1.5), "top_p=1.5 must lie"),
    (dict(top_k=5), "with temperature=0.*set a temperature above 0"),
    (dict(top_p=0.5), "with temperature=0"),
  ],
)
def test_a_sampling_that_makes_no_sense_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    Sampling(**fields)


def test_the_least_temperature_still_takes_the_most_likely():
  logits = jnp.array([[1.0, 90.0, 95.0, -9.0]])
  found = sample(logits, jax.random.key(0), jnp.array([3]), Sampling(LEAST, top_p=0.9))
  assert found.tolist() == [2]
