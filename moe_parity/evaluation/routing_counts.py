"""Counts the experts that held-out text is routed to, document by document.

One pass over at most `max_tokens` tokens, in windows of one document each, as in mode `document` of
`bits_per_character`. Tokens of one document resemble each other, so a sample takes the beginnings
of many documents rather than a few whole ones.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from moe_parity.data.token_store import Documents, Split
from moe_parity.data.window_order import key, permute
from moe_parity.errors import UserError
from moe_parity.evaluation import bits_per_character
from moe_parity.evaluation.specialization import MAX_DOCUMENTS, RoutingCounts
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import Transformer, abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh as meshes

TOKENS_PER_DOCUMENT = 256  # that a sample takes before it takes another document
# (inputs int32 [B, S], mask bool [B, S]) -> counts [MoE layers, B, E] and pairs [layers, E, E]
Count = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_routing_counter(
  architecture: Architecture, options: ModelOptions, mesh: Mesh | None = None
) -> Callable[..., Count]:
  """Compiles once; the result takes (params, buffers) of a model and gives a `Count` for them.

  Nothing is dropped beyond a capacity, as where text is scored.

  Args:
    mesh: of the weights; every process then counts every row and gets every result.
  Raises:
    UserError: a dense architecture.
  """
  if not architecture.is_moe:
    raise UserError("a dense model has no router; count the routing of an MoE run")
  graph, _, _ = abstract_model(architecture, dataclasses.replace(options, capacity_factor=0.0))

  def count(params, buffers, inputs_BS, mask_BS):
    with meshes.use_mesh(mesh):
      return count_batch(nnx.merge(graph, params, buffers), inputs_BS, mask_BS)

  # Few batches are counted, so on a CPU a fast compile is worth slower execution.
  compiler_options = None
  if jax.default_backend() == "cpu":
    compiler_options = {"xla_backend_optimization_level": 0}
  if mesh is None:
    count = jax.jit(count, compiler_options=compiler_options)
    return lambda params, buffers: (
      lambda inputs, mask: jax.device_get(count(params, buffers, inputs, mask))
    )
  replicated = NamedSharding(mesh, meshes.P())
  count = jax.jit(count, compiler_options=compiler_options, out_shardings=replicated)

  def count_on_mesh(params, buffers, inputs, mask):
    operands = (meshes.put_replicated_batch(x, mesh) for x in (inputs, mask))
    row_LBE, pair_LEE = jax.device_get(count(params, buffers, *operands))
    return row_LBE[:, : len(inputs)], pair_LEE  # without the rows that pad the batch

  return lambda params, buffers: functools.partial(count_on_mesh, params, buffers)


def count_batch(model: Transformer, inputs_BS, mask_BS) -> tuple[jax.Array, jax.Array]:
  """Assignments to every expert by row, and tokens that chose a pair of experts together.

  The choices are those that the model's own layers return.

  Returns:
    int32 [MoE layers, B, E]; int32 [MoE layers, E, E], symmetric, with the loads on its diagonal.
  """
  B, S = inputs_BS.shape
  x_TD = model.embed(inputs_BS)
  rows, pairs = [], []
  for segment in model.segments:
    x_TD, counts = segment.scan_layers(_apply_and_count, x_TD, B, mask_BS)
    if counts:  # [repeats, batch splits] of each layer of the pattern -> [repeats * layers]
      row_RLPBE, pair_RLPEE = (
        jnp.stack(of_layers, axis=1) for of_layers in zip(*counts, strict=True)
      )
      rows.append(row_RLPBE.reshape(-1, B, row_RLPBE.shape[-1]))
      pair_RLEE = pair_RLPEE.sum(2)
      pairs.append(pair_RLEE.reshape(-1, *pair_RLEE.shape[2:]))
  return jnp.concatenate(rows), jnp.concatenate(pairs)


def _apply_and_count(layers, x_TD, batch, mask_BS):
  counts = []
  for layer in layers:
    x_TD, aux = layer(x_TD, batch)
    if aux.expert_TK is not None:
      num_experts = aux.routing_stats.load_E.size
      counts.append(_count(aux.expert_TK, num_experts, mask_BS))
  return x_TD, counts


def _count(expert_TK, num_experts: int, mask_BS) -> tuple[jax.Array, jax.Array]:
  B, S = mask_BS.shape
  chosen_TE = jax.nn.one_hot(expert_TK, num_experts).sum(1)  # distinct within a row
  chosen_TE = chosen_TE * mask_BS.reshape(-1, 1)
  # float32 counts are exact up to 2^24, far more than the tokens of a batch
  row_BE = chosen_TE.reshape(B, S, -1).sum(1).astype(jnp.int32)
  highest = jax.lax.Precision.HIGHEST
  pair_EE = jnp.matmul(chosen_TE.T, chosen_TE, precision=highest)
  return row_BE, pair_EE.astype(jnp.int32)


def sample_documents(
  documents: Documents, max_tokens: int, seed: int, tokens_per_document: int = TOKENS_PER_DOCUMENT
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the documents to count, in stream order, and how many tokens of each.

  Every domain gets an even share of `max_tokens`, in documents drawn in a seeded order: the first
  `tokens_per_document` tokens of each, or more where there are too few documents. max_tokens=0
  takes all text. Of more documents, or domains, than MAX_DOCUMENTS it takes some, evenly spread, so
  that the file of counts stays small.
  """
  lengths = documents.num_text_tokens.astype(np.int64)
  if max_tokens == 0:
    many = min(len(documents), MAX_DOCUMENTS)
    rows = np.linspace(0, len(documents) - 1, many).round().astype(np.int64)
    return rows, lengths[rows]
  domains = np.unique(documents.domain)
  most = min(MAX_DOCUMENTS, max_tokens)
  if len(domains) > most:
    domains = domains[np.linspace(0, len(domains) - 1, most).round().astype(np.int64)]
  share = max(max_tokens // len(domains), 1)
  rows, tokens = [], []
  for domain in domains:
    members = np.flatnonzero(documents.domain == domain)
    wanted = max(share // tokens_per_document, 1)
    wanted = min(wanted, MAX_DOCUMENTS // len(domains), len(members))
    drawn = members[permute(np.arange(wanted), len(members), key(seed, int(domain)))]
    rows.append(drawn)
    tokens.append(np.minimum(lengths[drawn], share // wanted))
  rows, tokens = np.concatenate(rows), np.concatenate(tokens)
  order = np.argsort(rows)
  return rows[order], tokens[order]


def count_routing(
  count: Count,
  split: Split,
  architecture: Architecture,
  *,
  seq_len: int,
  batch_sequences: int,
  max_tokens: int,
  seed: int = 0,
  tokens_per_document: int = TOKENS_PER_DOCUMENT,
) -> RoutingCounts:
  """Counts a split, or a sample of at most `max_tokens` tokens of it; see `sample_documents`."""
  documents = split.documents
  rows, tokens_N = sample_documents(documents, max_tokens, seed, tokens_per_document)
  layers, experts = architecture.num_moe_layers, architecture.num_experts
  expert_NLE = np.zeros((len(rows), layers, experts), np.int64)
  pair_LEE = np.zeros((layers, experts, experts), np.int64)
  counted_N = np.zeros(len(rows), np.int64)
  windows = _windows(split, rows, tokens_N, seq_len)
  for batch in itertools.batched(windows, batch_sequences):
    inputs = np.full((batch_sequences, seq_len), split.tokenizer.pad_id, np.int32)
    mask = np.zeros(inputs.shape, bool)
    for i, (_, tokens, is_counted) in enumerate(batch):
      inputs[i, : tokens.size], mask[i, : tokens.size] = tokens, is_counted
    row_LBE, batch_pair_LEE = count(inputs, mask)
    document = [document for document, _, _ in batch]
    np.add.at(expert_NLE, document, np.swapaxes(row_LBE[:, : len(batch)], 0, 1))
    np.add.at(counted_N, document, mask[: len(batch)].sum(1))
    pair_LEE += batch_pair_LEE
  return RoutingCounts(
    domains=documents.domains,
    domain_N=documents.domain[rows].astype(np.int64),
    tokens_N=counted_N,
    expert_NLE=expert_NLE,
    pair_LEE=pair_LEE,
    experts_per_token=architecture.experts_per_token,
  )


def _windows(
  split: Split, rows: np.ndarray, tokens_N: np.ndarray, seq_len: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """(index into `rows`, input tokens, which of them count) of each window to run."""
  index = np.full(len(split.documents), -1)
  index[rows] = np.arange(len(rows))
  tokens_left = tokens_N.copy()
  for tokens, _, document_ids in bits_per_character.document_rows(split, rows, seq_len, seq_len):
    new = np.flatnonzero(document_ids != bits_per_character.NO_DOCUMENT)
    document = int(index[document_ids[new[0]]])
    new = new[: tokens_left[document]]
    if new.size:
      tokens_left[document] -= new.size
      yield document, tokens, np.isin(np.arange(tokens.size), new)
