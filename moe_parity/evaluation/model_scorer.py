"""Wraps a model as the scoring function that `bits_per_character.evaluate` takes."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from moe_parity.evaluation.bits_per_character import Score
from moe_parity.model.documents import DocumentSeparators
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh as meshes


def make_scorer(
  architecture: Architecture,
  options: ModelOptions,
  documents: DocumentSeparators | None = None,
  mesh: Mesh | None = None,
) -> Callable[[nnx.State, nnx.State], Score]:
  """Compiles once; the result takes (params, buffers) of a model and gives a `Score` for them.

  Nothing is dropped, also where training bounded the capacity of experts: the nats of a row depend
  neither on the other rows of its batch nor on what pads them.

  Args:
    documents: the separators, for a model whose attention does not cross documents. Matters in mode
      'packed'; the other modes have one document a window anyway.
    mesh: of the weights; every process then scores every row and gets every result.
  """
  graph, _, _ = abstract_model(architecture, dataclasses.replace(options, capacity_factor=0.0))

  def nats(params, buffers, inputs_BS, targets_BS):
    with meshes.use_mesh(mesh):
      model = nnx.merge(graph, params, buffers)
      hidden_TD, _ = model.final_hidden(inputs_BS, documents and documents.document_ids(inputs_BS))
      return model.token_nll(hidden_TD, targets_BS.reshape(-1)).reshape(targets_BS.shape)

  if mesh is None:
    nats = jax.jit(nats)
    return lambda params, buffers: (
      lambda inputs, targets, mask: np.asarray(nats(params, buffers, inputs, targets))
    )
  nats = jax.jit(nats, out_shardings=NamedSharding(mesh, meshes.P()))

  def score(params, buffers, inputs, targets):
    result = nats(
      params, buffers, *(meshes.put_replicated_batch(x, mesh) for x in (inputs, targets))
    )
    return np.asarray(result)[: len(inputs)]

  return lambda params, buffers: (
    lambda inputs, targets, mask: score(params, buffers, inputs, targets)
  )
