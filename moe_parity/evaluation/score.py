"""A model as the scoring function that `bits.evaluate` takes."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from moe_parity.evaluation.bits import Score
from moe_parity.model.documents import Documents
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.resources.architecture import Architecture


def make_scorer(
  architecture: Architecture, options: ModelOptions, documents: Documents | None = None
) -> Callable[[nnx.State, nnx.State], Score]:
  """Compiles once; the result takes (params, buffers) of a model and gives a `Score` for them.

  Args:
    documents: how documents are told apart in a row, for a model trained that way; it decides what
      mode 'packed' shows a model. The other modes show it one document at a time anyway.
  """
  graph, _, _ = abstract_model(architecture, options)

  @jax.jit
  def nats(params, buffers, inputs_BS, targets_BS):
    model = nnx.merge(graph, params, buffers)
    hidden_TD, _ = model.hidden(inputs_BS, documents and documents.number(inputs_BS))
    return model.token_nats(hidden_TD, targets_BS.reshape(-1)).reshape(targets_BS.shape)

  def with_weights(params, buffers) -> Score:
    return lambda inputs, targets, mask: np.asarray(nats(params, buffers, inputs, targets))

  return with_weights
