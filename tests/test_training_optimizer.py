"""Clipping, and the schedule, whose rates are an argument of a compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_parity.model.options import ModelOptions
from moe_parity.training.optimizer import (
  OptimizerOptions,
  learning_rate,
  make_optimizer,
  rates_of,
)
from moe_parity.training.state import abstract_state
from moe_parity.training.step import StepOptions, make_train_step
from tests.helpers import small_model

OPTIONS = OptimizerOptions(
  peak_learning_rate=0.1, final_learning_rate=0.01, num_steps=9, warmup_steps=1, epsilon=1.0,
  weight_decay=0.0,
)  # fmt: skip


def first_step(clip_norm, gradient):
  optimizer = make_optimizer(dataclasses.replace(OPTIONS, clip_norm=clip_norm))
  params = {"kernel": jnp.zeros(2)}
  updates, _ = optimizer.update({"kernel": jnp.array(gradient)}, optimizer.init(params), params)
  return np.asarray(updates["kernel"])


@pytest.mark.parametrize("clip_norm, factor", [(0.0, 1.0), (1e9, 1.0), (1.0, 0.2)])
def test_no_clipping_at_0_and_down_to_the_norm_else(clip_norm, factor):
  """Adam's first step of gradient g is g / (|g| + epsilon), here with epsilon 1: a clipped one
  is another. The gradient [3, 4] has norm 5."""
  gradient = np.array([3.0, 4.0])
  scaled = factor * gradient
  expected = -OPTIONS.peak_learning_rate * scaled / (scaled + 1.0)
  assert first_step(clip_norm, gradient) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  "peak, final, num_steps, warmup", [(0.004, 1e-5, 104, 10), (0.3, 0.3, 7, 1), (1e-3, 1e-4, 33, 33)]
)
def test_the_schedule_is_optaxs(peak, final, num_steps, warmup):
  options = OptimizerOptions(peak, final, num_steps, warmup)
  expected = optax.schedules.join_schedules(
    [
      optax.schedules.linear_schedule(peak / warmup, peak, max(1, warmup - 1)),
      optax.schedules.cosine_decay_schedule(
        peak, max(1, num_steps - warmup), alpha=final / peak
      ),
    ],
    [warmup],
  )  # fmt: skip
  found = jax.jit(lambda step, rates: learning_rate(options, rates)(step))
  expected, rates = jax.jit(expected), rates_of(options)
  for step in range(num_steps + 2):
    assert found(step, rates) == pytest.approx(float(expected(step)), rel=1e-6), step


def test_steps_of_other_rates_are_one_program():
  architecture = small_model.moe()

  def text(**changes):
    options = dataclasses.replace(OPTIONS, **changes)
    step = make_train_step(architecture, ModelOptions(), options, StepOptions())
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    return step.lower(
      abstract_state(architecture, ModelOptions(), options), tokens, tokens
    ).as_text()

  one = text()
  assert text(peak_learning_rate=0.3, final_learning_rate=0.002) == one
  assert text(num_steps=10) != one
