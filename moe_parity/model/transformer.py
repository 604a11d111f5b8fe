"""The language model: embedding, layers, norm, untied head.

Layers of one kind are built stacked (a leading axis of their parameters counts them) and run by
`lax.scan`, so compile time does not grow with depth. A layout is cut into *segments*: a pattern of
layer kinds and how often it repeats. "1dense" is (D) x 1 then (M) x L-1; "interleave" is (D M) x
L/2.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_parity.model.moe import RoutingStats
from moe_parity.model.options import ModelOptions
from moe_parity.model.segment import Segment, segments
from moe_parity.model.weights import RMSNorm, matrix
from moe_parity.parallel import mesh
from moe_parity.resources.architecture import Architecture
from moe_parity.resources.memory import LOGITS_AT_ONCE


class Transformer(nnx.Module):
  """Decoder-only language model of the paper. No biases, no dropout, head not tied.

  Its weights are zero until `training.state.init_state` or a checkpoint fills them in.
  """

  def __init__(self, architecture: Architecture, options: ModelOptions):
    d, v = architecture.d_model, architecture.vocab_size
    self.options = options
    spread = options.embedding_std * v**0.5
    self.embedding = matrix(v, d, axes="VD", scale=spread)
    self.segments = nnx.List(
      Segment(architecture, options, pattern, repeats)
      for pattern, repeats in segments(architecture.moe_layers)
    )
    self.final_norm = RMSNorm(d)
    self.head = matrix(d, v, axes="DV", scale=0.1)  # the first predictions are almost even

  def hidden(
    self, inputs_BS: Int[Array, "B S"], document_BS: Int[Array, "B S"] | None = None
  ) -> tuple[Float[Array, "T D"], RoutingStats | None]:
    """Final normed activations, flat, and routing stacked over MoE layers (None: all dense).

    Args:
      document_BS: which document of its row each position is in, where attention must not cross
        from one into another; see `documents`.
    """
    B, S = inputs_BS.shape
    table_VD = mesh.gathered(self.embedding[...], self.embedding.axes)
    x_TD = jnp.take(table_VD, inputs_BS.reshape(-1), axis=0)
    x_TD = mesh.constrain(x_TD.astype(self.options.dtype), "TD")
    stats = []
    for segment in self.segments:
      x_TD, segment_stats = segment(x_TD, B, document_BS)
      if segment_stats:  # [repeats] of each layer of the pattern -> [repeats * layers]
        stats.append(
          jax.tree.map(
            lambda *leaf: jnp.stack(leaf, 1).reshape(-1, *leaf[0].shape[1:]), *segment_stats
          )
        )
    stats = jax.tree.map(lambda *leaf: jnp.concatenate(leaf), *stats) if stats else None
    return self.final_norm(x_TD), stats

  def token_nats(
    self, hidden_TD: Float[Array, "T D"], targets_T: Int[Array, " T"]
  ) -> Float[Array, " T"]:
    """-ln p(target), float32. At most LOGITS_AT_ONCE logits exist at a time on a device, made again
    in the backward pass, so that a vocabulary of 65,536 does not decide the memory of a step.

    The head is collected over `fsdp` once and its gradient scattered once, however many pieces.
    """
    head = self.head[...].astype(hidden_TD.dtype)
    if mesh.current() is None:
      return _nats_in_chunks(hidden_TD, targets_T, head)

    def local(hidden_TD, targets_T, head_DV):
      head_DV = jax.lax.all_gather(head_DV, "fsdp", axis=0, tiled=True)
      return _nats_in_chunks(hidden_TD, targets_T, head_DV)

    tokens, weights = (mesh.spec("T", mesh.ACTIVATIONS), mesh.spec(self.head.axes, mesh.WEIGHTS))
    return jax.shard_map(
      local, in_specs=(tokens, tokens, weights), out_specs=tokens, check_vma=False
    )(hidden_TD, targets_T, head)


def _nats_in_chunks(hidden_TD, targets_T, head_DV):
  T, V = hidden_TD.shape[0], head_DV.shape[1]
  divisors = (n for n in range(1, T + 1) if T % n == 0)
  num_chunks = next(n for n in divisors if T // n * V <= LOGITS_AT_ONCE or n == T)
  if num_chunks == 1:
    return _nats(hidden_TD, targets_T, head_DV)
  chunks = (x.reshape(num_chunks, -1, *x.shape[1:]) for x in (hidden_TD, targets_T))
  return jax.lax.map(jax.checkpoint(lambda chunk: _nats(*chunk, head_DV)), tuple(chunks)).reshape(T)


def _nats(hidden_TD, targets_T, head_DV):
  logit_TV = jnp.matmul(hidden_TD, head_DV, preferred_element_type=jnp.float32)
  chosen_T = jnp.take_along_axis(logit_TV, targets_T[:, None], axis=-1)[:, 0]
  return jax.nn.logsumexp(logit_TV, axis=-1) - chosen_T


@functools.cache
def abstract_model(architecture: Architecture, options: ModelOptions):
  """(graph, params, buffers) of shapes without arrays: what a jitted step merges.

  `params` are the trained `nnx.Param`s; `buffers` everything else (selection biases).
  """
  return nnx.split(nnx.eval_shape(lambda: Transformer(architecture, options)), nnx.Param, ...)
