"""The kernels of sorted rows, run step by step on a CPU, against a loop over rows in float64."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.kernels import (
  common,
  grouped_swiglu_gradients,
  grouped_swiglu_tiling,
  residual_stacks,
  tile_layout,
)
from moe_parity.kernels import grouped_swiglu as kernels
from moe_parity.kernels.grouped_swiglu_blocks import core_tile
from moe_parity.planning import expert_parallel, tpu_slices
from tests.helpers import reference


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(tpu_slices, "ROW_TILE", 16)


def row_experts(counts, num_rows):
  """Expert of each row, by a loop; -1 for padding."""
  expert_R, start = np.full(num_rows, -1), 0
  for expert, count in enumerate(counts):
    expert_R[start : start + count] = expert
    start += max(1, -(-count // tpu_slices.ROW_TILE)) * tpu_slices.ROW_TILE
  return expert_R


@pytest.mark.parametrize(
  ("counts", "spare"), [([0], 0), ([16, 0, 17, 90], 3), ([1] * 7, 0), ([33, 32, 31], 50)]
)
def test_each_tile_holds_rows_of_one_expert(small_tiles, counts, spare):
  num_rows = expert_parallel.tile_padded_rows(sum(counts) + spare, len(counts))
  expected = row_experts(counts, num_rows)  # fails where there is not num_rows enough
  counts = jnp.array(counts, jnp.int32)
  actual = np.asarray(tile_layout.row_expert_ids(counts, num_rows))
  np.testing.assert_array_equal(np.where(actual == counts.size, -1, actual), expected)
  used = tile_layout.tile_map(counts, num_rows)
  assert set(used.expert_N[: used.num_used[0]].tolist()) == set(range(counts.size))
  assert num_rows // tpu_slices.ROW_TILE % 2 == 0


@pytest.mark.parametrize("num_used", [1, 2, 5, 8])
def test_two_cores_compute_every_tile_once(num_used):
  computed, written = [], []
  for core in range(2):
    shares = [core_tile(core, step, np.array([num_used])) for step in range(4)]
    computed += [int(tile) for tile, is_mine in shares if is_mine]
    written.append({int(tile) for tile, _ in shares})
  assert computed == list(range(num_used))
  assert not written[0] & written[1]


def bytes_of_blocks(num_experts, i, d, dtype, is_stacked, gradients_are_joint) -> list[int]:
  """VMEM of each kernel by its block specs: operands and results twice, accumulators once. Arrays
  are stored in tiles of 8 x 128."""

  def padded(shape, dtype):
    *rest, rows, columns = (1, *(size if isinstance(size, int) else 1 for size in shape))
    rows, columns = -(-rows // 8) * 8, -(-columns // 128) * 128
    return math.prod(rest) * rows * columns * np.dtype(dtype).itemsize

  num_rows = expert_parallel.tile_padded_rows(300, num_experts)
  shapes = [
    ((num_rows, d // 128, 128) if d % 128 == 0 else (num_rows, d), dtype),
    ((num_rows,), jnp.float32), ((num_experts, 2, i, d), dtype), ((num_experts, i, d), dtype),
    ((num_experts,), jnp.int32),
  ]  # fmt: skip

  def gradients(x, weight, w_in, w_down, counts):
    ffn = lambda *operands: kernels.grouped_swiglu(*operands, counts, num_rows)  # noqa: E731
    y, vjp = jax.vjp(in_a_scan(ffn) if is_stacked else ffn, x, weight, w_in, w_down)
    return vjp(y)

  jaxpr = jax.make_jaxpr(gradients)(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
  calls = kernel_calls(jaxpr.jaxpr)
  assert len(calls) == (2 if gradients_are_joint else 3)
  result = []
  for call in calls:
    grid = call["grid_mapping"]
    blocks = [m for m in grid.block_mappings if "any" not in str(m.transformed_block_aval)]
    scratch = call["jaxpr"].invars[len(call["jaxpr"].invars) - grid.num_scratch_operands :]
    result.append(
      2 * sum(padded(m.block_aval.shape, m.array_aval.dtype) for m in blocks)
      + sum(padded(v.aval.shape, v.aval.dtype) for v in scratch)
    )
  return result


def kernel_calls(jaxpr):
  """Parameters of all kernels in a jaxpr."""
  return [e.params for e in equations(jaxpr) if "grid_mapping" in e.params]


def equations(jaxpr):
  """All equations of a jaxpr, those of inner jaxprs too, but not a kernel's."""
  for equation in jaxpr.eqns:
    yield equation
    if "grid_mapping" not in equation.params:
      for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
          yield from equations(inner)


