"""What kernels keep for the backward pass, written where all layers' lies and read there.

`lax.scan` stacks what its steps keep: it is copied into the stack, and out of it again for a kernel
that reads it. Under `scan` here a kernel takes the stack itself, writes its layer's part of it in
the forward pass and reads it in the backward pass. What else a step keeps is stacked as ever.

A kernel's forward rule asks for memory, writes it and hands it over; its backward rule asks for
what was handed over:

  memory = kept.memory_for(*shapes, after=x)
  residual = kept.handed_over(memory, stacks_written)
  memory = kept.memory_of(residual)
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from moe_parity.kernels.common import uninitialized


class Memory(NamedTuple):
  """Of one kernel: stacks [layers, ...] of what it keeps, and which layer's part is its own."""

  stacks: tuple[Array, ...]
  layer: Int[Array, "1"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Place:
  """Which of all kernels' stacks are one kernel's: a residual that is no array."""

  first: int
  end: int


@dataclasses.dataclass
class _Shelf:
  """All kernels' stacks while a layer is traced; `shapes` of one layer's, as they are asked for."""

  use: str  # "measured", "filled" or "read"
  stacks: list[Array] = dataclasses.field(default_factory=list)
  layer: Any = None
  shapes: list[jax.ShapeDtypeStruct] = dataclasses.field(default_factory=list)


_current: contextvars.ContextVar[_Shelf | None] = contextvars.ContextVar("shelf", default=None)


@contextlib.contextmanager
def _put_up(shelf: _Shelf | None) -> Iterator[_Shelf | None]:
  token = _current.set(shelf)
  try:
    yield shelf
  finally:
    _current.reset(token)


def of_their_own():
  """A context in which kernels get memory of one layer: of a loop in a layer, whose steps are as
  many as it takes and keep nothing beyond it."""
  return _put_up(None)


def memory_of_one(*shapes: jax.ShapeDtypeStruct, after: Array) -> Memory:
  """To write arrays of these shapes into, of one layer; nobody has filled it.

  Args:
    after: known before the memory is needed.
  """
  return Memory(_stacks(shapes, 1, after), jnp.zeros(1, jnp.int32))


def memory_for(*shapes: jax.ShapeDtypeStruct, after: Array) -> Memory:
  """The same of all layers, for the one that is traced: in a forward rule. Of one where no `scan`
  is around the kernel, and in what a backward pass makes again."""
  shelf = _current.get()
  if shelf is not None:
    first = len(shelf.shapes)
    shelf.shapes += shapes
    if shelf.use == "filled":
      return Memory(tuple(shelf.stacks[first : len(shelf.shapes)]), shelf.layer)
  return memory_of_one(*shapes, after=after)


def handed_over(memory: Memory, written: Sequence[Array]) -> Memory | Place:
  """The residual by which a backward rule finds the stacks that a kernel wrote."""
  shelf = _current.get()
  if shelf is None or shelf.use != "filled":
    return memory._replace(stacks=tuple(written))
  end = len(shelf.shapes)
  place = Place(end - len(written), end)
  shelf.stacks[place.first : place.end] = written
  return place


def memory_of(residual: Memory | Place) -> Memory:
  """What the forward rule handed over."""
  if isinstance(residual, Memory):
    return residual
  shelf = _current.get()
  return Memory(tuple(shelf.stacks[residual.first : residual.end]), shelf.layer)


def _stacks(shapes, num_layers: int, after) -> tuple[Array, ...]:
  return uninitialized(
    tuple(jax.ShapeDtypeStruct((num_layers, *s.shape), s.dtype) for s in shapes), after
  )


def of_layer(spec):
  """A kernel's block spec of one layer's array, of the stack that it is in; the number of the layer
  is the last of what the kernel prefetches."""
  from jax.experimental import pallas as pl  # a quarter second, for TPUs only

  return pl.BlockSpec((None, *spec.block_shape), lambda *at: (at[-1][0], *spec.index_map(*at)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(step: Callable, carry, beside, stacked):
  """`lax.scan(lambda carry, one: step(carry, beside, one), carry, stacked)`.

  Args:
    beside: is not differentiated by. `step` knows no arrays but its arguments.
  """
  return lax.scan(lambda carry, one: step(carry, beside, one), carry, stacked)


def _scan_forward(step, carry, beside, stacked):
  def with_pull(carry, one):
    return jax.vjp(lambda carry, one: step(carry, beside, one), carry, one)

  def forward(state, of_layer):
    (carry, stacks), (layer, one) = state, of_layer
    with _put_up(_Shelf("filled", list(stacks), layer)) as shelf:
      (carry, found), pull = with_pull(carry, one)
    return (carry, tuple(shelf.stacks)), (found, pull)

  one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)
  with _put_up(_Shelf("measured")) as shelf:
    jax.eval_shape(with_pull, carry, one)
  layers = _numbers(stacked)
  stacks = _stacks(shelf.shapes, layers.size, jax.tree.leaves(carry)[0])
  (carry, stacks), (found, pulls) = lax.scan(forward, (carry, stacks), (layers, stacked))
  return (carry, found), (layers, stacks, pulls)


def _scan_backward(step, residuals, gradients):
  layers, stacks, pulls = residuals
  dcarry, dfound = gradients

  def backward(dcarry, of_layer):
    layer, pull, dfound = of_layer
    with _put_up(_Shelf("read", list(stacks), layer)):
      return pull((dcarry, dfound))

  dcarry, dstacked = lax.scan(backward, dcarry, (layers, pulls, dfound), reverse=True)
  return dcarry, None, dstacked


def _numbers(stacked) -> Int[Array, "N 1"]:
  return jnp.arange(jax.tree.leaves(stacked)[0].shape[0], dtype=jnp.int32)[:, None]


scan.defvjp(_scan_forward, _scan_backward)
