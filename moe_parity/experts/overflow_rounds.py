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

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import uninitialized
from moe_parity.kernels.masked_add import add_if
from moe_parity.planning.expert_parallel import REPLAYS
from moe_parity.sharding.varying import equally_varying


def as_often_as_needed(num_steps, step: Callable, start):
  """`lax.fori_loop` over a number of steps that is 0 where routing is balanced."""
  with jax.named_scope(REPLAYS):
    return lax.fori_loop(0, num_steps, step, start)


def with_rounds(first, num_rounds, one: Callable):
  """A pytree `first` and the sum over i < num_rounds of one(i), added in float32.

  The sum over rounds begins as memory that nobody has filled: a loop that is entered with what the
  first round made could not run before it, nor anything move past it; one entered with zeros has to
  write them.
  """
  known = jnp.reshape(num_rounds, (1,))
  sums = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), first)
  start = jax.tree.map(
    lambda a, b: equally_varying(a, b)[0], uninitialized(sums, after=known), first
  )

  def add(i, total):
    with residual_stacks.unstacked():
      more = one(i)
    return jax.tree.map(lambda a, b: jnp.where(i == 0, 0, a) + b.astype(a.dtype), total, more)

  total = as_often_as_needed(num_rounds, add, start)
  return jax.tree.map(lambda a, b: add_if(known[0] > 0, a, b), first, total)


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
  """y + sum over i < num_replays of replay(i, operands, routing), and what else was found, where
  y, found = first(operands, beside, routing).

  Args:
    first, replay: y and what a replay gives are float32 and of one shape.
    operands: arrays to differentiate by.
    beside: a pytree of the same, of which only the first round knows.
    routing: a pytree of integers.
    num_replays: the same on every device that a round's collectives join.
  """
  return _forward(first, replay, operands, beside, routing, num_replays)[0]


def _forward(first, replay, operands, beside, routing, num_replays):
  (y, found), pull = jax.vjp(lambda *both: first(*both, routing), operands, beside)
  total = with_rounds(y, num_replays, lambda i: replay(i, operands, routing))
  return (total, found), (pull, operands, routing, num_replays)


def _backward(first, replay, residuals, given):
  pull, operands, routing, num_replays = residuals
  gradients, dbeside = pull(given)
  dy, _ = given

  def again(i):
    _, pull_again = jax.vjp(lambda operands: replay(i, operands, routing), operands)
    return pull_again(dy)[0]

  return with_rounds(gradients, num_replays, again), dbeside, None, None


in_rounds.defvjp(_forward, _backward)
