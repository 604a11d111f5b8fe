"""What XLA is asked for a mesh: v6e's SparseCores carry out collectives of weights."""

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe_parity.aot.topology import slice_mesh, without_compile_cache
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import parse_slice
from moe_parity.sharding.compiler_options import SPARSECORE_COLLECTIVES, compiler_options
from moe_parity.sharding.mesh import make_mesh


@pytest.mark.parametrize(
  "name, num_devices, expected",
  [
    ("v6e:2x2", 4, SPARSECORE_COLLECTIVES),
    ("v6e:1x1", 1, None),  # nothing to gather
    ("v5e:2x2", 4, None),
    ("v5p:2x2x1", 4, None),
  ],
)
def test_only_meshes_of_v6e_ask_for_sparsecores(name, num_devices, expected):
  pytest.importorskip("libtpu")
  mesh = slice_mesh(parse_slice(name), MeshSizes(1, num_devices, 1))
  assert compiler_options(mesh) == expected


def test_on_a_cpu_nothing_is_asked():
  assert compiler_options(None) is None
  assert compiler_options(make_mesh(MeshSizes(1, 2, 1), jax.devices()[:2])) is None


@pytest.mark.compile
def test_libtpu_takes_the_options_and_offloads_gathers():
  pytest.importorskip("libtpu")
  mesh = slice_mesh(parse_slice("v6e:2x2"), MeshSizes(1, 4, 1))

  def gathered_product(x, w):
    return x @ jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)

  whole = jax.shard_map(
    gathered_product, mesh=mesh, in_specs=(P(), P("fsdp")), out_specs=P(), check_vma=False
  )
  shapes = [
    jax.ShapeDtypeStruct((size, 1024), "bfloat16", sharding=NamedSharding(mesh, spec))
    for size, spec in ((512, P()), (1024, P("fsdp")))
  ]
  step = jax.jit(whole, compiler_options=compiler_options(mesh))
  with without_compile_cache():
    text = step.lower(*shapes).compile().as_text()
  assert "OFFLOAD_COLLECTIVE" in text
