"""What the sum of the routed experts is multiplied by, and that an arm's own choice is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity import config as configs
from moe_parity.errors import UserError
from moe_parity.model.options import ModelOptions
from moe_parity.planning.plan import make_plan
from moe_parity.study import recount
from moe_parity.training.build import config_of_arm, model_options
from moe_parity.training.optimizer import is_decayed
from tests.helpers import small_model

ARCHITECTURE = small_model.moe(d_shared=0)


def loss_of(routed_scale):
  """(loss as a function of the parameters, parameters)."""
  model = small_model.build(ARCHITECTURE, routed_scale=routed_scale)
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  inputs, targets = map(jnp.asarray, small_model.tokens())

  def loss(params):
    model = nnx.merge(graph, params, rest)
    return jnp.mean(model.token_nll(model.final_hidden(inputs)[0], targets.reshape(-1)))

  return loss, params


def loss_with(routed_scale):
  loss, params = loss_of(routed_scale)
  return float(jax.jit(loss)(params))


def test_experts_over_k_is_the_number_itself():
  same = float(ARCHITECTURE.num_experts / ARCHITECTURE.experts_per_token)
  assert loss_with("E/K") == loss_with(repr(same)) != loss_with("")


def test_a_learned_scale_starts_at_one_and_is_trained_undecayed():
  model = nnx.eval_shape(lambda: small_model.build(ARCHITECTURE, routed_scale="learned"))
  params = nnx.split(model, nnx.Param, ...)[1]
  decayed = {p[-1]: leaf.get_value() for p, leaf in nnx.to_flat_state(is_decayed(params))}
  assert decayed["routed_scale"] is False and decayed["router"] is True
  loss, params = loss_of("learned")
  gradient = jax.jit(jax.grad(loss))(params)
  flat = {p[-1]: leaf.get_value() for p, leaf in nnx.to_flat_state(gradient)}
  assert flat["routed_scale"].shape == (ARCHITECTURE.num_moe_layers, 1)
  assert np.all(np.abs(flat["routed_scale"]) > 1e-6)


def test_a_learned_scale_is_no_part_of_n():
  shape = {"model.layers.0.feedforward.routed_scale": (2, 1)}
  others = {
    "layers.attention.out": (2, 6, 4), "feedforward.experts_in": (2, 3, 2, 5, 4),
    "feedforward.router": (2, 4, 3), "norm.scale": (2, 4),
  }  # fmt: skip
  architecture = {"experts_per_token": 1, "num_experts": 3, "num_heads": 2}
  for convention in recount.PARAMS:
    plan = {"architecture": architecture, "seq_len": 8, "convention": convention}
    counted = recount.count(others | shape, plan)
    without = recount.count(others, plan)
    assert counted["num_params"] == without["num_params"]
    assert counted["weight_bytes"] == without["weight_bytes"] + 2 * 4


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "K/E", "two"])
def test_another_scale_is_refused_by_model_and_plan(value):
  with pytest.raises(UserError, match="routed_scale"):
    ModelOptions(routed_scale=value)
  with pytest.raises(UserError, match="moe_20"):
    make_plan(configs.load("configs/demo.py:tiny", [f"--config.arms.moe_20.routed_scale={value}"]))


def test_an_arms_own_gates_and_scale_are_what_it_trains_with():
  overrides = ["--config.arms.moe_20.gates=normalized", "--config.arms.moe_20.routed_scale=E/K"]
  config = configs.load("configs/demo.py:tiny", overrides)
  arms = {arm.name: arm for arm in make_plan(config, vocab_size=272).arms}
  options = {name: model_options(config_of_arm(config, arm)) for name, arm in arms.items()}
  assert options["moe_20"].normalize_gates and options["moe_20"].routed_scale == "E/K"
  assert not options["moe_40"].normalize_gates and options["moe_40"].routed_scale == ""
