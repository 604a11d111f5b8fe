"""The table of letters, what the loop refuses of a mesh, and an MoE layer's counts on one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity import config
from moe_parity.errors import UserError
from moe_parity.model.layer_stack import LayerStack
from moe_parity.model.moe import SelectionBias
from moe_parity.model.options import ModelOptions
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.plan import make_plan
from moe_parity.sharding import mesh as meshes
from moe_parity.sharding.mesh import ACTIVATIONS, CHECKPOINT_RULES, WEIGHTS, P, partition_spec
from moe_parity.training.build import make_run_mesh
from tests.helpers import small_model

DEMO = pathlib.Path(__file__).resolve().parent.parent / "configs" / "demo.py"


def test_letters_become_mesh_axes():
  assert partition_spec("-E2ID", WEIGHTS) == P(None, "expert", None, None, "fsdp")
  assert partition_spec("BS", ACTIVATIONS) == P(("data", "fsdp", "expert"), None)
  assert partition_spec("EID", CHECKPOINT_RULES) == P(None, None, ("fsdp", "expert"))


def test_whole_experts_are_sharded_where_there_is_no_expert_axis():
  mesh = meshes.make_mesh(MeshSizes(data=2, fsdp=4))
  assert meshes.weight_spec("-E2ID", (2, 11, 2, 6, 24), mesh) == P(None, "fsdp", None, None, None)
  assert meshes.weight_spec("-E2ID", (2, 9, 2, 6, 24), mesh) == partition_spec("-E2ID", WEIGHTS)
  assert meshes.weight_spec("-DHQ", (2, 24, 3, 8), mesh) == P(None, "fsdp", None, None)
  with_experts = meshes.make_mesh(MeshSizes(fsdp=4, expert=2))
  assert meshes.weight_spec("EID", (12, 6, 24), with_experts) == P("expert", None, "fsdp")


def test_two_letters_on_one_mesh_axis_are_refused():
  with pytest.raises(ValueError, match="'BT'.*two letters claim one mesh axis"):
    partition_spec("BT", ACTIVATIONS)


@pytest.mark.parametrize(
  "overrides, message",
  [
    (["--config.mesh.data=3"], r"data=3 x fsdp=1 x expert=1 is 3 devices and 8 are here"),
    (["--config.mesh.data=-1"], r"a batch of \d+ sequences cannot be cut for 8 devices"),
    (
      ["--config.mesh.expert=8", "--config.mesh.token_dispatch=ragged_all_to_all"],
      r"needs a TPU or GPU.*all_to_all",
    ),
    (
      ["--config.mesh.data=2", "--config.mesh.expert=4", "--config.model.num_batch_splits=5"],
      r"splits=5 does not divide the \d sequences that each of 8 devices has",
    ),
    (
      ["--config.mesh.expert=8", "--config.mesh.token_dispatch=radded"],
      r"token_dispatch='radded' is not known",
    ),
  ],
)
def test_a_mesh_this_machine_cannot_run_is_refused(overrides, message):
  batch = [] if "batch" in message else ["--config.budget.batch_multiple=8"]
  loose = ["--config.budget.flops_tolerance=0.05", "--config.budget.dense_tokens=12288"]
  loaded = config.load(f"{DEMO}:tiny", [*batch, *loose])
  arms = {arm.name: arm for arm in make_plan(loaded, vocab_size=272).arms}
  with pytest.raises(UserError, match=message):
    make_run_mesh(config.load(f"{DEMO}:tiny", [*overrides, *loose]), arms["moe_40"])


def test_a_dense_arm_trains_on_a_mesh_with_an_expert_axis():
  loaded = config.load(f"{DEMO}:tiny", ["--config.mesh.expert=8"])
  plan = next(arm for arm in make_plan(config.load(f"{DEMO}:tiny"), vocab_size=272).arms
              if arm.kind == "dense")  # fmt: skip
  with pytest.raises(UserError, match="a batch of"):  # its batch is all there is to say against it
    make_run_mesh(loaded, plan)


def test_loads_and_drops_on_a_mesh_are_those_of_all_devices():
  """With a capacity of 1 x mean, a device keeps the first ceil(T K / E) choices of an expert among
  its own tokens, and no stream a share of its own. Attention adds nothing here, and a norm changes
  no choice."""
  architecture = small_model.moe(d_model=24, num_experts=11, experts_per_token=3)
  options = ModelOptions(capacity_factor=1.0, token_dispatch="all_to_all", num_batch_splits=2)
  rng = np.random.default_rng(0)
  graph, params, rest = nnx.split(
    LayerStack(architecture, options, (True,), 1), nnx.Param, SelectionBias
  )
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
  layer = params["layers"][0]
  for norm in ("attention_norm", "feedforward_norm"):
    layer[norm]["scale"] = layer[norm]["scale"].replace(np.ones((1, 24), np.float32))
  out = layer["attention"]["out"]
  layer["attention"]["out"] = out.replace(np.zeros_like(out[...]))
  x_TD = rng.normal(size=(8 * 10, 24)).astype(np.float32)
  mesh = meshes.make_mesh(MeshSizes(2, 1, 4))

  def on_mesh(params, x_TD):
    with meshes.use_mesh(mesh):
      experts = params["layers"][0]["feedforward"]
      for name in ("experts_in", "experts_out"):  # one phantom, so that 4 devices have 3 each
        weight = experts[name][...]
        one_more = [(0, 0), (0, 1)] + [(0, 0)] * (weight.ndim - 2)
        experts[name] = experts[name].replace(jnp.pad(weight, one_more))
      _, (stats,) = nnx.merge(graph, params, rest)(x_TD, batch=16)
      return jax.tree.map(lambda of_layers: of_layers[0], stats)

  router_DE = layer["feedforward"]["router"][...][0]
  stats = jax.jit(on_mesh, in_shardings=jax.NamedSharding(mesh, P()))(params, x_TD)
  chosen_TK = np.argsort(-(x_TD @ router_DE), axis=1)[:, :3]
  chosen_GA = chosen_TK.reshape(8, -1)
  counts_GE = np.stack([np.bincount(row, minlength=11) for row in chosen_GA])
  np.testing.assert_allclose(stats.load_E, counts_GE.sum(0) / chosen_GA.size, rtol=1e-6)
  dropped = np.maximum(counts_GE - int(np.ceil(10 * 3 / 11)), 0).sum()
  assert dropped > 0
  np.testing.assert_allclose(stats.drop_share, dropped / chosen_GA.size, rtol=1e-6)
