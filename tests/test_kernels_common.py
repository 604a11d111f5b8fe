"""Kernels have room on a chip: real compiles for TPUs that are not here, of one kernel each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from moe_parity.aot.topology import slice_mesh, without_compile_cache
from moe_parity.errors import UserError
from moe_parity.kernels import common, grouped_swiglu_gradients, residual_stacks
from moe_parity.kernels import grouped_swiglu as kernels
from moe_parity.kernels.lane_tiles import split_into_lane_tiles
from moe_parity.kernels.tile_layout import tile_map
from moe_parity.kernels.topk_sum import topk_sum
from moe_parity.planning.expert_parallel import tile_padded_rows
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.tpu_slices import parse_slice
from moe_parity.sharding.mesh import use_mesh


def a_chip_of(topology) -> Mesh:
  slice_ = parse_slice(topology)
  devices = slice_mesh(slice_, MeshSizes(slice_.num_devices, 1, 1)).devices
  return Mesh(devices.reshape(-1)[:1], ("one",), axis_types=(AxisType.Auto,))


def compiles(function, *shapes, mesh):
  here = NamedSharding(mesh, PartitionSpec())
  operands = [jax.ShapeDtypeStruct(shape, dtype, sharding=here) for shape, dtype in shapes]

  def on_mesh(*operands):
    with use_mesh(mesh):
      return function(*operands)

  jitted = jax.jit(on_mesh, in_shardings=here, out_shardings=here)
  with without_compile_cache():
    return jitted.lower(*operands).compile()


@pytest.mark.compile
@pytest.mark.parametrize(
  "topology, mebibytes", [("v4-8", 16), ("v5e-4", 128), ("v5p-8", 64), ("v6e-4", 128)]
)
def test_a_core_has_the_memory_of_its_generation(topology, mebibytes):
  with use_mesh(a_chip_of(topology)):
    assert common.vmem_bytes() == mebibytes * 2**20
    assert 3 * common.vmem_bytes() / 4 <= common.vmem_budget_bytes() <= common.vmem_bytes()


@pytest.mark.compile
def test_gradients_of_wide_experts_fit_a_chip():
  """400 hidden channels of 4,096 are no whole 128s: sums of their gradients in one piece, with what
  is read and written meanwhile, take 49 MiB, more than a kernel has on v5p."""
  experts, i, d, dtype = 3, 400, 4096, jnp.bfloat16
  mesh, room = a_chip_of("v5p-8"), tile_padded_rows(20_000, experts)
  lanes, w_in = (room, d // 128, 128), (experts, 2, i, d)

  def gradients(count_L, x_RD, dy_RD, w_in_L2ID):
    memory = residual_stacks.allocate_single(
      *kernels._residual_shapes(x_RD, w_in_L2ID), after=count_L
    )
    hidden = memory.stacks[1][0]
    tiles = tile_map(count_L, room)
    return grouped_swiglu_gradients._wgrad_kernel(
      tiles, memory, dy_RD, w_in_L2ID, hidden, hidden, hidden, room
    )

  counts = ((experts,), jnp.int32)
  assert compiles(gradients, counts, (lanes, dtype), (lanes, dtype), (w_in, dtype), mesh=mesh)


@pytest.mark.compile
@pytest.mark.parametrize("topology", ["v4-8", "v5p-8"])
def test_choices_of_any_number_of_tokens_fit_a_chip(topology):
  rows, is_there = ((6, 4003, 16, 128), jnp.bfloat16), ((6, 4003), np.bool_)
  assert compiles(topk_sum, rows, is_there, mesh=a_chip_of(topology))


@pytest.mark.compile
@pytest.mark.parametrize("topology", ["v4-8", "v6e-4"])
def test_rows_of_any_number_are_split_on_a_chip(topology):
  rows = (4003, 11 * 128), jnp.bfloat16
  assert compiles(split_into_lane_tiles, rows, mesh=a_chip_of(topology))


@pytest.mark.compile
@pytest.mark.parametrize("topology, cores", [("v5p-8", 2), ("v6e-4", 1)])
def test_experts_compile_for_one_core_and_for_two(topology, cores):
  experts, i, d, dtype = 5, 320, 1408, jnp.bfloat16
  mesh, room = a_chip_of(topology), tile_padded_rows(9_000, experts)

  def gradients(count_L, weight_R, x_RD, w_in_L2ID, w_down_LID):
    assert common.num_cores() == cores
    ffn = lambda *operands: kernels.grouped_swiglu(*operands, count_L, room)  # noqa: E731
    y_RD, vjp = jax.vjp(ffn, x_RD, weight_R, w_in_L2ID, w_down_LID)
    return vjp(y_RD)

  shapes = (room, d // 128, 128), (experts, 2, i, d), (experts, i, d)
  operands = ((experts,), jnp.int32), ((room,), jnp.float32), *((s, dtype) for s in shapes)
  assert compiles(gradients, *operands, mesh=mesh)


def test_a_tpu_kernel_is_refused_on_a_gpu():
  device = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
  mesh = AbstractMesh((1,), ("one",), (AxisType.Auto,), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh), pytest.raises(UserError, match="'padded'"):
    jax.eval_shape(topk_sum, jnp.ones((2, 8, 128)), jnp.ones((2, 8), bool))


def test_a_simulated_platform_ends_with_its_context():
  with common.simulate("tpu"):
    assert (common.platform(), common.device_platform()) == ("tpu", "cpu")
    assert common.interpret()
  assert common.platform() == "cpu"


@pytest.mark.compile
def test_compile_cache_holds_no_program_of_absent_devices(tmp_path):
  """JAX warns, which fails a test, where it reads one back."""
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  reset_cache()
  try:
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))  # the cache is in use
    stored = set(tmp_path.iterdir())
    for _ in range(2):
      mesh = a_chip_of("v5e-4")
      compiles(lambda x: x * 2, ((8, 128), jnp.float32), mesh=mesh)
  finally:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
  assert stored and set(tmp_path.iterdir()) == stored
  assert jax.config.jax_enable_compilation_cache
