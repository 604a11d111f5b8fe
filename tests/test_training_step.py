import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.training.optimizer import (
  OptimizerOptions,
  is_decayed,
  learning_rate,
  make_optimizer,
)
from moe_parity.training.state import init_state
from moe_parity.training.step import StepOptions, make_train_step, move_biases
from tests.helpers import small_model

OPTIMIZER = OptimizerOptions(0.01, 1e-5, num_steps=40, warmup_steps=4)
MODEL = ModelOptions()


def run(options: StepOptions, num_steps=2, architecture=None):
  """Final state and the scalars of each step; the batch is 4 sequences of 8."""
  architecture = architecture or small_model.moe()
  state = init_state(architecture, MODEL, OPTIMIZER, seed=3)
  step = make_train_step(architecture, MODEL, OPTIMIZER, options)
  history = []
  for number in range(num_steps):
    state, scalars = step(state, *small_model.tokens(batch=4, seed=number))
    history.append(jax.device_get(scalars))
  return state, history


@pytest.fixture(scope="module")
def whole_batch():
  return run(StepOptions(balance_weight=3.0, z_weight=0.5, bias_update_rate=0.01))


def test_micro_batches_give_the_step_of_the_whole_batch(whole_batch):
  """With a balance loss heavy enough that loads of a part in place of the whole would show."""
  options = StepOptions(balance_weight=3.0, z_weight=0.5, bias_update_rate=0.01, accumulation=2)
  state, history = run(options)
  for a, b in zip(whole_batch[1], history, strict=True):
    for name in a:
      np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=2e-6, err_msg=name)
  # Adam divides by the gradient's size, so float32 noise of tiny gradients shows in the weights.
  for a, b in zip(*(jax.tree.leaves(s.params) for s in (whole_batch[0], state)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_the_total_is_cross_entropy_plus_weighted_router_losses(whole_batch):
  for scalars in whole_batch[1]:
    total = scalars["cross_entropy"] + 3.0 * scalars["balance_loss"] + 0.5 * scalars["z_loss"]
    assert scalars["loss"] == pytest.approx(float(total), rel=1e-6)
    assert scalars["load_LE"].shape == (2, 7)
    np.testing.assert_allclose(scalars["load_LE"].sum(-1), 1, rtol=1e-6)


def test_a_selection_bias_rises_for_an_underused_expert(whole_batch):
  state, history = whole_batch
  moved = sum(0.01 * np.sign(1 / 7 - scalars["load_LE"]) for scalars in history)
  (biases,) = jax.tree.leaves(state.buffers)
  np.testing.assert_allclose(biases, moved, atol=1e-7)


def test_a_balanced_experts_bias_stays_in_any_micro_batches():
  """Counts of 5, 8 and 11 of 56 assignments in three micro-batches are the mean load, 1/7, but not
  to the last bit once their shares are averaged in float32."""
  architecture = small_model.moe()
  state, _ = run(StepOptions(), 1)
  graph = abstract_model(architecture, MODEL)[0]
  balanced = np.float32(0)
  for count in (5, 8, 11):
    balanced += np.float32(count) / np.float32(56) / np.float32(3)
  assert balanced != np.float32(1 / 7)
  load_E = np.full(7, balanced, np.float32)
  load_E[2:4] = 7 / 56, 9 / 56
  moved = move_biases(graph, state, jnp.asarray(np.stack([load_E, load_E[::-1]])), 0.01)
  (biases,) = jax.tree.leaves(moved)
  expected = np.array([0, 0, 0.01, -0.01, 0, 0, 0])
  np.testing.assert_allclose(biases, [expected, expected[::-1]], atol=1e-9)


def test_interleaved_biases_follow_their_own_layers_load():
  """Two MoE layers a pattern and two repeats: the loads come as [repeat, layer of the pattern]."""
  architecture = small_model.moe(num_layers=6, layout="DMMDMM", d_shared=0)
  state, (scalars,) = run(StepOptions(bias_update_rate=0.01), 1, architecture)
  expected = 0.01 * np.sign(1 / 7 - scalars["load_LE"])
  first, second = jax.tree.leaves(state.buffers)
  np.testing.assert_allclose(first, expected[[0, 2]], atol=1e-7)
  np.testing.assert_allclose(second, expected[[1, 3]], atol=1e-7)


def test_the_learning_rate_warms_up_and_ends_at_the_final_rate():
  rates = [float(learning_rate(OPTIMIZER)(step)) for step in range(41)]
  np.testing.assert_allclose(rates[:4], [0.0025, 0.005, 0.0075, 0.01], rtol=1e-5)
  np.testing.assert_allclose(rates[4], 0.01, rtol=1e-5)
  halfway = 1e-5 + 0.5 * (0.01 - 1e-5) * (1 + np.cos(np.pi * 18 / 36))
  np.testing.assert_allclose(rates[22], halfway, rtol=1e-4)
  np.testing.assert_allclose(rates[40], 1e-5, rtol=1e-3)
  assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_decay_touches_every_matrix_and_no_norm_scale():
  state = init_state(small_model.moe(), MODEL, OPTIMIZER, seed=0)
  decayed = jax.tree_util.tree_flatten_with_path(is_decayed(state.params))[0]
  kept = {jax.tree_util.keystr(path) for path, value in decayed if not value}
  assert len(kept) == 5 and all("norm" in name for name in kept)
  optimizer = make_optimizer(OPTIMIZER)
  zero = jax.tree.map(jnp.zeros_like, state.params)
  updates, _ = optimizer.update(zero, optimizer.init(state.params), state.params)
  new = optax.apply_updates(state.params, updates)
  for (path, a), b in zip(
    jax.tree_util.tree_flatten_with_path(state.params)[0], jax.tree.leaves(new), strict=True
  ):
    factor = 1.0 if "scale" in jax.tree_util.keystr(path) else 1 - 0.1 * 0.0025
    np.testing.assert_allclose(b, np.asarray(a) * factor, rtol=1e-6)


def test_a_clipped_gradient_is_logged_with_its_norm_before():
  options = OptimizerOptions(0.01, 1e-5, 40, 4, clip_norm=1e-3)
  params = {"w": jnp.array([3.0, 4.0])}
  clip = make_optimizer(options)
  # Adam is blind to the scale of a constant gradient but not to its second moment's start.
  _, state = clip.update({"w": jnp.array([30.0, 40.0])}, clip.init(params), params)
  moment = state[1][0].mu["w"]
  np.testing.assert_allclose(moment, 0.1 * 1e-3 * np.array([0.6, 0.8]), rtol=1e-5)


def test_the_loss_falls_on_a_batch_seen_again_and_again():
  architecture = small_model.moe()
  state = init_state(architecture, MODEL, OPTIMIZER, seed=0)
  step = make_train_step(architecture, MODEL, OPTIMIZER, StepOptions())
  losses = []
  for _ in range(40):
    state, scalars = step(state, *small_model.tokens(batch=4))
    losses.append(float(scalars["cross_entropy"]))
  assert losses[0] == pytest.approx(np.log(small_model.VOCAB), abs=0.3)
  assert losses[-1] < 0.4 * losses[0]


def test_built_parameters_are_those_the_planner_counts():
  from moe_parity.model.transformer import abstract_model
  from moe_parity.planning.accounting import cost_of

  for architecture in (
    small_model.dense(num_heads=4, num_kv_heads=2),
    small_model.moe(),
    small_model.moe(num_layers=4, layout="interleave", d_shared=0),
  ):
    _, params, _ = abstract_model(architecture, MODEL)
    built = sum(leaf.size for leaf in jax.tree.leaves(params))
    cost = cost_of(architecture, 8, "exact")
    assert built == cost.num_params + cost.vocabulary_params
  assert isinstance(params, nnx.State)