def used_kernels(jaxpr) -> int:
  """Kernels whose results something reads; jax 0.11 leaves it to XLA to drop the others."""
  read = {id(v) for e in jaxpr.eqns for v in e.invars} | {id(v) for v in jaxpr.outvars}
  count = 0
  for equation in jaxpr.eqns:
    if "grid_mapping" in equation.params:
      count += any(id(v) in read for v in equation.outvars)
      continue
    inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
    count += sum(used_kernels(value) for value in inner if hasattr(value, "eqns"))
  return count


@pytest.mark.parametrize("mebibytes", [16, 64, 128])
@pytest.mark.parametrize("i, d", [(512, 2048), (320, 1408), (400, 4096), (2000, 7168), (72, 200)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_kernels_fit_in_vmem_with_as_few_chunks_as_possible(mebibytes, i, d, dtype, monkeypatch):
  monkeypatch.setattr(common, "vmem_bytes", lambda: mebibytes * 2**20)
  w_in = jax.ShapeDtypeStruct((3, 2, i, d), dtype)
  try:
    sizes = grouped_swiglu_tiling.SwigluTiling.of(w_in)
  except UserError as error:
    assert f"d_model={d}" in str(error)
    sizes = grouped_swiglu_tiling.SwigluTiling(3, i, d, np.dtype(dtype).itemsize, -(-i // 128), 128)
    assert sizes.vmem_bytes() > common.vmem_budget_bytes()
    return
  for num_cores, is_stacked in itertools.product((1, 2), (False, True)):
    monkeypatch.setattr(grouped_swiglu_gradients, "num_cores", lambda n=num_cores: n)
    is_joint = num_cores == 1 and sizes.has_room_for_sums
    blocks = max(bytes_of_blocks(3, i, d, dtype, is_stacked, is_joint))
    most = common.vmem_budget_bytes() if is_joint or not is_stacked else sizes.vmem_bytes()
    assert blocks <= most <= common.vmem_budget_bytes()
  assert sizes.num_chunks * sizes.chunk >= i > (sizes.num_chunks - 1) * sizes.chunk
  if sizes.num_chunks > 1:
    wider = -(-i // (128 * (sizes.num_chunks - 1))) * 128
    assert sizes._replace(chunk=wider).vmem_bytes() > common.vmem_budget_bytes()


@pytest.mark.parametrize("mebibytes", [64, 128])
def test_the_papers_experts_need_one_chunk(mebibytes, monkeypatch):
  monkeypatch.setattr(common, "vmem_bytes", lambda: mebibytes * 2**20)
  for i, d in ((512, 2048), (320, 1408)):
    sizes = grouped_swiglu_tiling.SwigluTiling.of(jax.ShapeDtypeStruct((5, 2, i, d), jnp.bfloat16))
    assert (sizes.num_chunks, sizes.chunk) == (1, i)


def test_sums_in_one_kernel_need_the_whole_hidden_layer():
  whole = grouped_swiglu_tiling.SwigluTiling(3, 256, 512, 2, 1, 256)
  assert whole.has_room_for_sums
  assert not whole._replace(num_chunks=2, chunk=128).has_room_for_sums


# counts, I, D, lanes, bytes of memory
CASES = {
  "a matrix": ([5, 50, 0], 40, 24, False, 2**22),
  "lanes": ([16, 0, 0, 33], 40, 256, True, 2**22),
  "chunks of a wide hidden layer": ([20, 0, 70, 3], 300, 128, True, 1_300_000),
  "no rows": ([0, 0], 24, 128, False, 2**22),
}


def in_a_scan(ffn):
  """The function as the one layer of a scan whose kernels save in stacks."""

  def scanned(x, *others):
    step = lambda x, _, others: (ffn(x, *others), None)  # noqa: E731
    return residual_stacks.scan(step, x, (), [a[None] for a in others])[0]

  return scanned


@pytest.mark.parametrize("num_cores, is_stacked", [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_a_loop_whatever_pads_rows(
  case, num_cores, is_stacked, small_tiles, monkeypatch
):
  """`is_stacked`: the hidden layer is saved in the stacks of a scan, and not computed again."""
  counts, i, d, to_lane_tiles, memory = CASES[case]
  monkeypatch.setattr(grouped_swiglu_gradients, "num_cores", lambda: num_cores)
  monkeypatch.setattr(common, "vmem_budget_bytes", lambda: memory)
  rng, num_rows = (
    np.random.default_rng(0),
    expert_parallel.tile_padded_rows(sum(counts), len(counts)),
  )
  expert_R = row_experts(counts, num_rows)
  valid = expert_R >= 0
  x, dy = (np.where(valid[:, None], rng.normal(size=(num_rows, d)), np.nan) for _ in range(2))
  weight = rng.normal(size=num_rows)
  w_in = rng.normal(size=(len(counts), 2, i, d)) / d**0.5
  w_down = rng.normal(size=(len(counts), i, d)) / i**0.5
  assert (grouped_swiglu_tiling.SwigluTiling.of(jnp.asarray(w_in, jnp.float32)).num_chunks > 1) == (
    "chunks" in case
  )

  @jax.jit
  def both(x, weight, w_in, w_down, dy):
    counted = jnp.array(counts, jnp.int32)
    ffn = lambda *operands: kernels.grouped_swiglu(*operands, counted, num_rows)  # noqa: E731
    y, vjp = jax.vjp(in_a_scan(ffn) if is_stacked else ffn, x, weight, w_in, w_down)
    return y, *vjp(dy)

  shape = (num_rows, d // 128, 128) if to_lane_tiles else (num_rows, d)
  operands = x.reshape(shape), weight, w_in, w_down, dy.reshape(shape)
  y, dx, dweight, *dweights = both(*(jnp.asarray(a, jnp.float32) for a in operands))
  y, dx = (np.asarray(a).reshape(num_rows, d) for a in (y, dx))
  rows = x[valid], expert_R[valid][:, None], weight[valid][:, None], w_in, w_down
  expected = reference.expert_ffn(*rows), *reference.expert_ffn_gradients(*rows, dy[valid])
  actual = y[valid], dx[valid], np.asarray(dweight)[valid][:, None], *dweights
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max(initial=0)))


@pytest.mark.parametrize(
  "num_cores, has_room, expected", [(1, True, 2), (2, True, 3), (2, False, 4)]
)
def test_rematerialization_runs_no_forward_kernel_given_room(
  num_cores, has_room, expected, small_tiles, monkeypatch
):
  """Kernels in a layer and its gradient: forward and all gradients; or forward, dgrad and wgrad."""
  x, w_in, w_down = jnp.ones((32, 256)), jnp.ones((1, 2, 40, 256)), jnp.ones((1, 40, 256))
  tiling = grouped_swiglu_tiling.SwigluTiling.of(w_in)
  monkeypatch.setattr(grouped_swiglu_gradients, "num_cores", lambda: num_cores)
  if not has_room:
    monkeypatch.setattr(common, "vmem_budget_bytes", tiling.vmem_bytes)
  assert tiling.has_room_for_rows == has_room

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def ffn(x, w_in):
    return kernels.grouped_swiglu(x, jnp.ones(32), w_in, w_down, jnp.array([20], jnp.int32), 20)

  gradients = jax.grad(lambda x, w_in: jnp.sum(jnp.sin(ffn(x, w_in))), argnums=(0, 1))
  jaxpr = jax.make_jaxpr(gradients)(x, w_in)
  assert used_kernels(jaxpr.jaxpr) == expected
