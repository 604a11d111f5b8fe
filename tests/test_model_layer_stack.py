"""A segment on a mesh: how the batch is cut for it, and that cutting changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity.kernels import common, residual_stacks
from moe_parity.model.layer_stack import LayerStack
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning import tpu_slices
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding import mesh as meshes
from tests.helpers import small_model

BATCH = 32


@pytest.mark.parametrize(
  "program, pattern, sizes, batch, num_batch_splits",
  [
    (("tpu", {}), (True,), MeshSizes(1, 2, 4), 16, 2),
    (("tpu", {}), (False, True), MeshSizes(1, 2, 4), 32, 2),
    (("gpu", {}), (True,), MeshSizes(1, 2, 4), 16, 2),
    (("cpu", {}), (True,), MeshSizes(1, 2, 4), 16, 1),
    (("tpu", {"num_batch_splits": 1}), (True,), MeshSizes(1, 2, 4), 16, 1),
    (("tpu", {"num_batch_splits": 4}), (True,), MeshSizes(1, 2, 4), 32, 4),
    (("tpu", {}), (True,), MeshSizes(1, 2, 4), 24, 1),  # three sequences a device
    (("tpu", {}), (False,), MeshSizes(1, 2, 4), 16, 1),
    (("tpu", {}), (True,), MeshSizes(2, 4, 1), 16, 1),
    (("tpu", {"capacity_factor": 1.25}), (True,), MeshSizes(1, 2, 4), 16, 1),
    (("tpu", {}), (True,), None, 16, 1),
  ],
)
def test_the_batch_is_split_where_dispatch_can_be_overlapped(
  program, pattern, sizes, batch, num_batch_splits
):
  platform, fields = program
  options = ModelOptions(**fields)
  stack = nnx.eval_shape(lambda: LayerStack(small_model.moe(), options, pattern, 2))
  with common.simulate(platform), meshes.use_mesh(sizes and meshes.make_mesh(sizes)):
    assert stack.num_batch_splits(batch) == num_batch_splits


def test_every_device_takes_its_own_sequences_through_in_order():
  """Data of a token (its document) moves with it, results keep the order."""
  stack = LayerStack(small_model.moe(num_experts=8), ModelOptions(num_batch_splits=2), (True,), 3)
  mesh = meshes.make_mesh(MeshSizes(1, 2, 4))
  number_BS = np.arange(BATCH * 5).reshape(BATCH, 5)
  x_TD = (number_BS.reshape(-1, 1) + np.zeros(12)).astype(np.float32)

  def through(layers, x_TD, batch, number_BS):
    assert batch == 2 and x_TD.shape == (10, 12) and number_BS.shape == (2, 5)
    return x_TD + 1000, (x_TD[:, 0], number_BS)

  def run(x_TD, number_BS):
    with meshes.use_mesh(mesh):
      return stack.scan_layers(through, x_TD, BATCH, number_BS)

  whole = jax.NamedSharding(mesh, meshes.P())
  moved_TD, (seen, numbers) = jax.jit(run, in_shardings=whole)(x_TD, number_BS)
  np.testing.assert_array_equal(moved_TD, x_TD + 3000)
  for repeat in range(3):
    np.testing.assert_array_equal(seen[repeat].reshape(-1), x_TD[:, 0] + 1000 * repeat)
    np.testing.assert_array_equal(numbers[repeat].reshape(BATCH, 5), number_BS)
  assert numbers.shape[:2] == (3, 16)


ON_A_MESH = {
  "batch splits, products saved and the rest rematerialized": (
    6,
    dict(num_batch_splits=2, remat="dots"),
  ),
  "a TPU's program, its kernels step by step": (
    128,
    dict(simulated="tpu", token_dispatch="ragged_all_to_all"),
  ),
}


@pytest.mark.parametrize("case", ON_A_MESH)
def test_splits_and_a_mesh_change_no_number(case, monkeypatch):
  """Dense and MoE layers in one pattern twice over, documents kept apart. float32, sums of other
  lengths."""
  seq_len, options = ON_A_MESH[case]
  monkeypatch.setattr(tpu_slices, "ROW_TILE", 16)
  architecture = small_model.moe(layout="interleave", num_layers=4, d_model=16, num_experts=6)
  inputs = jnp.asarray(small_model.tokens(batch=BATCH // 2, seq_len=seq_len)[0])
  document_BS = jnp.cumsum(inputs % 3 == 0, axis=1)
  model = small_model.build(architecture, 1)
  weights = nnx.split(model, nnx.Param, ...)[1:]

  def run(mesh, simulated="", **options):
    graph, _, _ = abstract_model(architecture, ModelOptions(**options))

    def of(params, rest):
      def scored(params):
        hidden_TD, stats = nnx.merge(graph, params, rest).final_hidden(inputs, document_BS)
        balance = jnp.sum(stats.probability_E * jnp.arange(6.0)[None])
        return jnp.mean(jnp.sin(hidden_TD)) + balance, (hidden_TD, stats)

      with common.simulate(simulated), meshes.use_mesh(mesh):
        return jax.grad(scored, has_aux=True)(params)

    whole = mesh and jax.NamedSharding(mesh, meshes.P())
    return jax.jit(of, in_shardings=whole)(*weights)

  whole = run(None)
  cut = run(meshes.make_mesh(MeshSizes(2, 2, 2)), **options)
  for one, many in zip(*map(jax.tree.leaves, (whole, cut)), strict=True):
    scale = float(jnp.abs(one).max())
    np.testing.assert_allclose(many, one, atol=2e-5 * max(scale, 1e-3))


@pytest.mark.parametrize(
  ("platform", "remat", "is_kept"),
  [("tpu", "none", True), ("tpu", "layer", False), ("gpu", "none", False), ("cpu", "none", False)],
)
def test_a_tpu_s_kernels_keep_in_place_what_nothing_makes_again(
  platform, remat, is_kept, monkeypatch
):
  used, scan = [], residual_stacks.scan
  monkeypatch.setattr(
    residual_stacks, "scan", lambda *operands: used.append(True) or scan(*operands)
  )
  options = ModelOptions(remat=remat)
  stack = nnx.eval_shape(lambda: LayerStack(small_model.moe(), options, (True,), 2))
  layers, x_TD = nnx.state(stack), jax.ShapeDtypeStruct((4, 12), jnp.float32)

  def run(layers, x_TD):
    through = lambda layers, x_TD, batch, _: (x_TD + layers[0].attention_norm(x_TD), ())  # noqa: E731
    return nnx.merge(nnx.graphdef(stack), layers).scan_layers(through, x_TD, 2)[0]

  with common.simulate(platform):
    jax.eval_shape(run, layers, x_TD)
  assert bool(used) == is_kept
