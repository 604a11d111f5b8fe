"""Trained models with parts taken away, and how large what experts add is."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from moe_parity.errors import UserError
from moe_parity.evaluation import ablations
from moe_parity.fields.check import check_value
from moe_parity.fields.choices import ABLATIONS
from moe_parity.model.options import ModelOptions
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding.mesh import make_mesh
from tests.helpers import reference_transformer, small_model
from tests.helpers.small_store import small_store

ARCHITECTURE = small_model.moe()
OPTIONS = ModelOptions(position="none", routed_scale="2.5")
K = ARCHITECTURE.experts_per_token


@pytest.fixture(scope="module")
def model():
  return small_model.build(ARCHITECTURE, position="none", routed_scale="2.5")


def by_the_book(model, architecture, change=lambda layer: None):
  """-ln p of every target by the float64 reference, with every MoE layer's weights changed."""
  outer, layers = small_model.reference_weights(model)
  for layer in layers:
    if "router" in layer["feedforward"]:
      change(layer["feedforward"])
  inputs, targets = small_model.tokens()
  return reference_transformer.token_nats(
    outer, layers, architecture, inputs, targets, "none", normalize=False, routed_scale=2.5
  )[0]


@pytest.fixture(scope="module")
def scores(model):
  _, params, buffers = nnx.split(model, nnx.Param, ...)
  inputs, targets = small_model.tokens()
  rows = inputs, targets, np.ones_like(inputs, bool)
  named = ablations.ablated_scores(ABLATIONS, ARCHITECTURE, OPTIONS, None, None, params, buffers)
  return {name: score(*rows) for name, score in named}


def test_routed_removed_is_the_model_without_its_experts(model, scores):
  def remove(feedforward):
    feedforward["experts_out"] = feedforward["experts_out"] * 0

  expected = by_the_book(model, ARCHITECTURE, remove)
  np.testing.assert_allclose(scores["routed_removed"], expected, rtol=1e-4)


def test_top_1_keeps_each_tokens_best_expert(model, scores):
  top_1 = dataclasses.replace(ARCHITECTURE, experts_per_token=1)
  np.testing.assert_allclose(scores["top_1"], by_the_book(model, top_1), rtol=1e-4)
  assert np.abs(scores["top_1"] - by_the_book(model, ARCHITECTURE)).max() > 1e-3


def test_a_shuffled_router_sends_every_expert_anothers_tokens(model, scores):
  _, params, _ = nnx.split(model, nnx.Param, ...)
  before = {p: v.get_value() for p, v in nnx.to_flat_state(params) if p[-1] == "router"}
  shuffled = ablations.with_shuffled_routers(params)
  after = {p: v.get_value() for p, v in nnx.to_flat_state(shuffled) if p[-1] == "router"}
  assert before.keys() == after.keys()
  for path, router in before.items():
    for old, new in zip(np.asarray(router), np.asarray(after[path]), strict=True):
      assert sorted(map(tuple, old.T)) == sorted(map(tuple, new.T))  # the same columns
      assert all((a != b).any() for a, b in zip(old.T, new.T, strict=True))  # none in its place
  assert np.abs(scores["router_shuffled"] - by_the_book(model, ARCHITECTURE)).max() > 1e-3


def test_top_1_is_left_out_where_one_expert_is_chosen(model):
  _, params, buffers = nnx.split(model, nnx.Param, ...)
  one = dataclasses.replace(ARCHITECTURE, experts_per_token=1)
  named = ablations.ablated_scores(("top_1",), one, OPTIONS, None, None, params, buffers)
  assert list(named) == []


def test_an_unknown_ablation_is_refused_with_its_neighbor():
  with pytest.raises(UserError, match="did you mean 'routed_removed'"):
    check_value("evaluation.ablations", ("routed_remove",))


@pytest.mark.parametrize("sizes", [MeshSizes(), MeshSizes(2, 2, 2)], ids=["one", "mesh"])
def test_the_probe_measures_what_each_part_adds(sizes, tmp_path):
  """Against the reference: sizes of the routed sum, the shared expert and the stream below."""
  store = small_store(tmp_path)
  shape = small_model.moe(vocab_size=store.tokenizer.vocab_size, num_experts=8)
  model = small_model.build(shape, position="none", routed_scale="2.5")
  _, params, buffers = nnx.split(model, nnx.Param, ...)
  args = make_mesh(sizes), params, buffers, store.validation
  found = ablations.probe_layers(shape, OPTIONS, *args, seq_len=9, batch_sequences=8)
  inputs = store.validation.rows(np.arange(8), 9)[:, :-1]
  outer, layers = small_model.reference_weights(model)
  expected = reference_transformer.layer_sizes(outer, layers, shape, inputs, "none", 2.5)
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-3, err_msg=name)
  assert jax.device_count() == 8
