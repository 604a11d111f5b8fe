"""Routed experts on one device against a loop over tokens and choices in float64."""

import contextlib
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from moe_parity.errors import UserError
from moe_parity.experts import padded_overflow
from moe_parity.experts.assignments import sort_by_expert
from moe_parity.experts.expert_ffn import (
  expert_ffn,
  expert_loads,
  implementation_for,
  slots_per_expert,
)
from tests.helpers.routed import D_EXPERT, ROUTINGS, D, assert_equals_reference, draw, tpu_mesh

T, E, K = 40, 24, 3
TIGHT = 3  # slots per expert, where the mean load is 5


@pytest.fixture(autouse=True)
def strict_promotion():
  with jax.numpy_dtype_promotion("strict"):
    yield


FORMULATIONS = (
  ("padded", None), ("padded", TIGHT), ("padded", T * K), ("grouped", None),
)  # fmt: skip


@functools.cache
def value_and_gradients(implementation, num_slots):
  def both(x, expert, gate, w_in, w_down, dy):
    def ffn(x, gate, w_in, w_down):
      return expert_ffn(
        x, expert, gate, w_in, w_down, implementation=implementation, num_slots=num_slots
      )

    y, vjp = jax.vjp(ffn, x, gate, w_in, w_down)
    return y, *vjp(dy)

  return jax.jit(both)


@pytest.mark.parametrize(("implementation", "num_slots"), FORMULATIONS)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), routing=st.sampled_from(ROUTINGS))
@hypothesis.settings(max_examples=12)
def test_values_and_gradients_equal_the_loop_over_tokens(implementation, num_slots, seed, routing):
  arguments = draw(np.random.default_rng(seed), routing, T, E, K)
  actual = value_and_gradients(implementation, num_slots)(*arguments)
  assert_equals_reference(actual, arguments)


@pytest.mark.parametrize(
  ("t", "d", "e", "k", "i"),
  [(37, 6, 11, 1, 4), (19, 5, 6, 6, 3), (53, 3, 2, 2, 9), (8, 4, 31, 5, 6), (65, 6, 3, 2, 4)],
  ids=["one choice", "all experts chosen", "two experts", "more experts than tokens", "odd"],
)
def test_any_number_of_tokens_experts_and_choices_is_exact(t, d, e, k, i):
  arguments = draw(np.random.default_rng(t), "fair", t, e, k, d, i)
  actual = value_and_gradients("padded", TIGHT)(*arguments)
  assert_equals_reference(actual, arguments)


def num_overflow_steps(expert, num_slots):
  by_expert = sort_by_expert(jnp.asarray(expert), E)
  return int(padded_overflow.plan_overflow(by_expert, num_slots).num_steps)


def test_tight_slots_make_the_overflow_loop_take_several_steps():
  _, expert, *_ = draw(np.random.default_rng(0), "fair", T, E, K)
  assert num_overflow_steps(expert, TIGHT) >= 2
  _, expert, *_ = draw(np.random.default_rng(0), "all to one", T, E, K)
  assert num_overflow_steps(expert, TIGHT) >= 1


def test_the_overflow_loop_takes_no_step_when_all_have_slots():
  _, expert, *_ = draw(np.random.default_rng(0), "fair", T, E, K)
  largest = np.bincount(expert.reshape(-1)).max()
  assert num_overflow_steps(expert, int(largest)) == 0
  assert num_overflow_steps(expert, int(largest) - 1) == 1


def test_relabeling_experts_changes_nothing():
  rng = np.random.default_rng(5)
  x, expert, gate, w_in, w_down, dy = draw(rng, "skewed", T, E, K)
  new_of_old = rng.permutation(E).astype(np.int32)
  old_of_new = np.argsort(new_of_old)
  both = value_and_gradients("padded", TIGHT)
  y, dx, dgate, dw_in, dw_down = both(x, expert, gate, w_in, w_down, dy)
  relabeled = both(x, new_of_old[expert], gate, w_in[old_of_new], w_down[old_of_new], dy)
  expected = y, dx, dgate, dw_in[old_of_new], dw_down[old_of_new]
  for a, b in zip(relabeled, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("implementation", "num_slots"), [("padded", TIGHT), ("grouped", None)])
