"""Which experts held-out text is sent to, counted document by document.

One pass over at most `max_tokens` tokens in windows of one document each, as mode `document` of
`bits` makes them. Tokens of one document are alike, so a sample takes the beginnings of many
documents rather than a few whole ones.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from moe_parity.data.token_store import Documents, Split
from moe_parity.data.window_order import key, permute
from moe_parity.errors import UserError
from moe_parity.evaluation import bits_per_character
from moe_parity.evaluation.specialisation import MAX_DOCUMENTS, Choices
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import Transformer, abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh as meshes

CUT = 256  # tokens of a document that a sample takes before it takes another document
# (inputs int32 [B, S], counted bool [B, S]) -> counts [MoE layers, B, E] and pairs [layers, E, E]
Count = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_counter(
  architecture: Architecture, options: ModelOptions, mesh: Mesh | None = None
) -> Callable[..., Count]:
  """Compiles once; the result takes (params, buffers) of a model and gives a `Count` for them.

  Args:
    mesh: where the weights lie; every process then counts every row and gets every result.
  Raises:
    UserError: a dense architecture.
  """
  if not architecture.is_moe:
    raise UserError("a dense model routes nothing; count the choices of an MoE run")
  graph, _, _ = abstract_model(architecture, options)

  def counted(params, buffers, inputs_BS, counted_BS):
    with meshes.use(mesh):
      return count_choices(nnx.merge(graph, params, buffers), inputs_BS, counted_BS)

  # A few batches are counted and then never again: on a CPU, half the time to compile is worth
  # twice the time to run.
  cheaply = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  if mesh is None:
    count = jax.jit(counted, compiler_options=cheaply)
    return lambda params, buffers: (
      lambda inputs, counted: jax.device_get(count(params, buffers, inputs, counted))
    )
  everywhere = NamedSharding(mesh, meshes.P())
  count = jax.jit(counted, compiler_options=cheaply, out_shardings=everywhere)

  def count_rows(params, buffers, inputs, counted):
    given = (meshes.same_on_all(x, mesh) for x in (inputs, counted))
    row_LBE, pair_LEE = jax.device_get(count(params, buffers, *given))
    return row_LBE[:, : len(inputs)], pair_LEE

  return lambda params, buffers: functools.partial(count_rows, params, buffers)


def count_choices(model: Transformer, inputs_BS, counted_BS) -> tuple[jax.Array, jax.Array]:
  """Assignments to every expert by row, and tokens that chose a pair of experts together.

  The choices are those that the model's own layers return.

  Returns:
    int32 [MoE layers, B, E]; int32 [MoE layers, E, E], symmetric, with the loads on its diagonal.
  """
  B, S = inputs_BS.shape
  x_TD = model.embed(inputs_BS)
  rows, pairs = [], []
  for segment in model.segments:
    x_TD, counts = segment.scan_layers(_apply_and_count, x_TD, B, counted_BS)
    if counts:  # [repeats, batch splits] of each layer of the pattern -> [repeats * layers]
      row_RLPBE, pair_RLPEE = (
        jnp.stack(of_layers, axis=1) for of_layers in zip(*counts, strict=True)
      )
      rows.append(row_RLPBE.reshape(-1, B, row_RLPBE.shape[-1]))
      pair_RLEE = pair_RLPEE.sum(2)
      pairs.append(pair_RLEE.reshape(-1, *pair_RLEE.shape[2:]))
  return jnp.concatenate(rows), jnp.concatenate(pairs)


def _apply_and_count(layers, x_TD, batch, counted_BS):
  counts = []
  for layer in layers:
    x_TD, aux = layer(x_TD, batch)
    if aux.expert_TK is not None:
      num_experts = aux.routing_stats.load_E.size
      counts.append(_count(aux.expert_TK, num_experts, counted_BS))
  return x_TD, counts


def _count(expert_TK, num_experts: int, counted_BS) -> tuple[jax.Array, jax.Array]:
  B, S = counted_BS.shape
  chosen_TE = jax.nn.one_hot(expert_TK, num_experts).sum(1)  # distinct within a row
  chosen_TE = chosen_TE * counted_BS.reshape(-1, 1)
  # float32 counts are exact to 2^24, far above the tokens of a batch
  row_BE = chosen_TE.reshape(B, S, -1).sum(1).astype(jnp.int32)
  highest = jax.lax.Precision.HIGHEST
  pair_EE = jnp.matmul(chosen_TE.T, chosen_TE, precision=highest)
  return row_BE, pair_EE.astype(jnp.int32)


def sample(documents: Documents, max_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the documents to look at, in stream order, and from how many tokens of each.

  Every domain gets an even share of max_tokens, in documents drawn in a seeded order, the first CUT
  tokens of each or more where there are too few of them. With max_tokens = 0 it is all of the
  text; of more than MAX_DOCUMENTS documents some, evenly spread, so that what is kept stays small.
  """
  lengths = documents.num_text_tokens.astype(np.int64)
  if max_tokens == 0:
    many = min(len(documents), MAX_DOCUMENTS)
    chosen = np.linspace(0, len(documents) - 1, many).round().astype(np.int64)
    return chosen, lengths[chosen]
  present = np.unique(documents.domain)
  share = max(max_tokens // len(present), 1)
  rows, tokens = [], []
  for domain in present:
    members = np.flatnonzero(documents.domain == domain)
    wanted = min(max(share // CUT, 1), MAX_DOCUMENTS // len(present), len(members))
    drawn = members[permute(np.arange(wanted), len(members), key(seed, int(domain)))]
    rows.append(drawn)
    tokens.append(np.minimum(lengths[drawn], share // wanted))
  chosen, taken = np.concatenate(rows), np.concatenate(tokens)
  order = np.argsort(chosen)
  return chosen[order], taken[order]


def count_split(
  count: Count,
  split: Split,
  architecture: Architecture,
  *,
  seq_len: int,
  batch_sequences: int,
  max_tokens: int,
  seed: int = 0,
) -> Choices:
  """Counts the choices over a split, or over a sample of about `max_tokens` of it; see `sample`."""
  documents = split.documents
  chosen, left_N = sample(documents, max_tokens, seed)
  place = np.full(len(documents), -1)
  place[chosen] = np.arange(len(chosen))
  layers, experts = architecture.num_moe_layers, architecture.num_experts
  by_document = np.zeros((len(chosen), layers, experts), np.int64)
  pairs = np.zeros((layers, experts, experts), np.int64)
  tokens = np.zeros(len(chosen), np.int64)
  rows = bits_per_character.document_rows(split, chosen, seq_len, seq_len)
  shape = (batch_sequences, seq_len)
  while True:
    inputs = np.full(shape, split.tokenizer.pad_id, np.int32)
    counted, owner = np.zeros(shape, bool), np.full(batch_sequences, -1)
    filled = 0
    for given, _, owned in rows:
      scored = np.flatnonzero(owned != bits_per_character.NO_DOCUMENT)
      document = place[owned[scored[0]]]
      scored = scored[: left_N[document]]
      if not scored.size:
        continue
      left_N[document] -= scored.size
      inputs[filled, : given.size], counted[filled, scored] = given, True
      owner[filled] = document
      filled += 1
      if filled == batch_sequences:
        break
    if not filled:
      break
    row_LBE, pair_LEE = count(inputs, counted)
    np.add.at(by_document, owner[:filled], np.swapaxes(row_LBE[:, :filled], 0, 1))
    np.add.at(tokens, owner[:filled], counted[:filled].sum(1))
    pairs += pair_LEE
  return Choices(
    domains=documents.domains,
    domain_N=documents.domain[chosen].astype(np.int64),
    tokens_N=tokens,
    expert_NLE=by_document,
    pair_LEE=pairs,
    experts_per_token=architecture.experts_per_token,
  )
