"""Gradients of all-gathered arrays, scattered in two ways, against `lax.all_gather`'s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_parity.aot import hlo
from moe_parity.aot.timeline import simulate
from moe_parity.aot.topology import device_placement, slice_mesh, without_compile_cache
from moe_parity.kernels.split_columns import split_columns
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import parse_slice
from moe_parity.sharding import fsdp_gather
from moe_parity.sharding.compiler_options import compiler_options
from moe_parity.sharding.mesh import use_mesh

WAYS = (fsdp_gather.all_gather_async_reduce_scatter, fsdp_gather.all_gather_plain_reduce_scatter)


@pytest.mark.parametrize("gather", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("axis, width", [(0, 7), (1, 7), (2, 7), (2, 128)])
def test_values_and_gradients_are_those_of_an_all_gather(axis, width, num, gather):
  """Values bit for bit. What was summed in another order may differ by a rounding."""
  mesh = Mesh(np.array(jax.devices()).reshape(-1, num), ("other", "cut"))
  rng = np.random.default_rng(axis)
  shape = [3, 5, width]
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

  actual = collected_and_used(lambda part: gather(part, axis, "cut"))
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


@pytest.mark.compile
@pytest.mark.parametrize("topology", ["v5e-64", "v6e-64"])
def test_a_tpu_does_not_rewrite_a_gradient_to_scatter_it(topology):
  """Left to XLA, this is a copy of the whole array on v6e and an all-reduce on v5e."""
  pytest.importorskip("libtpu")
  slice_ = parse_slice(topology)
  mesh = slice_mesh(slice_, MeshSizes(4, 16, 1))

  def backward(part, gradient):
    _, back = jax.vjp(lambda part: fsdp_gather.all_gather_weight(part, 3, "fsdp"), part)
    return back(split_columns(gradient, 1)[0])[0]  # a kernel's result, in the kernel's layout

  columns = P(None, None, None, "fsdp")
  scattered = jax.shard_map(
    backward, mesh=mesh, in_specs=(columns, P()), out_specs=columns, check_vma=False
  )
  shapes = [
    jax.ShapeDtypeStruct((16, 2, 256, 2048), "bfloat16", sharding=NamedSharding(mesh, spec))
    for spec in (columns, P())
  ]
  with use_mesh(mesh), without_compile_cache():
    step = jax.jit(scattered, compiler_options=compiler_options(mesh))
    text = step.lower(*shapes).compile().as_text()
  ops = simulate(hlo.parse(text), device_placement(slice_, mesh)).ops
  assert [op.collective.kind for op in ops if op.collective] == ["reduce-scatter"]
  size = 16 * 2 * 256 * 2048
  assert not [op for op in ops if op.opcode == "copy" and hlo.num_bytes(op.shape) >= 2 * size]
