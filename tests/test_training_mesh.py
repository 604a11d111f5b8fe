"""The same run on a mesh and on one device: 20 steps, every logged number."""

import jax
import numpy as np
import pytest

from moe_parity.model.options import ModelOptions
from moe_parity.parallel.mesh import make_mesh, rows_of_hosts
from moe_parity.resources.mesh import MeshSizes
from moe_parity.training.optimizer import OptimizerOptions
from moe_parity.training.state import init_state
from moe_parity.training.step import StepOptions, make_train_step
from tests import small_model

STEPS = 20
ARCHITECTURE = small_model.moe(d_model=24, num_layers=2)  # one dense layer, one of 7 experts
OPTIMIZER = OptimizerOptions(0.01, 1e-5, num_steps=STEPS, warmup_steps=4)


def run(sizes: MeshSizes, accumulation=1, remat="none"):
  """(state, scalars of every step): a balance loss, a z-loss and a bias step that weigh enough for
  a mean over the wrong tokens to show."""
  mesh, model = make_mesh(sizes), ModelOptions(remat=remat)
  state = init_state(ARCHITECTURE, model, OPTIMIZER, 3, mesh)
  options = StepOptions(0.5, 0.1, bias_update_rate=0.01, accumulation=accumulation)
  step = make_train_step(ARCHITECTURE, model, OPTIMIZER, options, mesh)
  history = []
  for number in range(STEPS):
    batch = [np.asarray(rows) for rows in small_model.tokens(batch=16, seed=number)]
    if mesh is not None:
      batch = [rows_of_hosts(rows, mesh) for rows in batch]
    state, scalars = step(state, *batch)
    history.append(jax.device_get(scalars))
  return state, history


@pytest.fixture(scope="module")
def one_device():
  return run(MeshSizes())


@pytest.mark.parametrize(
  "sizes, accumulation, remat",
  [
    (MeshSizes(data=8), 1, "none"),
    (MeshSizes(fsdp=8), 1, "none"),
    (MeshSizes(data=4, fsdp=2), 2, "layer"),
  ],
  ids=str,
)
def test_a_run_on_a_mesh_is_the_run_on_one_device(one_device, sizes, accumulation, remat):
  assert jax.device_count() == 8
  _, history = run(sizes, accumulation, remat)
  for step, (one, many) in enumerate(zip(one_device[1], history, strict=True)):
    for name in one:
      # Float32 sums over 128 tokens and 24 widths in another order, through 20 steps of Adam.
      np.testing.assert_allclose(
        many[name], one[name], rtol=5e-5, atol=5e-6, err_msg=f"{name} of step {step}"
      )
