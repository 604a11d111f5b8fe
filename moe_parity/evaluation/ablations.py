"""What a trained MoE model owes to its routed experts: scores with parts of it taken away.

No training follows, so a score says what the model relies on, not what another model could reach:

    routed_removed    the routed experts add nothing; attention, dense and shared parts stay
    router_shuffled   every router's columns are permuted: tokens reach experts that others chose
    top_1             each token keeps only its best expert (K > 1)

And a probe: how large the routed sum and the shared expert's output are, layer by layer,
against the residual stream that they are added to.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from moe_parity.data.token_store import Split
from moe_parity.errors import UserError
from moe_parity.evaluation.bits_per_character import Score
from moe_parity.evaluation.model_scorer import make_scorer
from moe_parity.model.documents import DocumentSeparators
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh as meshes


def ablated_scores(
  names: tuple[str, ...],
  architecture: Architecture,
  options: ModelOptions,
  documents: DocumentSeparators | None,
  mesh: Mesh | None,
  params: nnx.State,
  buffers: nnx.State,
) -> Iterator[tuple[str, Score]]:
  """(name, the ablated model as a `Score`), one at a time; top_1 is left out where K is 1.

  Args:
    names: of `evaluation.ablations`. documents: as of `make_scorer`.
  """
  make = make_scorer(architecture, options, documents, mesh)
  if "routed_removed" in names:
    yield "routed_removed", make(without_routed_experts(params), buffers)
  if "router_shuffled" in names:
    yield "router_shuffled", make(with_shuffled_routers(params), buffers)
  if "top_1" in names and architecture.experts_per_token > 1:
    top_1 = dataclasses.replace(architecture, experts_per_token=1)
    yield "top_1", make_scorer(top_1, options, documents, mesh)(params, buffers)


def without_routed_experts(params: nnx.State) -> nnx.State:
  """The parameters with zeros in every routed expert's output matrix."""
  return _map_named(params, "experts_out", lambda name, array: array * 0)


def with_shuffled_routers(params: nnx.State) -> nnx.State:
  """The parameters with the columns of every router permuted, layer by layer, by a fixed seed.

  An expert then gets the tokens of another: loads are as before, relabeled.
  """

  def shuffle(name: str, router_LDE: jax.Array) -> jax.Array:
    num_layers, _, num_experts = router_LDE.shape
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    order_LE = np.stack([_derangement(rng, num_experts) for _ in range(num_layers)])
    return jax.numpy.take_along_axis(router_LDE, order_LE[:, None, :], axis=-1)

  return _map_named(params, "router", shuffle)


def _derangement(rng: np.random.Generator, size: int) -> np.ndarray:
  """A cyclic order of a random permutation: no expert keeps its own column (but a lone one)."""
  cycle = rng.permutation(size)
  order = np.empty(size, np.int32)
  order[cycle] = np.roll(cycle, 1)
  return order


def _map_named(params: nnx.State, last: str, function: Callable) -> nnx.State:
  """`function(path, array)` on every parameter whose path ends in `last`."""
  flat = [
    (path, leaf.replace(function("/".join(map(str, path)), leaf.get_value())))
    if path[-1] == last
    else (path, leaf)
    for path, leaf in nnx.to_flat_state(params)
  ]
  return nnx.from_flat_state(flat)


def probe_layers(
  architecture: Architecture,
  options: ModelOptions,
  mesh: Mesh | None,
  params: nnx.State,
  buffers: nnx.State,
  split: Split,
  seq_len: int,
  batch_sequences: int,
) -> dict[str, list[float]]:
  """Per MoE layer, over the first `batch_sequences` windows of held-out text: the mean sum of the
  gates, and root mean squares of the routed sum, the shared expert's output and the residual stream
  before them.

  Raises:
    UserError: the split has not one whole window.
  """
  num_rows = min(batch_sequences, split.num_windows(seq_len))
  if num_rows < 1:
    raise UserError(
      f"the {split.name} split has no row of seq_len={seq_len} to probe; give more held-out text"
    )
  rows_BS = split.rows(np.arange(num_rows), seq_len)[:, :-1].astype(np.int32)
  graph, _, _ = abstract_model(architecture, dataclasses.replace(options, is_probing=True))

  def probe(params, buffers, inputs_BS):
    with meshes.use_mesh(mesh):
      stats = nnx.merge(graph, params, buffers).final_hidden(inputs_BS)[1]
      return stats.gate_sum, stats.mean_squares_3

  if mesh is None:
    gate_sum_L, squares_L3 = jax.jit(probe)(params, buffers, rows_BS)
  else:
    rows_BS = rows_BS[: num_rows // mesh.size * mesh.size]
    if not len(rows_BS):
      return {}
    whole = NamedSharding(mesh, meshes.P())
    rows = meshes.put_replicated_batch(rows_BS, mesh)
    gate_sum_L, squares_L3 = jax.jit(probe, out_shardings=whole)(params, buffers, rows)
  routed_L, shared_L, residual_L = np.sqrt(np.asarray(squares_L3, np.float64)).T
  return {
    "gate_sum": np.asarray(gate_sum_L, np.float64).tolist(),
    "routed_rms": routed_L.tolist(),
    "shared_rms": shared_L.tolist(),
    "residual_rms": residual_L.tolist(),
  }
