"""A scan whose kernels write what they keep into all layers' stacks, against `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from moe_parity.experts.overflow_rounds import with_overflow_rounds
from moe_parity.kernels import residual_stacks
from tests.helpers.routed import tpu_mesh

LAYERS, ROWS, WIDTH = 3, 5, 4


@jax.custom_vjp
def kernel(x_RD, w_D):
  """sin(x w), which keeps x and w, each in a stack: as a kernel writes and reads them."""
  return jnp.sin(x_RD * w_D[None, :])


def kernel_forward(x_RD, w_D):
  shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x_RD, w_D))
  memory = residual_stacks.allocate(*shapes, after=x_RD)
  stacks = [s.at[memory.layer[0]].set(a) for s, a in zip(memory.stacks, (x_RD, w_D), strict=True)]
  return kernel(x_RD, w_D), residual_stacks.save(memory, stacks)


def kernel_backward(residual, dy_RD):
  memory = residual_stacks.load(residual)
  x_RD, w_D = (stack[memory.layer[0]] for stack in memory.stacks)
  slope_RD = dy_RD * jnp.cos(x_RD * w_D[None, :])
  return slope_RD * w_D[None, :], jnp.sum(slope_RD * x_RD, axis=0)


kernel.defvjp(kernel_forward, kernel_backward)


def once(x_RD, offset_R, w):
  return kernel(x_RD, w["a"]) + offset_R[:, None]


def twice_and_in_rounds(x_RD, offset_R, w):
  """Two kernels a layer, the second of them in rounds, which the backward pass plays again."""

  def first(operands, _, offset_R):
    return kernel(*operands), ()

  def replay(index, operands, offset_R):
    return kernel(operands[0] + offset_R[:, None], operands[1]) / (index + 2)

  x_RD = kernel(x_RD, w["a"])
  return (
    x_RD + with_overflow_rounds(first, replay, (x_RD, w["b"]), (), offset_R, offset_R.size // 2)[0]
  )


def in_rounds_within_rounds(x_RD, offset_R, w):
  def inner_first(operands, *_):
    return kernel(*operands), ()

  def inner_replay(index, operands, _):
    return kernel(operands[0] * (index + 2), operands[1])

  def first(operands, _, offset_R):
    return with_overflow_rounds(
      inner_first, inner_replay, operands, (), offset_R, offset_R.size // 3
    )

  def replay(index, operands, offset_R):
    moved = operands[0] + offset_R[:, None], operands[1]
    return with_overflow_rounds(inner_first, inner_replay, moved, (), offset_R, offset_R.size // 3)[
      0
    ]

  return (
    with_overflow_rounds(first, replay, (x_RD, w["a"]), (), offset_R, offset_R.size // 2)[0] / 4
  )


@pytest.mark.parametrize("layer", [once, twice_and_in_rounds, in_rounds_within_rounds])
def test_values_and_gradients_are_those_of_lax_scan(layer):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
  weights = {name: rng.normal(size=(LAYERS, WIDTH)).astype(np.float32) for name in "ab"}
  offsets = np.arange(ROWS, dtype=np.int32)

  def step(x, offset_R, w):
    y = layer(x, offset_R, w)
    return y, jnp.sum(y * y, axis=0)

  def scored(scan):
    def of(x, weights):
      y, found = scan(x, weights)
      return jnp.sum(jnp.cos(y)) + jnp.sum(found * jnp.arange(1.0, WIDTH + 1)[None, :]), (y, found)

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))(x, weights)

  stacked = scored(lambda x, w: lax.scan(lambda x, one: step(x, offsets, one), x, w))
  in_place = scored(lambda x, w: residual_stacks.scan(step, x, offsets, w))
  assert float(jnp.abs(stacked[1][1]["a"]).min()) > 1e-4
  for a, b in zip(*map(jax.tree.leaves, (stacked, in_place)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_what_kernels_keep_is_neither_stacked_nor_sliced():
  """The loops hold the stacks as they are: nothing of a layer's shape is written into a stack or
  cut out of one but by the kernel itself."""
  big = jnp.ones((64, WIDTH))

  def total(x, w):
    return jnp.sum(residual_stacks.scan(lambda x, _, w: (kernel(x, w), None), x, (), w)[0])

  pull = jax.make_jaxpr(lambda x, w: jax.vjp(total, x, w)[1])(big, jnp.ones((LAYERS, WIDTH)))
  kept_shapes = [a.aval.shape for a in pull.jaxpr.outvars]
  assert kept_shapes.count((LAYERS, 64, WIDTH)) == 1, kept_shapes


def test_a_step_without_kernels_allocates_no_stacks():
  def total(x, w):
    step = lambda x, _, w: (jnp.sin(x * w[None, :]), None)  # noqa: E731
    return jnp.sum(residual_stacks.scan(step, x, (), w)[0])

  with jax.sharding.use_abstract_mesh(tpu_mesh(1)):
    traced = jax.jit(jax.grad(total)).trace(jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH)))
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("tpu",)).as_text()
