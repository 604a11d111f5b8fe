"""The language model: embedding, layers, norm, untied head.

Layers of one kind are built stacked (a leading axis of their parameters counts them) and run by
`lax.scan`, so compile time does not grow with depth. A layout is cut into *segments*: a pattern of
layer kinds and how often it repeats. "1dense" is (D) x 1 then (M) x L-1; "interleave" is (D M) x
L/2.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_parity.model.attention import Attention
from moe_parity.model.feedforward import FeedForward
from moe_parity.model.moe import MoE, RoutingStats
from moe_parity.model.options import ModelOptions
from moe_parity.model.weights import RMSNorm, matrix
from moe_parity.parallel import mesh
from moe_parity.resources.architecture import Architecture
from moe_parity.resources.memory import LOGITS_AT_ONCE

# Up to this many copies are written out on a CPU: a loop fills, writes and reads a stack of all its
# backward pass needs, a tenth of a small model's step; four copies compile as fast as the loop.
UNROLLED = 4


def segments(is_moe: Sequence[bool]) -> list[tuple[tuple[bool, ...], int]]:
  """Cuts a layer arrangement into (pattern, repeats): one repeated pattern if there is one of at
  most four layers, else runs of equal layers."""
  is_moe = tuple(is_moe)
  for period in range(1, 5):
    repeats, rest = divmod(len(is_moe), period)
    if rest == 0 and repeats > 1 and is_moe == is_moe[:period] * repeats:
      return [(is_moe[:period], repeats)]
  runs: list[tuple[tuple[bool, ...], int]] = []
  for kind in is_moe:
    if runs and runs[-1][0] == (kind,):
      runs[-1] = ((kind,), runs[-1][1] + 1)
    else:
      runs.append(((kind,), 1))
  return runs


class Layer(nnx.Module):
  """Pre-norm attention, then pre-norm feed-forward: dense or experts."""

  def __init__(self, architecture, options: ModelOptions, is_moe: bool):
    d = architecture.d_model
    self.attention_norm, self.feedforward_norm = RMSNorm(d), RMSNorm(d)
    self.attention = Attention(architecture, options)
    if is_moe:
      self.feedforward = MoE(architecture, options)
    else:
      self.feedforward = FeedForward(d, architecture.d_ffn, architecture.num_layers)

  def __call__(
    self, x_TD, batch: int, document_BS: jax.Array | None = None
  ) -> tuple[jax.Array, RoutingStats | None]:
    x_TD = x_TD + self.attention(self.attention_norm(x_TD), batch, document_BS)
    y = self.feedforward(self.feedforward_norm(x_TD))
    y_TD, stats = y if isinstance(self.feedforward, MoE) else (y, None)
    return mesh.constrain(x_TD + y_TD, "TD"), stats


class Segment(nnx.Module):
  """`repeats` copies of a pattern of layers; parameters stacked over the copies."""

  def __init__(self, architecture, options, pattern: tuple[bool, ...], repeats: int):
    self.pattern, self.options = pattern, options

    @nnx.vmap(in_axes=None, out_axes=0, axis_size=repeats)
    def stacked():
      return nnx.List([Layer(architecture, options, is_moe) for is_moe in pattern])

    self.layers = stacked()

  def __call__(
    self, x_TD, batch: int, document_BS: jax.Array | None = None
  ) -> tuple[jax.Array, list[RoutingStats]]:
    """The last result has one entry a MoE layer of the pattern, stacked over the repeats."""
    graph, stacked = nnx.split(self.layers)

    def copy(x_TD, state):
      stats = []
      for layer in nnx.merge(graph, state):
        x_TD, layer_stats = layer(x_TD, batch, document_BS)
        stats += [] if layer_stats is None else [layer_stats]
      return x_TD, stats

    repeats = jax.tree.leaves(stacked)[0].shape[0]
    on_cpu = (self.options.platform or jax.default_backend()) == "cpu"
    unroll = repeats if on_cpu and repeats <= UNROLLED else 1
    return jax.lax.scan(rematerialize(copy, self.options.remat), x_TD, stacked, unroll=unroll)


def rematerialize(function, policy: str):
  """`jax.checkpoint` by the policy's name (see `ModelOptions.remat`)."""
  if policy == "none":
    return function
  if policy == "dots":
    saveable = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=saveable, prevent_cse=False)
  return jax.checkpoint(function, prevent_cse=False)


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
