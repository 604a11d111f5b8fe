"""Meshes of a TPU slice that is not attached: enough to compile for it with libtpu on Linux."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh

from moe_parity.aot import libtpu
from moe_parity.aot.collectives import DevicePlacement
from moe_parity.errors import UserError
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import Slice
from moe_parity.sharding.mesh import make_mesh


def slice_mesh(slice_: Slice, sizes: MeshSizes) -> Mesh:
  """A mesh of a slice's devices, in the order that suits its links.

  Raises:
    UserError: libtpu is not installed, or does not know the slice.
  """
  libtpu.require()
  libtpu.silence_probe()
  options = {}
  if slice_.generation.name == "v4":
    # Its two cores are one device where JAX runs on it, but to libtpu only by this name.
    options["chip_config_name"] = "megacore"
  if slice_.num_chips == 1:
    # Up to 0.0.48, which comes with jax 0.11.2, libtpu takes every host for one of four chips.
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=slice_.compiler_name, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f"topology {slice_.compiler_name!r} is not one of this libtpu's: {error}; use another size"
    ) from None
  return make_mesh(sizes, described.devices)


def device_placement(slice_: Slice, mesh: Mesh) -> DevicePlacement:
  """The chip of every device of a mesh on the slice's grid."""
  coordinates = np.array([device.coords for device in mesh.devices.flat])
  return DevicePlacement(slice_, dict(mesh.shape), coordinates)


@contextlib.contextmanager
def without_compile_cache() -> Iterator[None]:
  """Compiles without JAX's persistent cache, which cannot load a program for absent devices.

  JAX would store the program, and warn at every later compile that it cannot read it back.
  """
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  reset_cache()  # JAX decides once a process whether it uses the cache
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    reset_cache()
