"""Slices that are not attached, as libtpu describes them: every size that is offered exists."""

import pytest

from moe_parity.aot.topology import slice_mesh
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import GENERATIONS, Slice


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=GENERATIONS)
def test_the_smallest_slices_of_a_generation_are_described(generation):
  """One chip where Google rents one, then a host of four: by old and new versions of libtpu."""
  pytest.importorskip("libtpu")
  for grid in generation.grids[:3]:
    slice_ = Slice(generation, grid)
    mesh = slice_mesh(slice_, MeshSizes(slice_.num_devices, 1, 1))
    assert mesh.size == slice_.num_devices
    last = max(tuple(device.coords) for device in mesh.devices.flat)
    assert last == tuple(size - 1 for size in (*grid, 1)[:3])
