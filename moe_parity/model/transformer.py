"""The language model: embedding, layers, norm, untied head.

Layers of one kind are built stacked (a leading axis of their parameters counts them) and run by
`lax.scan`, so compile time does not grow with depth. A layout is cut into *segments*: a pattern of
layer kinds and how often it repeats. "1dense" is (D) x 1 then (M) x L-1; "interleave" is (D M) x
L/2.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_parity.model import attention, cross_entropy
from moe_parity.model.init import param
from moe_parity.model.layer_stack import Segment, segments
from moe_parity.model.moe import RoutingStats
from moe_parity.model.norm import RMSNorm
from moe_parity.model.options import ModelOptions
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh


class Cache(NamedTuple):
  """What decoding keeps of B sequences of at most T positions each.

  Attributes:
    segments: keys and values of every segment's layers, as `Segment.fill` gives them, [repeats, B,
      N, T, Q]. Slot t holds position t of its sequence.
    length_B: tokens of each sequence that are in it.
    document_BT: which document each position is in; None where attention crosses documents.
  """

  segments: list[list[attention.KeyValues]]
  length_B: Int[Array, " B"]
  document_BT: Int[Array, "B T"] | None = None


class Transformer(nnx.Module):
  """Decoder-only language model of the paper. No biases, no dropout, head not tied.

  Its weights are zero until `training.state.init_state` or a checkpoint fills them in.
  """

  def __init__(self, architecture: Architecture, options: ModelOptions):
    d, v = architecture.d_model, architecture.vocab_size
    self.options = options
    spread = options.embedding_std * v**0.5
    self.embedding = param(v, d, axes="VD", scale=spread)
    self.segments = nnx.List(
      Segment(architecture, options, pattern, repeats)
      for pattern, repeats in segments(architecture.moe_layers)
    )
    self.final_norm = RMSNorm(d)
    self.head = param(d, v, axes="DV", scale=0.1)  # the first predictions are almost even

  def hidden(
    self, inputs_BS: Int[Array, "B S"], document_BS: Int[Array, "B S"] | None = None
  ) -> tuple[Float[Array, "T D"], RoutingStats | None]:
    """Final normed activations, flat, and routing stacked over MoE layers (None: all dense).

    Args:
      document_BS: which document of its row each position is in, where attention must not cross
        from one into another; see `documents`.
    """
    x_TD = self._embedded(inputs_BS)
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

  def _embedded(self, inputs_BS: Int[Array, "B S"]) -> Float[Array, "T D"]:
    table_VD = mesh.gathered(self.embedding[...], self.embedding.axes)
    x_TD = jnp.take(table_VD, inputs_BS.reshape(-1), axis=0)
    return mesh.constrain(x_TD.astype(self.options.dtype), "TD")

  def prefill(
    self,
    inputs_BS: Int[Array, "B S"],
    length_B: Int[Array, " B"],
    num_slots: int,
    document_BS: Int[Array, "B S"] | None = None,
  ) -> tuple[Float[Array, "T D"], Cache]:
    """`hidden` and a cache to go on from. What stands in a row after its length is padding.

    Args:
      length_B: tokens of each row, at least 1.
      num_slots: positions a sequence can grow to, at least S.
    """
    (B, S), x_TD, filled = inputs_BS.shape, self._embedded(inputs_BS), []
    for segment in self.segments:
      x_TD, new = segment.fill(x_TD, B, document_BS)
      room = [(0, 0)] * 3 + [(0, num_slots - S), (0, 0)]
      filled.append(jax.tree.map(lambda a, room=room: jnp.pad(a, room), new))
    if document_BS is not None:
      document_BS = jnp.pad(document_BS, ((0, 0), (0, num_slots - S)))
    return self.final_norm(x_TD), Cache(filled, length_B, document_BS)

  def decode(
    self,
    token_B: Int[Array, " B"],
    cache: Cache,
    begins_document_B: Bool[Array, " B"] | None = None,
  ) -> tuple[Float[Array, "B D"], Cache]:
    """`hidden` of one more token a sequence, and the cache with it.

    Args:
      cache: with a slot left in every sequence.
      begins_document_B: whether the token is the first of a document; for a cache that tells
        documents apart.
    """
    position_BS, document_BT = cache.length_B[:, None], cache.document_BT
    if document_BT is not None:
      last_B1 = jnp.take_along_axis(document_BT, position_BS - 1, axis=1)
      own_B1 = last_B1 + begins_document_B[:, None].astype(last_B1.dtype)
      is_here_BT = jnp.arange(document_BT.shape[1])[None] == position_BS
      document_BT = jnp.where(is_here_BT, own_B1, document_BT)
    x_TD, segments = self._embedded(token_B[:, None]), []
    for segment, cached in zip(self.segments, cache.segments, strict=True):
      x_TD, new = segment.extend(x_TD, token_B.shape[0], cached, position_BS, document_BT)
      pairs = zip(cached, new, strict=True)
      segments.append([attention.write(old, fresh, position_BS) for old, fresh in pairs])
    return self.final_norm(x_TD), Cache(segments, cache.length_B + 1, document_BT)

  def logits(self, hidden_TD: Float[Array, "T D"]) -> Float[Array, "T V"]:
    """Next token's logits, float32: what `token_nats` takes the softmax of."""
    return self._of_devices(cross_entropy.logits, hidden_TD)

  def token_nats(
    self, hidden_TD: Float[Array, "T D"], targets_T: Int[Array, " T"]
  ) -> Float[Array, " T"]:
    """-ln p(target), float32, to score text by (`model/cross_entropy.py`)."""
    return self._of_devices(cross_entropy.token_nats, hidden_TD, targets_T)

  def summed_nats(
    self,
    hidden_TD: Float[Array, "T D"],
    targets_T: Int[Array, " T"],
    weight_T: Float[Array, " T"],
  ) -> Float[Array, ""]:
    """sum of weight * -ln p(target), float32, to train by. Weights get no gradient."""

    def summed(*operands):
      return cross_entropy.summed_nats(*operands)[None]

    return jnp.sum(self._of_devices(summed, hidden_TD, targets_T, weight_T))

  def _of_devices(self, function, *of_tokens):
    """function(arrays of tokens, head) -> [...], on every device for its own tokens. The head is
    collected over `fsdp` once and its gradient scattered once."""
    head_DV = self.head[...].astype(of_tokens[0].dtype)
    if mesh.current() is None:
      return function(*of_tokens, head_DV)

    def local(*operands):
      *of_tokens, head_DV = operands
      return function(*of_tokens, jax.lax.all_gather(head_DV, "fsdp", axis=0, tiled=True))

    tokens, weights = (mesh.spec("T", mesh.ACTIVATIONS), mesh.spec(self.head.axes, mesh.WEIGHTS))
    return jax.shard_map(
      local, in_specs=(*[tokens] * len(of_tokens), weights), out_specs=tokens, check_vma=False
    )(*of_tokens, head_DV)


@functools.cache
def abstract_model(architecture: Architecture, options: ModelOptions):
  """(graph, params, buffers) of shapes without arrays: what a jitted step merges.

  `params` are the trained `nnx.Param`s; `buffers` everything else (selection biases).
  """
  return nnx.split(nnx.eval_shape(lambda: Transformer(architecture, options)), nnx.Param, ...)
