"""Places parameters on a mesh and all-gathers them for use, by the letters of their axes."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from moe_parity.sharding import fsdp_gather, mesh


def map_variables(function: Callable[[Any, str], Any], tree: Any) -> Any:
  """`function(array, axes)` on every array of a state.

  `axes` has one letter an axis, "-" for the axis of stacked layers; it is "" for an array that is
  no model variable (a step counter).
  """

  def apply(leaf):
    if not isinstance(leaf, nnx.Variable):
      return function(leaf, "")
    value = leaf.get_value()
    return leaf.replace(function(value, leaf.axes.rjust(len(value.shape), "-")))

  return jax.tree.map(apply, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def cast_matrices(weights: nnx.State, dtype: str) -> nnx.State:
  """Matrices in the dtype they are multiplied in; replicated weights (norms, router) unchanged."""
  return map_variables(
    lambda array, axes: array.astype(dtype) if axes.strip("-") else array, weights
  )


def partition_specs(weights: nnx.State) -> nnx.State:
  """Each weight's `PartitionSpec`."""
  current = mesh.current_mesh()
  return map_variables(lambda array, axes: mesh.weight_spec(axes, array.shape, current), weights)


def all_gather(weights: nnx.State, num_experts: int) -> nnx.State:
  """All-gathers weights over `fsdp`, inside `jax.shard_map`; gradients are reduce-scattered.

  Args:
    num_experts: E, without padding experts.
  """
  current = mesh.current_mesh()

  def gather(array, axes):
    rules = mesh.weight_rules(axes, num_experts, current)
    sharded = [axis for axis, letter in enumerate(axes) if rules.get(letter) == "fsdp"]
    return fsdp_gather.all_gather_weight(array, sharded[0], "fsdp") if sharded else array

  return map_variables(gather, weights)
