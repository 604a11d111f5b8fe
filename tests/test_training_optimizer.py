"""Clipping: off at 0, and at any other norm a longer gradient is scaled down to it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.training.optimizer import OptimizerOptions, make_optimizer

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
