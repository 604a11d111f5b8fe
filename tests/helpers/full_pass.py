"""Scores of a text by one pass over all of it: the oracle of what scores piece by piece."""

import jax
import numpy as np
from flax import nnx

from moe_parity.model.transformer import abstract_model


def log_probabilities(examinee, window):
  """A function: ids -> float64 [len(ids) - 1, V], log p of the next id after each but the last.

  Args:
    examinee: an `Examinee`. window: positions that every text is padded to.
  """
  graph = abstract_model(examinee.run.architecture, examinee.options)[0]

  @jax.jit
  def logits(params, buffers, row):
    model = nnx.merge(graph, params, buffers)
    return model.logits(model.final_hidden(row[None])[0])

  def of_text(ids):
    row = np.zeros(window, np.int32)
    row[: len(ids) - 1] = ids[:-1]
    found = np.asarray(logits(examinee.run.params, examinee.run.buffers, row), np.float64)
    return (found - np.log(np.exp(found).sum(-1, keepdims=True)))[: len(ids) - 1]

  return of_text
