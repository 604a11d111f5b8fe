"""Dropless dispatch with bounded buffers: one full round and as many overflow rounds as it takes.

The number of overflow rounds is known only at run time and mostly zero. Such a loop has no
reverse-mode derivative, so the rule is written here: the backward pass recomputes each round and
takes its derivative.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import uninitialized
from moe_parity.kernels.masked_add import add_if
from moe_parity.planning.expert_parallel import OVERFLOW_SCOPE
from moe_parity.sharding.vma import match_varying_axes


def overflow_loop(num_steps: Int[Array, ""] | int, step: Callable, start: Any) -> Any:
  """`lax.fori_loop` over a number of steps that is 0 at balanced routing."""
  with jax.named_scope(OVERFLOW_SCOPE):
    return lax.fori_loop(0, num_steps, step, start)


def accumulate_rounds(first: Any, num_rounds: Int[Array, ""] | int, one_round: Callable) -> Any:
  """A pytree `first` and the sum over i < num_rounds of one_round(i), added in float32.

  The sum over rounds starts as an uninitialized buffer. Started with the first round's result, the
  loop could not run before it nor anything be moved across; started with zeros, it writes them.
  """
  count = jnp.reshape(num_rounds, (1,))
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), first)
  start = jax.tree.map(
    lambda a, b: match_varying_axes(a, b)[0], uninitialized(shapes, after=count), first
  )

  def add(i, total):
    with residual_stacks.unstacked():
      addend = one_round(i)
    return jax.tree.map(lambda a, b: jnp.where(i == 0, 0, a) + b.astype(a.dtype), total, addend)

  total = overflow_loop(num_rounds, add, start)
  return jax.tree.map(lambda a, b: add_if(count[0] > 0, a, b), first, total)


@jax.custom_vjp
def tie_gradients(
  x_TD: Float[Array, "T D"], weights: list[Array]
) -> tuple[Float[Array, "T D"], list[Array]]:
  """The identity; the gradient of x becomes available with those of the weights, and not before.

  XLA then computes the weight gradients while the gradients of rows are combined.
  """
  return x_TD, weights


tie_gradients.defvjp(
  lambda *arrays: (arrays, None), lambda _, gradients: lax.optimization_barrier(gradients)
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def with_overflow_rounds(
  first_round: Callable,
  overflow_round: Callable,
  operands: Any,
  overlap_operands: Any,
  routing: Any,
  num_rounds: Int[Array, ""] | int,
) -> tuple[Float[Array, "T D"], Any]:
  """y + sum over i < num_rounds of overflow_round(i, operands, routing), and aux, where
  y, aux = first_round(operands, overlap_operands, routing).

  Args:
    first_round, overflow_round: y and the result of an overflow round are float32, of one shape.
    operands: arrays to differentiate by.
    overlap_operands: a pytree of the same that only the first round uses.
    routing: a pytree of integers.
    num_rounds: the same on every device that takes part in a round's collectives.
  """
  return _forward(first_round, overflow_round, operands, overlap_operands, routing, num_rounds)[0]


def _forward(
  first_round: Callable,
  overflow_round: Callable,
  operands: Any,
  overlap_operands: Any,
  routing: Any,
  num_rounds: Int[Array, ""] | int,
) -> tuple[tuple[Float[Array, "T D"], Any], tuple]:
  (y, aux), vjp = jax.vjp(lambda *both: first_round(*both, routing), operands, overlap_operands)
  total = accumulate_rounds(y, num_rounds, lambda i: overflow_round(i, operands, routing))
  return (total, aux), (vjp, operands, routing, num_rounds)


def _backward(
  first_round: Callable,
  overflow_round: Callable,
  residuals: tuple,
  cotangents: tuple[Float[Array, "T D"], Any],
) -> tuple:
  vjp, operands, routing, num_rounds = residuals
  gradients, doverlap = vjp(cotangents)
  dy, _ = cotangents

  def round_gradients(i):
    _, round_vjp = jax.vjp(lambda operands: overflow_round(i, operands, routing), operands)
    return round_vjp(dy)[0]

  return accumulate_rounds(gradients, num_rounds, round_gradients), doverlap, None, None


with_overflow_rounds.defvjp(_forward, _backward)
