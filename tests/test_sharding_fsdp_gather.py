"""Gradients of collected arrays, scattered by a ragged exchange, against `lax.all_gather`'s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe_parity.kernels.split_columns import split_columns
from moe_parity.sharding import fsdp_gather


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_values_and_gradients_are_those_of_an_all_gather(axis, num):
  """Values bit for bit. What was summed in another order may differ by a rounding."""
  mesh = Mesh(np.array(jax.devices()).reshape(-1, num), ("other", "cut"))
  rng = np.random.default_rng(axis)
  shape = [3, 5, 7]
  shape[axis] *= num
  array = rng.normal(size=shape).astype(np.float32)
  weight = rng.normal(size=(8, *shape)).astype(np.float32)  # each device uses it otherwise
  lies = P(*[None] * axis, "cut")

  def collected_and_used(collect):
    def local(part, weight):
      whole = collect(part)
      return whole[None], jnp.sum(whole * weight[0])[None]

    used = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(lies, P(("other", "cut"))),
      out_specs=P(("other", "cut")),
      check_vma=False,
    )

    def objective(array):
      whole, sums = used(array, weight)
      return jnp.sum(sums), whole

    return jax.jit(jax.grad(objective, has_aux=True))(array)

  actual = collected_and_used(
    lambda part: fsdp_gather.all_gather_async_reduce_scatter(part, axis, "cut")
  )
  expected = collected_and_used(lambda part: lax.all_gather(part, "cut", axis=axis, tiled=True))
  np.testing.assert_array_equal(actual[1], np.broadcast_to(array, (8, *shape)))
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(actual[0], weight.sum(0), rtol=1e-5, atol=1e-5)


def test_gradients_in_bfloat16_are_summed_in_float32():
  """256 and three times 0.75: in bfloat16 every sum on the way would be rounded to 256."""
  mesh = Mesh(np.array(jax.devices()[:4]), ("cut",))
  gradient = jnp.asarray([256, 0.75, 0.75, 0.75], jnp.bfloat16)

  def local(part, scale):
    _, back = jax.vjp(
      lambda part: fsdp_gather.all_gather_async_reduce_scatter(part, 0, "cut"), part
    )
    return back(jnp.broadcast_to(scale, (12, 5)))[0]

  back = jax.shard_map(
    local, mesh=mesh, in_specs=(P("cut"), P("cut")), out_specs=P("cut"), check_vma=False
  )
  summed = jax.jit(back)(jnp.zeros((12, 5), jnp.bfloat16), gradient)
  assert summed.dtype == jnp.bfloat16
  np.testing.assert_array_equal(summed.astype(np.float32), np.full((12, 5), 258))


@pytest.mark.parametrize("rest", [(48,), (3, 2, 32), (5, 7), (1500,)])
def test_a_matrix_is_cut_into_columns(rest):
  """By the kernel that a TPU takes, run step by step; the last in blocks, one of them not full."""
  whole = np.random.default_rng(0).normal(size=(*rest, 4 * 256)).astype(np.float32)
  np.testing.assert_array_equal(split_columns(jnp.asarray(whole), 4), np.split(whole, 4, axis=-1))
