"""Choices of tokens against the loop over tokens that knows no scan."""

import numpy as np
import pytest
from flax import nnx

from moe_parity.errors import UserError
from moe_parity.evaluation.token_choices import choices_of_tokens
from moe_parity.model.options import ModelOptions
from tests.helpers import reference_transformer, small_model


def test_experts_and_gates_of_every_layer_equal_the_reference():
  """Two MoE layers in a repeated pattern, gates times 1.5, and a last window that is not full."""
  shape = small_model.moe(layout="DMMDMM", num_layers=6)
  fields = {"attention_block": 4, "routed_scale": "1.5", "capacity_factor": 0.3}
  model = small_model.build(shape, 3, **fields)
  inputs, targets = small_model.tokens(batch=3, seq_len=8, seed=4)
  outer, layers = small_model.reference_weights(model)
  _, routed = reference_transformer.token_nats(
    outer, layers, shape, inputs, targets, "alibi", False, 1.5
  )
  weights = nnx.split(model, nnx.Param, ...)[1:]
  ids = inputs.reshape(-1)[:21]
  experts, gates = choices_of_tokens(shape, ModelOptions(**fields), *weights, ids, 8)
  assert experts.shape == gates.shape == (21, 4, 2)
  for layer, (chosen, probability) in enumerate(routed):
    assert np.array_equal(experts[:, layer], chosen[:21]), layer
    expected = 1.5 * np.take_along_axis(probability, chosen, -1)[:21]
    assert gates[:, layer] == pytest.approx(expected, rel=1e-4), layer


def test_a_dense_model_and_an_empty_text_are_refused():
  nothing = nnx.State({})
  for shape, ids, match in (
    (small_model.dense(), np.arange(3), "no router"),
    (small_model.moe(), np.arange(0), "no token"),
  ):
    with pytest.raises(UserError, match=match):
      choices_of_tokens(shape, ModelOptions(), nothing, nothing, ids, 8)
