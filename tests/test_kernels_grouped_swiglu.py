"""The kernels of sorted rows, run step by step on a CPU, against a loop over rows in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.kernels import common, grouped_swiglu_tiling, tile_layout
from moe_parity.kernels import grouped_swiglu as kernels
from moe_parity.planning import expert_parallel
from tests.helpers import reference


@pytest.fixture
def small_tiles(monkeypatch):
  for module in (expert_parallel, grouped_swiglu_tiling, tile_layout, kernels):
    monkeypatch.setattr(module, "TILE", 16)


def whose(counts, room):
  """Expert of each row, by a loop; -1 for nobody's."""
  expert_R, start = np.full(room, -1), 0
  for expert, count in enumerate(counts):
    expert_R[start : start + count] = expert
    start += max(1, -(-count // tile_layout.TILE)) * tile_layout.TILE
  return expert_R


@pytest.mark.parametrize(
  ("counts", "spare"), [([0], 0), ([16, 0, 17, 90], 3), ([1] * 7, 0), ([33, 32, 31], 50)]
)
def test_rows_of_any_counts_lie_in_whole_tiles_of_one_expert(small_tiles, counts, spare):
  room = expert_parallel.room_for(sum(counts) + spare, len(counts))
  expected = whose(counts, room)  # fails where there is not room enough
  counts = jnp.array(counts, jnp.int32)
  actual = np.asarray(tile_layout.expert_of_rows(counts, room))
  np.testing.assert_array_equal(np.where(actual == counts.size, -1, actual), expected)
  used = tile_layout.tiles_of(counts, room)
  assert set(used.expert_N[: used.num_used[0]].tolist()) == set(range(counts.size))
  assert room // tile_layout.TILE % 2 == 0


@pytest.mark.parametrize("num_used", [1, 2, 5, 8])
def test_two_cores_compute_every_tile_once_and_write_nothing_of_each_other(num_used):
  computed, written = [], []
  for core in range(2):
    shares = [kernels._share(core, step, np.array([num_used])) for step in range(4)]
    computed += [int(tile) for tile, is_mine in shares if is_mine]
    written.append({int(tile) for tile, _ in shares})
  assert computed == list(range(num_used))
  assert not written[0] & written[1]


def bytes_of_blocks(monkeypatch, num_experts, i, d, dtype) -> list[int]:
  """By what each kernel asks for: its blocks of operands and results twice, and its sums once. Two
  last axes lie in tiles of 8 x 128."""

  def padded(shape, dtype):
    *rest, rows, columns = (1, *shape)
    rows, columns = -(-rows // 8) * 8, -(-columns // 128) * 128
    return math.prod(rest) * rows * columns * np.dtype(dtype).itemsize

  found, call = [], kernels._call

  def noted(*arguments, in_specs, out_specs, out_shape, scratch, **others):
    run = call(
      *arguments, in_specs=in_specs, out_specs=out_specs, out_shape=out_shape, scratch=scratch,
      **others,
    )  # fmt: skip

    def noting(*operands):
      blocks = zip([*in_specs, *out_specs], [*operands, *out_shape], strict=True)
      shapes = [(spec.block_shape, array.dtype) for spec, array in blocks if spec.block_shape]
      sizes = [padded([size or 1 for size in shape], dtype) for shape, dtype in shapes]
      found.append(2 * sum(sizes) + sum(padded(part.shape, part.dtype) for part in scratch))
      return run(*operands)

    return noting

  monkeypatch.setattr(kernels, "_call", noted)
  room = expert_parallel.room_for(300, num_experts)
  x = jax.ShapeDtypeStruct((room, d // 128, 128) if d % 128 == 0 else (room, d), dtype)
  weight = jax.ShapeDtypeStruct((room,), jnp.float32)
  w_in = jax.ShapeDtypeStruct((num_experts, 2, i, d), dtype)
  w_down = jax.ShapeDtypeStruct((num_experts, i, d), dtype)
  counts = jax.ShapeDtypeStruct((num_experts,), jnp.int32)

  def gradients(x, weight, w_in, w_down, counts):
    ffn = lambda *operands: kernels.grouped_ffn(*operands, counts, room)  # noqa: E731
    y, vjp = jax.vjp(ffn, x, weight, w_in, w_down)
    return vjp(y)

  jax.eval_shape(gradients, x, weight, w_in, w_down, counts)
  assert len(found) == 3
  return found


@pytest.mark.parametrize("mebibytes", [16, 64, 128])
@pytest.mark.parametrize("i, d", [(512, 2048), (320, 1408), (400, 4096), (2000, 7168), (72, 200)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_what_kernels_ask_for_is_in_the_memory_reckoned_and_no_fewer_chunks_would_be(
  mebibytes, i, d, dtype, monkeypatch
):
  monkeypatch.setattr(common, "vmem_bytes", lambda: mebibytes * 2**20)
  w_in = jax.ShapeDtypeStruct((3, 2, i, d), dtype)
  try:
    sizes = grouped_swiglu_tiling.Sizes.of(w_in)
  except UserError as error:
    assert f"d_model={d}" in str(error)
    sizes = grouped_swiglu_tiling.Sizes(3, i, d, np.dtype(dtype).itemsize, -(-i // 128), 128)
    assert sizes.on_chip() > common.kernel_bytes()
    return
  blocks = bytes_of_blocks(monkeypatch, 3, i, d, dtype)
  assert max(blocks) <= sizes.on_chip() <= common.kernel_bytes()
  assert sizes.num_chunks * sizes.chunk >= i > (sizes.num_chunks - 1) * sizes.chunk
  if sizes.num_chunks > 1:
    wider = -(-i // (128 * (sizes.num_chunks - 1))) * 128
    assert sizes._replace(chunk=wider).on_chip() > common.kernel_bytes()


@pytest.mark.parametrize("mebibytes", [64, 128])
def test_the_papers_experts_go_through_in_one_chunk(mebibytes, monkeypatch):
  monkeypatch.setattr(common, "vmem_bytes", lambda: mebibytes * 2**20)
  for i, d in ((512, 2048), (320, 1408)):
    sizes = grouped_swiglu_tiling.Sizes.of(jax.ShapeDtypeStruct((5, 2, i, d), jnp.bfloat16))
    assert (sizes.num_chunks, sizes.chunk) == (1, i)


# counts, I, D, lanes, bytes of memory
CASES = {
  "a matrix": ([5, 50, 0], 40, 24, False, 2**22),
  "lanes": ([16, 0, 0, 33], 40, 256, True, 2**22),
  "chunks of a wide hidden layer": ([20, 0, 70, 3], 300, 128, True, 1_300_000),
  "nobody": ([0, 0], 24, 128, False, 2**22),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_loop_whatever_lies_in_empty_room(
  case, small_tiles, monkeypatch
):
  counts, i, d, as_lanes, memory = CASES[case]
  monkeypatch.setattr(grouped_swiglu_tiling, "kernel_bytes", lambda: memory)
  rng, room = np.random.default_rng(0), expert_parallel.room_for(sum(counts), len(counts))
  expert_R = whose(counts, room)
  known = expert_R >= 0
  x, dy = (np.where(known[:, None], rng.normal(size=(room, d)), np.nan) for _ in range(2))
  weight = rng.normal(size=room)
  w_in = rng.normal(size=(len(counts), 2, i, d)) / d**0.5
  w_down = rng.normal(size=(len(counts), i, d)) / i**0.5
  assert (grouped_swiglu_tiling.Sizes.of(jnp.asarray(w_in, jnp.float32)).num_chunks > 1) == (
    "chunks" in case
  )

  @jax.jit
  def both(x, weight, w_in, w_down, dy):
    counted = jnp.array(counts, jnp.int32)
    ffn = lambda *operands: kernels.grouped_ffn(*operands, counted, room)  # noqa: E731
    y, vjp = jax.vjp(ffn, x, weight, w_in, w_down)
    return y, *vjp(dy)

  shape = (room, d // 128, 128) if as_lanes else (room, d)
  operands = x.reshape(shape), weight, w_in, w_down, dy.reshape(shape)
  y, dx, dweight, *dweights = both(*(jnp.asarray(a, jnp.float32) for a in operands))
  y, dx = (np.asarray(a).reshape(room, d) for a in (y, dx))
  rows = x[known], expert_R[known][:, None], weight[known][:, None], w_in, w_down
  expected = reference.expert_ffn(*rows), *reference.expert_ffn_gradients(*rows, dy[known])
  actual = y[known], dx[known], np.asarray(dweight)[known][:, None], *dweights
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max(initial=0)))
