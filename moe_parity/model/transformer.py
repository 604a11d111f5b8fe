"""The language model: embedding, layers, norm, untied head.

Layers of one kind are built stacked (a leading axis of their parameters counts them) and run by
`lax.scan`, so compile time does not grow with depth. A layout is split into *segments*, each a
`LayerStack`: a pattern of layer kinds and how often it repeats. "1dense" is (D) x 1 then (M) x L-1;
"interleave" is (D M) x L/2.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_parity.model import attention, cross_entropy
from moe_parity.model.init import param
from moe_parity.model.layer_stack import LayerStack, split_layout
from moe_parity.model.moe import RoutingStats
from moe_parity.model.norm import RMSNorm
from moe_parity.model.options import ModelOptions
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh


class Cache(NamedTuple):
  """The KV cache of B sequences of at most T positions each.

  Attributes:
    segments: keys and values of every layer stack, as `LayerStack.prefill` returns them, [repeats,
      B, N, T, Q]. Slot t holds position t of its sequence.
    length_B: cached tokens of each sequence.
    document_BT: which document each position is in; None where attention crosses documents.
  """

  segments: list[list[attention.KeyValues]]
  length_B: Int[Array, " B"]
  document_BT: Int[Array, "B T"] | None = None


class Transformer(nnx.Module):
  """Decoder-only language model of the paper. No biases, no dropout, head not tied.

  Its weights are zero until `training.state.init_state` or a checkpoint replaces them.
  """

  def __init__(self, architecture: Architecture, options: ModelOptions):
    d, v = architecture.d_model, architecture.vocab_size
    self.options = options
    spread = options.embedding_std * v**0.5
    self.embedding = param(v, d, axes="VD", scale=spread)
    self.segments = nnx.List(
      LayerStack(architecture, options, pattern, repeats)
      for pattern, repeats in split_layout(architecture.moe_layers)
    )
    self.final_norm = RMSNorm(d, options.norm_epsilon)
    self.head = param(d, v, axes="DV", scale=0.1)  # the first predictions are almost even

  def final_hidden(
    self, inputs_BS: Int[Array, "B S"], document_BS: Int[Array, "B S"] | None = None
  ) -> tuple[Float[Array, "T D"], RoutingStats | None]:
    """Activations after the final norm, and routing statistics stacked over MoE layers.

    Args:
      document_BS: which document of its row each position is in, where attention must not cross
        documents; see `model/documents.py`.
    Returns:
      x_TD, sequences end to end; statistics [MoE layers, ...], None for a dense model.
    """
    x_TD = self.embed(inputs_BS)
    stats = []
    for segment in self.segments:
      x_TD, segment_stats = segment(x_TD, inputs_BS.shape[0], document_BS)
      if segment_stats:  # [repeats] of each layer of the pattern -> [repeats * layers]
        stats.append(
          jax.tree.map(
            lambda *leaf: jnp.stack(leaf, 1).reshape(-1, *leaf[0].shape[1:]), *segment_stats
          )
        )
    stats = jax.tree.map(lambda *leaf: jnp.concatenate(leaf), *stats) if stats else None
    return self.final_norm(x_TD), stats

  def embed(self, inputs_BS: Int[Array, "B S"]) -> Float[Array, "T D"]:
    """The first layer's input: token embeddings, sequences end to end."""
    table_VD = mesh.replicated_for_use(self.embedding[...], self.embedding.axes)
    x_TD = jnp.take(table_VD, inputs_BS.reshape(-1), axis=0)
    return mesh.constrain(x_TD.astype(self.options.dtype), "TD")

  def prefill(
    self,
    inputs_BS: Int[Array, "B S"],
    length_B: Int[Array, " B"],
    num_slots: int,
    document_BS: Int[Array, "B S"] | None = None,
  ) -> tuple[Float[Array, "T D"], Cache]:
    """`final_hidden`, and a cache to continue from. A row's tokens after its length are padding.

    Args:
      length_B: tokens of each row, at least 1.
      num_slots: positions a sequence can grow to, at least S.
    """
    (B, S), x_TD, segments = inputs_BS.shape, self.embed(inputs_BS), []
    padding = [(0, 0)] * 3 + [(0, num_slots - S), (0, 0)]
    for segment in self.segments:
      x_TD, keys_values = segment.prefill(x_TD, B, document_BS)
      segments.append(jax.tree.map(lambda a: jnp.pad(a, padding), keys_values))
    if document_BS is not None:
      document_BS = jnp.pad(document_BS, ((0, 0), (0, num_slots - S)))
    return self.final_norm(x_TD), Cache(segments, length_B, document_BS)

  def decode(
    self,
    token_B: Int[Array, " B"],
    cache: Cache,
    begins_document_B: Bool[Array, " B"] | None = None,
  ) -> tuple[Float[Array, "B D"], Cache]:
    """`final_hidden` of one more token a sequence, and the cache with it appended.

    Args:
      cache: with a free slot in every sequence.
      begins_document_B: whether the token is the first of a document; required where the cache has
        document ids.
    """
    position_BS, document_BT = cache.length_B[:, None], cache.document_BT
    if document_BT is not None:
      last_B1 = jnp.take_along_axis(document_BT, position_BS - 1, axis=1)
      new_B1 = last_B1 + begins_document_B[:, None].astype(last_B1.dtype)
      is_new_BT = jnp.arange(document_BT.shape[1])[None] == position_BS
      document_BT = jnp.where(is_new_BT, new_B1, document_BT)
    x_TD, segments = self.embed(token_B[:, None]), []
    for segment, cached in zip(self.segments, cache.segments, strict=True):
      x_TD, new = segment.decode(x_TD, token_B.shape[0], cached, position_BS, document_BT)
      pairs = zip(cached, new, strict=True)
      segments.append([attention.update_cache(old, fresh, position_BS) for old, fresh in pairs])
    return self.final_norm(x_TD), Cache(segments, cache.length_B + 1, document_BT)

  def logits(self, hidden_TD: Float[Array, "T D"]) -> Float[Array, "T V"]:
    """Logits of the next token, float32."""
    return self._sharded_over_tokens(cross_entropy.logits, hidden_TD)

  def token_nll(
    self,
    hidden_TD: Float[Array, "T D"],
    targets_T: Int[Array, " T"],
    max_logits: int | None = None,
  ) -> Float[Array, " T"]:
    """-ln p(target) of every token in nats, float32.

    Args:
      max_logits: that exist at a time on a device; None is the platform's number.
    """

    def local_nll(*operands):
      return cross_entropy.token_nll(*operands, max_logits)

    return self._sharded_over_tokens(local_nll, hidden_TD, targets_T)

  def token_scores(
    self, hidden_TD: Float[Array, "T D"], targets_T: Int[Array, " T"]
  ) -> tuple[Float[Array, " T"], Bool[Array, " T"]]:
    """-ln p(target) of every token in nats, float32, and whether it is the most likely token."""
    return self._sharded_over_tokens(cross_entropy.token_scores, hidden_TD, targets_T)

  def weighted_nll(
    self,
    hidden_TD: Float[Array, "T D"],
    targets_T: Int[Array, " T"],
    weight_T: Float[Array, " T"],
    max_logits: int | None = None,
  ) -> Float[Array, ""]:
    """Sum of weight * -ln p(target) in nats, float32, for training; weights get no gradient.

    Args:
      max_logits: that exist at a time on a device; None is the platform's number.
    """

    def local_sum(*operands):
      return cross_entropy.weighted_nll(*operands, max_logits)[None]

    return jnp.sum(self._sharded_over_tokens(local_sum, hidden_TD, targets_T, weight_T))

  def _sharded_over_tokens(self, function, *token_arrays):
    """function(*token arrays, head), on each device for its own tokens. The head is all-gathered
    over `fsdp` once, and its gradient reduce-scattered once."""
    head_DV = self.head[...].astype(token_arrays[0].dtype)
    if mesh.current_mesh() is None:
      return function(*token_arrays, head_DV)

    def local(*operands):
      *token_arrays, head_DV = operands
      return function(*token_arrays, jax.lax.all_gather(head_DV, "fsdp", axis=0, tiled=True))

    tokens, weights = (
      mesh.partition_spec("T", mesh.ACTIVATIONS),
      mesh.partition_spec(self.head.axes, mesh.WEIGHTS),
    )
    return jax.shard_map(
      local, in_specs=(*[tokens] * len(token_arrays), weights), out_specs=tokens, check_vma=False
    )(*token_arrays, head_DV)


@functools.cache
def abstract_model(architecture: Architecture, options: ModelOptions):
  """The model's (graph, params, buffers) as shapes, to be merged inside a jitted function.

  `params` are the trained `nnx.Param`s; `buffers` everything else (selection biases).
  """
  return nnx.split(nnx.eval_shape(lambda: Transformer(architecture, options)), nnx.Param, ...)
