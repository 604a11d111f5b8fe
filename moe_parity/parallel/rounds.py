"""Exact whatever the routing: a first round with bounded buffers, and as many more as it takes.

The trip count is known only at run time and mostly zero. Such a loop has no reverse-mode
derivative, so the rule is written here: the backward pass plays the same rounds again, each through
its own derivative.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from moe_parity.resources.exchange import REPLAYS


def as_often_as_needed(num_steps, step: Callable, start):
  """`lax.fori_loop` over a number of steps that is 0 where routing is balanced."""
  with jax.named_scope(REPLAYS):
    return lax.fori_loop(0, num_steps, step, start)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_rounds(first: Callable, replay: Callable, operands, beside, routing, num_replays):
  """first(operands, beside, routing) + sum over i < num_replays of replay(i, operands, routing).

  Args:
    first, replay: their results are float32 and of one shape.
    operands: arrays to differentiate by.
    beside: the same, of which only the first round knows.
    routing: a pytree of integers.
    num_replays: the same on every device that a round's collectives join.
  """
  return _forward(first, replay, operands, beside, routing, num_replays)[0]


def _forward(first, replay, operands, beside, routing, num_replays):
  y, pull = jax.vjp(lambda *both: first(*both, routing), operands, beside)
  y = as_often_as_needed(num_replays, lambda i, y: y + replay(i, operands, routing), y)
  return y, (pull, operands, routing, num_replays)


def _backward(first, replay, residuals, dy):
  pull, operands, routing, num_replays = residuals
  gradients, dbeside = pull(dy)

  def step(i, total):
    _, again = jax.vjp(lambda operands: replay(i, operands, routing), operands)
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, again(dy)[0])

  total = jax.tree.map(lambda a: a.astype(jnp.float32), gradients)
  total = as_often_as_needed(num_replays, step, total)
  return jax.tree.map(lambda a, b: a.astype(b.dtype), total, operands), dbeside, None, None


in_rounds.defvjp(_forward, _backward)
