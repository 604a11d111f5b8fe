"""What XLA is asked for a mesh, beyond its defaults.

On v6e, libtpu computes nothing while weights are all-gathered and gradients reduce-scattered: its
way to overlap them on v5e ("continuation fusion") it refuses there. A chip of v6e has SparseCores,
which can carry both out while the TensorCore computes. Names of the options as in MaxText's flag
library; nothing of this has run on a TPU.
"""

from jax.sharding import Mesh

SPARSECORE_COLLECTIVES = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
  "xla_tpu_use_tc_device_shape_on_sc": True,
  "xla_sc_disable_megacore_partitioning": True,
}
V6E = "TPU v6 lite"  # as JAX names the device


def compiler_options(mesh: Mesh | None) -> dict[str, bool] | None:
  """`jax.jit`'s `compiler_options` for programs of a mesh; None leaves XLA's defaults."""
  if mesh is None or mesh.size == 1 or mesh.devices.flat[0].device_kind != V6E:
    return None
  return SPARSECORE_COLLECTIVES