def test_bfloat16_rows_and_weights_give_bfloat16_near_the_loop(implementation, num_slots):
  x, expert, gate, w_in, w_down, dy = draw(np.random.default_rng(7), "skewed", T, E, K)
  x, w_in, w_down, dy = (jnp.asarray(a, jnp.bfloat16) for a in (x, w_in, w_down, dy))
  arguments = x, expert, gate, w_in, w_down, dy
  actual = value_and_gradients(implementation, num_slots)(*arguments)
  assert [a.dtype for a in actual] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, *[jnp.bfloat16] * 2]
  # bfloat16 keeps 8 bits; the hidden layer and the result are each rounded a few times.
  assert_equals_reference(actual, arguments, error=4 * 2**-8)


def test_a_scan_of_remat_layers_has_the_gradients_of_a_loop():
  rng = np.random.default_rng(11)
  x, expert, gate, _, _, dy = (jnp.asarray(a) for a in draw(rng, "skewed", T, E, K))
  num_layers = 4
  weights = (
    rng.normal(size=(num_layers, E, 2, D_EXPERT, D)).astype(np.float32) * 0.3,
    rng.normal(size=(num_layers, E, D_EXPERT, D)).astype(np.float32) * 0.3,
  )

  def layer(x, w):
    return x + expert_ffn(x, expert, gate, *w, implementation="padded", num_slots=TIGHT)

  def scanned(x, weights):
    step = jax.checkpoint(lambda x, w: (layer(x, w), None))
    return (jax.lax.scan(step, x, weights)[0] * dy).sum()

  def unrolled(x, weights):
    for n in range(num_layers):
      x = layer(x, tuple(w[n] for w in weights))
    return (x * dy).sum()

  actual = jax.jit(jax.grad(scanned, argnums=(0, 1)))(x, weights)
  expected = jax.jit(jax.grad(unrolled, argnums=(0, 1)))(x, weights)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_loads_count_every_assignment_but_those_of_nobody():
  _, expert, *_ = draw(np.random.default_rng(3), "half unassigned", T, E, K)
  load = np.asarray(jax.jit(expert_loads, static_argnums=1)(expert, E))
  expected = [sum(int(e == chosen) for chosen in expert.reshape(-1)) for e in range(E)]
  assert load.tolist() == expected
  assert load.sum() + (expert == E).sum() == T * K


def test_balanced_routing_overflows_and_pads_little():
  rng = np.random.default_rng(0)
  t, e, k = 4096, 64, 6
  num_slots = slots_per_expert(t, k, e)
  expert = np.argsort(rng.random((t, e)), axis=1)[:, :k]
  overflowed = np.bincount(expert.reshape(-1), minlength=e) > num_slots
  assert overflowed.mean() < 0.1
  assert num_slots < 1.15 * t * k / e
  assert slots_per_expert(19, 6, 6) >= 19  # K = E: everyone gets every token


@pytest.mark.parametrize(("platform", "num_kernels"), [("tpu", 5), ("cuda", 0), ("cpu", 0)])
def test_only_a_tpu_takes_the_kernels(platform, num_kernels):
  """On two cores: one for values, one for gradients of rows, one for those of weights; two sum over
  choices."""
  shapes = [
    jax.ShapeDtypeStruct(s, dtype)
    for s, dtype in [((T, D), "float32"), ((T, K), "int32"), ((T, K), "float32"),
                     ((E, 2, D_EXPERT, D), "float32"), ((E, D_EXPERT, D), "float32")]
  ]  # fmt: skip

  def total(x, expert, gate, w_in, w_down):
    how = implementation_for(platform)
    return expert_ffn(x, expert, gate, w_in, w_down, implementation=how).sum()

  with jax.sharding.use_abstract_mesh(tpu_mesh(1)) if num_kernels else contextlib.nullcontext():
    traced = jax.jit(jax.value_and_grad(total, argnums=(0, 3))).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert text.count("tpu_custom_call") == num_kernels


def test_an_unknown_implementation_is_refused():
  *arguments, _ = (jnp.asarray(a) for a in draw(np.random.default_rng(0), "fair", T, E, K))
  with pytest.raises(UserError, match="implementation='dense' .* padded, grouped"):
    expert_ffn(*arguments, implementation="dense")
  with pytest.raises(UserError, match="'slotted' is now called 'padded'"):
    expert_ffn(*arguments, implementation="slotted")


@pytest.mark.parametrize("routing", ROUTINGS)
def test_sorted_rows_beyond_the_first_window_are_computed_too(routing):
  """Windows take at least 128 rows, and here there are up to 600."""
  arguments = draw(np.random.default_rng(4), routing, 200, E, K)
  actual = value_and_gradients("grouped", 1)(*arguments)
  assert_equals_reference(actual, arguments)
