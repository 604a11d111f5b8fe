"""Pallas kernels write saved residuals straight into a scan's stacked buffers and read them there.

`lax.scan` stacks what its steps save for the backward pass: a kernel's residuals are copied into
the stack, and out of it again for the kernel that reads them. Under `scan` here a kernel takes the
whole stack, writes its own layer's slice in the forward pass and reads it in the backward pass.
Residuals of everything else are stacked as usual.

A kernel's forward rule allocates, writes and saves; its backward rule loads:

  buffers = residual_stacks.allocate(*shapes, after=x)
  residual = residual_stacks.save(buffers, written_stacks)
  buffers = residual_stacks.load(residual)
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from moe_parity.kernels.common import pl, uninitialized


class ResidualBuffers(NamedTuple):
  """One kernel's buffers: stacks [layers, ...] of its residuals, and the layer to read or write."""

  stacks: tuple[Array, ...]
  layer: Int[Array, "1"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StackSlots:
  """The range of one kernel's stacks among those of all kernels: a residual without arrays."""

  first: int
  end: int


@dataclasses.dataclass
class _StackContext:
  """All kernels' stacks while a layer is traced, and `shapes` of one layer's residuals so far."""

  mode: Literal["measure", "write", "read"]
  stacks: list[Array] = dataclasses.field(default_factory=list)
  layer: Any = None
  shapes: list[jax.ShapeDtypeStruct] = dataclasses.field(default_factory=list)


_current: contextvars.ContextVar[_StackContext | None] = contextvars.ContextVar(
  "residual stacks", default=None
)


@contextlib.contextmanager
def _set_context(context: _StackContext | None) -> Iterator[_StackContext | None]:
  token = _current.set(context)
  try:
    yield context
  finally:
    _current.reset(token)


def unstacked():
  """A context in which kernels get buffers of a single layer: for a loop inside a layer that saves
  nothing beyond itself."""
  return _set_context(None)


def is_scanning() -> bool:
  """Whether a `scan` of this file is being traced, so that what a kernel saves is stacked."""
  return _current.get() is not None


def single(*arrays: Array) -> ResidualBuffers:
  """Arrays as the stacks of a single layer, which nothing copies."""
  return ResidualBuffers(tuple(a[None] for a in arrays), jnp.zeros(1, jnp.int32))


def allocate_single(*shapes: jax.ShapeDtypeStruct, after: Array) -> ResidualBuffers:
  """Uninitialized buffers of these shapes for a single layer.

  Args:
    after: computed before the buffers are needed.
  """
  return ResidualBuffers(_stacks(shapes, 1, after), jnp.zeros(1, jnp.int32))


def allocate(*shapes: jax.ShapeDtypeStruct, after: Array) -> ResidualBuffers:
  """Called in a forward rule: the stacks of all layers, with the number of the layer being traced.
  Without a `scan` around the kernel, and in rematerialization, those of a single layer."""
  context = _current.get()
  if context is not None:
    first = len(context.shapes)
    context.shapes += shapes
    if context.mode == "write":
      return ResidualBuffers(tuple(context.stacks[first : len(context.shapes)]), context.layer)
  return allocate_single(*shapes, after=after)


def save(buffers: ResidualBuffers, written: Sequence[Array]) -> ResidualBuffers | StackSlots:
  """The residual from which the backward rule loads the stacks that a kernel wrote."""
  context = _current.get()
  if context is None or context.mode != "write":
    return buffers._replace(stacks=tuple(written))
  end = len(context.shapes)
  slots = StackSlots(end - len(written), end)
  context.stacks[slots.first : slots.end] = written
  return slots


def load(residual: ResidualBuffers | StackSlots) -> ResidualBuffers:
  """The buffers that the forward rule saved."""
  if isinstance(residual, ResidualBuffers):
    return residual
  context = _current.get()
  return ResidualBuffers(tuple(context.stacks[residual.first : residual.end]), context.layer)


def _stacks(shapes, num_layers: int, after: Array) -> tuple[Array, ...]:
  """Uninitialized arrays [N, *shape], N = num_layers."""
  return uninitialized(
    tuple(jax.ShapeDtypeStruct((num_layers, *s.shape), s.dtype) for s in shapes), after
  )


def layer_spec(spec):
  """A block spec for one layer's array [...], turned into one for the stack of all N layers
  [N, ...]; the layer's number is the last of the kernel's prefetched scalars."""
  return pl.BlockSpec((None, *spec.block_shape), lambda *at: (at[-1][0], *spec.index_map(*at)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(step: Callable, carry, constants, stacked):
  """`lax.scan(lambda carry, one: step(carry, constants, one), carry, stacked)`.

  Args:
    constants: not differentiated. `step` may use no arrays but its arguments.
  """
  return lax.scan(lambda carry, one: step(carry, constants, one), carry, stacked)


def _scan_forward(step, carry, constants, stacked):
  def step_with_vjp(carry, one):
    return jax.vjp(lambda carry, one: step(carry, constants, one), carry, one)

  def forward(state, of_layer):
    (carry, stacks), (layer, one) = state, of_layer
    with _set_context(_StackContext("write", list(stacks), layer)) as context:
      (carry, output), vjp = step_with_vjp(carry, one)
    return (carry, tuple(context.stacks)), (output, vjp)

  one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)
  with _set_context(_StackContext("measure")) as context:
    jax.eval_shape(step_with_vjp, carry, one)
  layers = _layer_numbers(stacked)
  stacks = _stacks(context.shapes, layers.size, jax.tree.leaves(carry)[0])
  (carry, stacks), (outputs, vjps) = lax.scan(forward, (carry, stacks), (layers, stacked))
  return (carry, outputs), (layers, stacks, vjps)


def _scan_backward(step, residuals, gradients):
  layers, stacks, vjps = residuals
  dcarry, doutputs = gradients

  def backward(dcarry, of_layer):
    layer, vjp, doutput = of_layer
    with _set_context(_StackContext("read", list(stacks), layer)):
      return vjp((dcarry, doutput))

  dcarry, dstacked = lax.scan(backward, dcarry, (layers, vjps, doutputs), reverse=True)
  return dcarry, None, dstacked


def _layer_numbers(stacked) -> Int[Array, "N 1"]:
  return jnp.arange(jax.tree.leaves(stacked)[0].shape[0], dtype=jnp.int32)[:, None]


scan.defvjp(_scan_forward, _scan_backward)
