"""A model as a scoring function."""

import numpy as np
from flax import nnx

from moe_parity.evaluation.model_scorer import make_scorer
from moe_parity.model.options import ModelOptions
from tests.helpers import small_model


def test_under_a_capacity_rows_are_scored_by_themselves():
  """In training a token is dropped by what other rows of the batch chose before it."""
  architecture = small_model.moe()
  _, params, buffers = nnx.split(small_model.build(architecture, 3), nnx.Param, ...)
  inputs, targets = small_model.tokens(batch=4, seq_len=8, seed=4)
  bounded = make_scorer(architecture, ModelOptions(capacity_factor=1.0))(params, buffers)
  alone = np.zeros_like(inputs)  # after rows of padding
  alone[3] = inputs[3]
  found = bounded(inputs, targets, None)
  np.testing.assert_allclose(bounded(alone, targets, None)[3], found[3], atol=1e-5)
  free = make_scorer(architecture, ModelOptions())(params, buffers)
  np.testing.assert_allclose(free(inputs, targets, None), found, atol=1e-5)
