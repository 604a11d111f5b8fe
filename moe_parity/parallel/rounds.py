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

from moe_parity.parallel.ragged_all_to_all import uninitialized
from moe_parity.parallel.varying import equally_varying
from moe_parity.resources.exchange import REPLAYS


def as_often_as_needed(num_steps, step: Callable, start):
  """`lax.fori_loop` over a number of steps that is 0 where routing is balanced."""
  with jax.named_scope(REPLAYS):
    return lax.fori_loop(0, num_steps, step, start)


def sum_of_rounds(num_rounds, one: Callable, like):
  """Sum over i < num_rounds of one(i), float32, in arrays of the shapes of `like`; 0 of none.

  The sum begins as memory that nobody has filled: a loop that is entered with what the first round
  made could not run before it, nor anything move past it; one entered with zeros has to write them.
  """
  known = jnp.reshape(num_rounds, (1,))
  sums = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), like)
  start = jax.tree.map(
    lambda a, b: equally_varying(a, b)[0], uninitialized(sums, after=known), like
  )

  def add(i, total):
    return jax.tree.map(lambda a, b: jnp.where(i == 0, 0, a) + b.astype(a.dtype), total, one(i))

  total = as_often_as_needed(num_rounds, add, start)
  return jax.tree.map(lambda a: jnp.where(num_rounds > 0, a, 0), total)


@jax.custom_vjp
def with_gradients_together(x_TD, weights):
  """As they are; the gradient of x is known when those of the weights are.

  XLA then computes the latter while rows come back over links (12 of 323 ms of the 7B on v5p,
  compiler-estimated).
  """
  return x_TD, weights


with_gradients_together.defvjp(
  lambda *arrays: (arrays, None), lambda _, gradients: lax.optimization_barrier(gradients)
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_rounds(first: Callable, replay: Callable, operands, beside, routing, num_replays):
  """first(operands, beside, routing) + sum over i < num_replays of replay(i, operands, routing).

  Args:
    first, replay: their results are float32 and of one shape.
    operands: arrays to differentiate by.
    beside: a pytree of the same, of which only the first round knows.
    routing: a pytree of integers.
    num_replays: the same on every device that a round's collectives join.
  """
  return _forward(first, replay, operands, beside, routing, num_replays)[0]


def _forward(first, replay, operands, beside, routing, num_replays):
  y, pull = jax.vjp(lambda *both: first(*both, routing), operands, beside)
  more = sum_of_rounds(num_replays, lambda i: replay(i, operands, routing), y)
  return y + more, (pull, operands, routing, num_replays)


def _backward(first, replay, residuals, dy):
  pull, operands, routing, num_replays = residuals
  gradients, dbeside = pull(dy)

  def again(i):
    _, pull_again = jax.vjp(lambda operands: replay(i, operands, routing), operands)
    return pull_again(dy)[0]

  more = sum_of_rounds(num_replays, again, operands)
  total = jax.tree.map(lambda a, b: (a.astype(jnp.float32) + b).astype(a.dtype), gradients, more)
  return total, dbeside, None, None


in_rounds.defvjp(_forward, _backward)
