"""Layers of one kind, built stacked and scanned; each device takes its own sequences through them.

On a mesh a stack is one program a device (`jax.shard_map`): tokens stay on their device, weights
are all-gathered over `fsdp` a layer at a time. Only weights and the tokens that go to experts cross
links.

*Batch splits (two-batch overlap).* Where experts are sharded over several devices, a device splits
its sequences into two halves that do not depend on each other, so that XLA overlaps the all-to-all
of one half with the computation of the other.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from moe_parity.kernels import residual_stacks
from moe_parity.kernels.common import platform
from moe_parity.model.attention import Attention, KeyValues, Past, by_head
from moe_parity.model.feedforward import FeedForward
from moe_parity.model.moe import MoE, RoutingStats, StackedExperts
from moe_parity.model.norm import RMSNorm
from moe_parity.model.options import ModelOptions
from moe_parity.model.sharding import all_gather, cast_matrices, partition_specs
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.mesh_sizes import AXES
from moe_parity.sharding import mesh

# On a CPU up to this many repeats are unrolled: a loop would write and read stacks of all residuals
# of its backward pass; four repeats compile about as fast as the loop.
MAX_UNROLLED = 4


def split_layout(is_moe: Sequence[bool]) -> list[tuple[tuple[bool, ...], int]]:
  """Splits a layer arrangement into (pattern, repeats), each to be one `LayerStack`.

  One repeated pattern if there is one of at most four layers, else runs of equal layers.
  """
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


class LayerAux(NamedTuple):
  """What a layer returns in addition to its output.

  Attributes:
    keys, values: of its tokens, [B, S, N, Q] (`attention.by_head` gives a cache's layout).
    routing_stats, expert_TK: of an MoE layer, see `MoE`; None in a dense layer.
  """

  keys: jax.Array
  values: jax.Array
  routing_stats: RoutingStats | None = None
  expert_TK: jax.Array | None = None


class Layer(nnx.Module):
  """Pre-norm attention, then pre-norm feed-forward: dense or experts."""

  def __init__(self, architecture: Architecture, options: ModelOptions, is_moe: bool):
    d = architecture.d_model
    self.attention_norm = RMSNorm(d, options.norm_epsilon)
    self.feedforward_norm = RMSNorm(d, options.norm_epsilon)
    self.attention = Attention(architecture, options)
    if is_moe:
      self.feedforward = MoE(architecture, options)
    else:
      self.feedforward = FeedForward(d, architecture.d_ffn, architecture.num_layers)

  def __call__(
    self,
    x_TD,
    batch: int,
    document_BS: jax.Array | None = None,
    past: Past | None = None,
    stacked: StackedExperts | None = None,
  ) -> tuple[jax.Array, LayerAux]:
    """See `Attention` and `MoE` for the arguments."""
    y_TD, (keys, values) = self.attention(self.attention_norm(x_TD), batch, document_BS, past)
    x_TD = x_TD + y_TD
    if isinstance(self.feedforward, MoE):
      y_TD, stats, expert_TK = self.feedforward(self.feedforward_norm(x_TD), stacked)
      if stats.mean_squares_3 is not None:
        residual = jnp.mean(jnp.square(x_TD.astype(jnp.float32)))
        stats = stats._replace(mean_squares_3=stats.mean_squares_3.at[2].set(residual))
      return x_TD + y_TD, LayerAux(keys, values, stats, expert_TK)
    return x_TD + self.feedforward(self.feedforward_norm(x_TD)), LayerAux(keys, values)


class LayerStack(nnx.Module):
  """A pattern of layers, `repeats` times; parameters are stacked over the repeats."""

  def __init__(
    self,
    architecture: Architecture,
    options: ModelOptions,
    pattern: tuple[bool, ...],
    repeats: int,
  ):
    """Args:
    pattern: whether each layer of it is an MoE layer.
    """
    self.pattern, self.options = pattern, options
    self.num_experts = architecture.num_experts

    @nnx.vmap(in_axes=None, out_axes=0, axis_size=repeats)
    def stacked():
      return nnx.List([Layer(architecture, options, is_moe) for is_moe in pattern])

    self.layers = stacked()

  def __call__(
    self, x_TD, batch: int, document_BS: jax.Array | None = None
  ) -> tuple[jax.Array, list[RoutingStats]]:
    """Applies the layers; statistics of each MoE layer of the pattern, stacked over the repeats."""

    def apply_layers(layers, x_TD, batch, document_BS):
      stats = []
      for layer in layers:
        x_TD, aux = layer(x_TD, batch, document_BS)
        stats += [] if aux.routing_stats is None else [aux.routing_stats]
      return x_TD, stats

    x_TD, stats = self.scan_layers(apply_layers, x_TD, batch, document_BS)
    # Splits hold equally many tokens, so the batch's averages are the averages of theirs.
    return x_TD, jax.tree.map(lambda of_splits: jnp.mean(of_splits, axis=1), stats)

  def prefill(
    self, x_TD, batch: int, document_BS: jax.Array | None = None
  ) -> tuple[jax.Array, list[KeyValues]]:
    """`__call__` that returns keys and values for a cache: those of each layer of the pattern,
    stacked over the repeats."""

    def apply_layers(layers, x_TD, batch, document_BS):
      keys_values = []
      for layer in layers:
        x_TD, aux = layer(x_TD, batch, document_BS)
        keys_values.append(by_head(aux.keys, aux.values))
      return x_TD, keys_values

    x_TD, keys_values = self.scan_layers(apply_layers, x_TD, batch, document_BS)
    return x_TD, jax.tree.map(_merge_splits, keys_values)

  def decode(
    self, x_TD, batch: int, cached: list[KeyValues], position_BS, document_BT=None
  ) -> tuple[jax.Array, list[KeyValues]]:
    """`prefill` for tokens that follow those in the cache; see `Past`.

    Few tokens read their experts' weights from the stack of all repeats: as a slice of the scan, a
    repeat's experts would all be copied before a loop could read some of them.
    """
    feedforwards = [layer.feedforward for layer in self.layers]
    stacks = [f.stacked_experts(x_TD) if isinstance(f, MoE) else None for f in feedforwards]

    def apply_layers(layers, x_TD, batch, extra, per_repeat):
      (cached, repeat_B), keys_values = per_repeat, []
      for layer, layer_cache, stack in zip(layers, cached, stacks, strict=True):
        own = stack and stack(repeat_B[0])
        x_TD, aux = layer(x_TD, batch, past=Past(layer_cache, *extra), stacked=own)
        keys_values.append(by_head(aux.keys, aux.values))
      return x_TD, keys_values

    repeats = cached[0].k_BNTQ.shape[0]
    repeat_RB = jnp.broadcast_to(jnp.arange(repeats, dtype=jnp.int32)[:, None], (repeats, batch))
    extra, per_repeat = (position_BS, document_BT), (cached, repeat_RB)
    x_TD, keys_values = self.scan_layers(apply_layers, x_TD, batch, extra, per_repeat)
    return x_TD, jax.tree.map(_merge_splits, keys_values)

  def scan_layers(
    self,
    apply_layers: Callable,
    x_TD: jax.Array,
    batch: int,
    extra: Any = None,
    per_repeat: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Takes the batch, split by split, through all repeats of the pattern.

    Matrices are all-gathered over `fsdp` (never over `expert`) once a repeat; their gradients are
    summed over a device's batch splits before they are reduce-scattered.

    Args:
      apply_layers: (layers of the pattern, x_TD, batch, extra) of one batch split -> its x_TD and a
        pytree of arrays to return. With `per_repeat`, that repeat's arrays come last.
      extra: arrays whose first axis is the batch's, or None.
      per_repeat: arrays [repeats, batch, ...], of which each repeat gets its own; or None.
    Returns:
      x_TD, and what `apply_layers` returned: [repeats, splits, ...] in the order of the batch.
    """
    graph, stacked = nnx.split(self.layers)
    num_splits = self.num_batch_splits(batch)
    batch //= num_splits * mesh.num_shards()
    scan = functools.partial(self._scan_local, graph, apply_layers, batch, num_splits)
    if mesh.current_mesh() is None:
      return scan(x_TD, extra, stacked, per_repeat)
    by_batch, matrices = mesh.P(AXES), cast_matrices(stacked, self.options.dtype)
    return jax.shard_map(
      scan,
      in_specs=(by_batch, by_batch, partition_specs(matrices), mesh.P(None, AXES)),
      out_specs=(by_batch, mesh.P(None, AXES)),
      check_vma=False,  # kernels do not state over which axes their results vary
    )(x_TD, extra, matrices, per_repeat)

  def _scan_local(
    self, graph, apply_layers, batch: int, num_splits: int, x_TD, extra, stacked, per_repeat
  ):
    """`scan_layers` for one device's tokens and shards of the weights; `batch` is a split's."""
    is_on_mesh = mesh.current_mesh() is not None

    def scan_body(x_splits, extra_splits, of_repeat):
      weights, own = of_repeat
      if is_on_mesh:
        weights = all_gather(weights, self.num_experts)
      layers = nnx.merge(graph, weights)
      last = [()] * num_splits if own is None else [(split,) for split in _split(own, num_splits)]
      results = [
        apply_layers(layers, x, batch, extra, *own)
        for x, extra, own in zip(x_splits, extra_splits, last, strict=True)
      ]
      aux = jax.tree.map(lambda *of_splits: jnp.stack(of_splits), *(aux for _, aux in results))
      return [x for x, _ in results], aux

    scan_body = rematerialize(scan_body, self.options.remat)
    x_splits, extra_splits = _split(x_TD, num_splits), _split(extra, num_splits)
    if self.options.remat == "none" and platform() == "tpu":
      x_splits, aux = residual_stacks.scan(scan_body, x_splits, extra_splits, (stacked, per_repeat))
    else:
      repeats = jax.tree.leaves(stacked)[0].shape[0]
      x_splits, aux = jax.lax.scan(
        lambda x_splits, of_repeat: scan_body(x_splits, extra_splits, of_repeat),
        x_splits,
        (stacked, per_repeat),
        unroll=repeats if platform() == "cpu" and repeats <= MAX_UNROLLED else 1,
      )
    return x_splits[0] if num_splits == 1 else jnp.concatenate(x_splits), aux

  def num_batch_splits(self, batch: int) -> int:
    """Splits of a device's sequences (see above): the options' number, or the platform's own.

    1 where there is nothing to overlap (no sharded experts; a platform without asynchronous
    collectives), where splits do not divide the sequences, and where capacity is bounded: an
    expert's capacity is of a device's tokens, not of a split's.
    """
    current, options = mesh.current_mesh(), self.options
    if current is None or current.shape["expert"] == 1 or not any(self.pattern):
      return 1
    if options.capacity_factor:
      return 1
    can_overlap = platform() in ("gpu", "tpu")
    num_splits = options.num_batch_splits or (2 if can_overlap else 1)
    return num_splits if batch % (num_splits * current.size) == 0 else 1


def _merge_splits(of_splits: jax.Array) -> jax.Array:
  """[repeats, splits, batch of a split, ...] -> [repeats, batch, ...]."""
  return of_splits.reshape(of_splits.shape[0], -1, *of_splits.shape[3:])


def _split(tree: Any, num: int) -> list[Any]:
  """`num` equal consecutive parts of all first axes."""
  return [
    jax.tree.map(lambda a, i=i: a[i * a.shape[0] // num : (i + 1) * a.shape[0] // num], tree)
    for i in range(num)
  ]


def rematerialize(function: Callable, policy: str) -> Callable:
  """`jax.checkpoint` by the policy's name (see `ModelOptions.remat`)."""
  if policy == "none":
    return function
  if policy == "dots":
    saveable = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=saveable, prevent_cse=False)
  return jax.checkpoint(function, prevent_cse=False)
