"""JAX's TPU kernel with ALiBi as columns: interpreted on a CPU, and compiled for a chip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe_parity.aot.topology import slice_mesh, without_compile_cache
from moe_parity.kernels.splash_attention import splash_attention
from moe_parity.model.attention import alibi_slopes, causal_attention
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import parse_slice
from moe_parity.sharding.mesh import use_mesh

B, S, H, N, Q = 2, 256, 4, 2, 20
DOCUMENT = jnp.cumsum(jnp.arange(S) % 100 == 99)[None] + jnp.arange(B)[:, None]


def test_splash_and_its_gradients_are_plain_attentions():
  """float32 sums over 256 keys; ALiBi reaches 64 in a score, whose rounding is 8e-6."""
  shapes = (B, S, H, Q), (B, S, N, Q), (B, S, N, Q)
  rows = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
  slopes = alibi_slopes(H)

  def run(attention):
    def scored(*rows):
      y = attention(*rows)
      return jnp.sum(jnp.sin(3 * y)), y

    return jax.jit(jax.value_and_grad(scored, (0, 1, 2), has_aux=True))(*rows)

  (_, got), got_grads = run(lambda *rows: splash_attention(*rows, slopes, DOCUMENT))
  (_, want), want_grads = run(lambda *rows: causal_attention(*rows, slopes, S, DOCUMENT))
  np.testing.assert_allclose(got, want, atol=2e-5)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=4e-5 * float(jnp.abs(b).max()))


@pytest.mark.compile
def test_splash_and_its_gradients_compile_for_a_tpu():
  """Wide heads with ALiBi, shared keys and documents, on the generation with the least memory."""
  slice_ = parse_slice("v5e-4")
  devices = slice_mesh(slice_, MeshSizes(slice_.num_devices, 1, 1)).devices
  mesh = Mesh(devices.reshape(-1)[:1], ("one",), axis_types=(AxisType.Auto,))
  here = NamedSharding(mesh, PartitionSpec())
  shapes = (1, 1024, 4, 128), (1, 1024, 2, 128), (1, 1024, 2, 128)
  rows = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in shapes]
  document = jax.ShapeDtypeStruct((1, 1024), jnp.int32, sharding=here)

  def gradients(q, k, v, document):
    with use_mesh(mesh):

      def loss(*rows):
        return splash_attention(*rows, alibi_slopes(4), document).astype(jnp.float32).sum()

      return jax.grad(loss, (0, 1, 2))(q, k, v)

  lowered = jax.jit(gradients, out_shardings=here).lower(*rows, document)
  with without_compile_cache():
    text = lowered.compile().as_text()
  assert text.count("tpu_custom_call") >= 3  # forward, and the backward kernels of q and of k, v
