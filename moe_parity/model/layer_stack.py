"""Layers of one kind: built stacked, scanned, each device taking its own sequences through.

On a mesh a segment is one program a device (`jax.shard_map`): tokens stay where they are, weights
are collected a layer at a time. Only the experts' exchange and the weights cross links.

*Streams.* Where experts lie on several devices, a device's sequences go through every layer in two
halves that need nothing of each other, so that XLA computes one half while the other's rows are on
their way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe_parity.kernels import residual_stacks
from moe_parity.model.attention import Attention, KeyValues, Past, by_head
from moe_parity.model.feedforward import FeedForward
from moe_parity.model.moe import MoE, RoutingStats
from moe_parity.model.norm import RMSNorm
from moe_parity.model.options import ModelOptions
from moe_parity.model.sharding import all_gather, cast_matrices, partition_specs
from moe_parity.planning.mesh_sizes import AXES
from moe_parity.sharding import mesh

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
    self, x_TD, batch: int, document_BS: jax.Array | None = None, past: Past | None = None
  ) -> tuple[jax.Array, RoutingStats | None, tuple[jax.Array, jax.Array]]:
    """See `Attention` for the arguments and for the last result, keys and values."""
    y_TD, keys_values = self.attention(self.attention_norm(x_TD), batch, document_BS, past)
    x_TD = x_TD + y_TD
    y = self.feedforward(self.feedforward_norm(x_TD))
    y_TD, stats = y if isinstance(self.feedforward, MoE) else (y, None)
    if stats is not None and stats.mean_squares_3 is not None:
      residual = jnp.mean(jnp.square(x_TD.astype(jnp.float32)))
      stats = stats._replace(mean_squares_3=stats.mean_squares_3.at[2].set(residual))
    return x_TD + y_TD, stats, keys_values


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

    def through(layers, x_TD, batch, document_BS):
      stats = []
      for layer in layers:
        x_TD, layer_stats, _ = layer(x_TD, batch, document_BS)
        stats += [] if layer_stats is None else [layer_stats]
      return x_TD, stats

    x_TD, stats = self.walk(through, x_TD, batch, document_BS)
    # Parts hold equally many tokens, so the batch's averages are the averages of theirs.
    return x_TD, jax.tree.map(lambda of_parts: jnp.mean(of_parts, axis=1), stats)

  def fill(
    self, x_TD, batch: int, document_BS: jax.Array | None = None
  ) -> tuple[jax.Array, list[KeyValues]]:
    """`__call__` that also gives keys and values: one entry a layer of the pattern, stacked over
    the repeats."""

    def through(layers, x_TD, batch, document_BS):
      new = []
      for layer in layers:
        x_TD, _, keys_values = layer(x_TD, batch, document_BS)
        new.append(by_head(*keys_values))
      return x_TD, new

    x_TD, new = self.walk(through, x_TD, batch, document_BS)
    return x_TD, jax.tree.map(_together, new)

  def extend(
    self, x_TD, batch: int, cached: list[KeyValues], position_BS, document_BT=None
  ) -> tuple[jax.Array, list[KeyValues]]:
    """`fill` for tokens that come after those in the cache, which `fill` gave: see `Past`."""

    def through(layers, x_TD, batch, beside, cached):
      new = []
      for layer, of_layer in zip(layers, cached, strict=True):
        x_TD, _, keys_values = layer(x_TD, batch, past=Past(of_layer, *beside))
        new.append(by_head(*keys_values))
      return x_TD, new

    beside = position_BS, document_BT
    x_TD, new = self.walk(through, x_TD, batch, beside, cached)
    return x_TD, jax.tree.map(_together, new)

  def walk(
    self,
    through: Callable,
    x_TD: jax.Array,
    batch: int,
    beside: Any = None,
    of_copies: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Takes every part of the batch through the copies, one after another.

    Matrices are collected over `fsdp` (never over `expert`) once a copy, and their gradients summed
    over a device's streams before they are scattered back.

    Args:
      through: (layers of the pattern, x_TD, batch, beside) of one part of the batch -> its x_TD and
        a pytree of arrays found on the way. Where there are `of_copies`, they come last.
      beside: arrays whose first axis is the batch's, or None.
      of_copies: arrays [repeats, batch, ...], of which each copy gets its own; or None.
    Returns:
      x_TD, and what was found, [repeats, parts, ...] in the order of the batch.
    """
    graph, stacked = nnx.split(self.layers)
    on_mesh, streams = mesh.current() is not None, self.num_streams(batch)
    batch //= streams * mesh.num_shards()
    repeats = jax.tree.leaves(stacked)[0].shape[0]
    platform = self.options.platform or jax.default_backend()
    unroll = repeats if platform == "cpu" and repeats <= UNROLLED else 1

    def run(x_TD, beside, stacked, of_copies):
      def copy(parts, besides, of_copy):
        weights, own = of_copy
        layers = nnx.merge(graph, all_gather(weights) if on_mesh else weights)
        last = [()] * streams if own is None else [(part,) for part in _cut(own, streams)]
        operands = zip(parts, besides, last, strict=True)
        done = [through(layers, x, batch, b, *own) for x, b, own in operands]
        found = jax.tree.map(lambda *of_parts: jnp.stack(of_parts), *(part[1] for part in done))
        return [part[0] for part in done], found

      copy = rematerialize(copy, self.options.remat)
      operands = _cut(x_TD, streams), _cut(beside, streams), (stacked, of_copies)
      if self.options.remat == "none" and platform == "tpu":
        parts, found = residual_stacks.scan(copy, *operands)
      else:
        parts, besides, of_copies = operands
        parts, found = jax.lax.scan(
          lambda parts, of_copy: copy(parts, besides, of_copy), parts, of_copies, unroll=unroll
        )
      return parts[0] if streams == 1 else jnp.concatenate(parts), found

    if not on_mesh:
      return run(x_TD, beside, stacked, of_copies)
    rows, matrices = mesh.P(AXES), cast_matrices(stacked, self.options.dtype)
    return jax.shard_map(
      run,
      in_specs=(rows, rows, partition_specs(matrices), mesh.P(None, AXES)),
      out_specs=(rows, mesh.P(None, AXES)),
      check_vma=False,  # kernels do not say over which axes their results vary
    )(x_TD, beside, matrices, of_copies)

  def num_streams(self, batch: int) -> int:
    """Parts that a device's sequences go through in (see above); 1 where the options do not say
    and XLA overlaps nothing, where there is no exchange, and where they do not divide the
    sequences. Also where capacity is bounded: an expert takes so many of a device's tokens, not of
    a stream's."""
    now, options = mesh.current(), self.options
    if now is None or now.shape["expert"] == 1 or not any(self.pattern) or options.capacity_factor:
      return 1
    overlaps = (options.platform or jax.default_backend()) in ("gpu", "tpu")
    streams = options.streams or (2 if overlaps else 1)
    return streams if batch % (streams * now.size) == 0 else 1


def _together(of_parts: jax.Array) -> jax.Array:
  """[repeats, parts, batch of a part, ...] -> [repeats, batch, ...]."""
  return of_parts.reshape(of_parts.shape[0], -1, *of_parts.shape[3:])


def _cut(tree: Any, parts: int) -> list[Any]:
  """Equal stretches of all first axes, in order."""
  return [
    jax.tree.map(lambda a, i=i: a[i * a.shape[0] // parts : (i + 1) * a.shape[0] // parts], tree)
    for i in range(parts)
  ]


def rematerialize(function, policy: str):
  """`jax.checkpoint` by the policy's name (see `ModelOptions.remat`)."""
  if policy == "none":
    return function
  if policy == "dots":
    saveable = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=saveable, prevent_cse=False)
  return jax.checkpoint(function, prevent_cse=False)
