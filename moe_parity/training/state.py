"""The train state: its shardings, its initialization, and its layout in a checkpoint.

On a mesh every array is created with its sharding: a device's shard of a weight is drawn by its own
host, and optimizer moments are sharded as the weights they belong to.

Weights of E experts on a mesh whose `expert` axis has G devices are padded to G * ceil(E / G)
experts, and to a multiple of `fsdp` where that shards whole experts. The padding is zero and no
router column leads to it, so its gradients are zero. It is cut off before anything is saved: a
checkpoint fits any mesh.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from moe_parity.model.init import init_params
from moe_parity.model.options import ModelOptions
from moe_parity.model.sharding import map_variables
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.mesh_sizes import stored_experts
from moe_parity.sharding.mesh import CHECKPOINT_RULES, partition_spec, weight_spec
from moe_parity.training.optimizer import OptimizerOptions, make_optimizer


class TrainState(NamedTuple):
  """Everything a step changes. `step` counts finished optimizer steps."""

  step: jax.Array
  params: nnx.State
  buffers: nnx.State
  optimizer: optax.OptState


def abstract_state(
  architecture: Architecture,
  model: ModelOptions,
  optimizer: OptimizerOptions,
  mesh: Mesh | None = None,
) -> TrainState:
  """Shapes and shardings of the state during training: enough to compile a step for it."""
  unpadded = _unpadded(architecture, model, optimizer)
  return _on_one_device(unpadded) if mesh is None else _padded(unpadded, mesh)


def checkpoint_state(
  architecture: Architecture,
  model: ModelOptions,
  optimizer: OptimizerOptions,
  mesh: Mesh | None = None,
) -> TrainState:
  """Shapes and shardings of the state in a checkpoint: E experts, whatever the mesh."""
  return _checkpoint_layout(_unpadded(architecture, model, optimizer), architecture, mesh)


def model_shardings(
  architecture: Architecture, model: ModelOptions, mesh: Mesh | None = None
) -> tuple[Any, Any]:
  """(params, buffers) without the rest of a state, both abstract: in a checkpoint, on the mesh."""
  unpadded = abstract_model(architecture, model)[1:]
  placed = _on_one_device(unpadded) if mesh is None else _padded(unpadded, mesh)
  return _checkpoint_layout(unpadded, architecture, mesh), placed


def shardings(tree: Any, mesh: Mesh) -> Any:
  """The sharding of each array of a state on a mesh."""

  def placed(leaf, axes):
    return NamedSharding(mesh, weight_spec(axes, leaf.shape, mesh))

  return map_variables(placed, tree)


def init_state(
  architecture: Architecture,
  model: ModelOptions,
  optimizer: OptimizerOptions,
  seed: int,
  mesh: Mesh | None = None,
) -> TrainState:
  """A fresh state: weights drawn on the host, optimizer at zero. The same numbers on any mesh."""
  _, params, buffers = abstract_model(architecture, model)
  if mesh is None:
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), buffers)
    return with_fresh_optimizer(*jax.device_put((init_params(params, seed), zeros)), optimizer)

  def init_leaf(variable, draw_shard):
    axes = variable.axes.rjust(len(variable.shape), "-")
    shape = _padded_shape(variable.shape, axes, mesh)
    sharding = NamedSharding(mesh, weight_spec(axes, shape, mesh))
    return jax.make_array_from_callback(shape, sharding, draw_shard)

  params = init_params(params, seed, init_leaf)
  placed = abstract_state(architecture, model, optimizer, mesh).buffers
  buffers = _zeros(placed, mesh)
  return with_fresh_optimizer(params, buffers, optimizer, mesh)


def with_fresh_optimizer(
  params: nnx.State, buffers: nnx.State, optimizer: OptimizerOptions, mesh: Mesh | None = None
) -> TrainState:
  """The state before a first step from these weights, which lie where they are trained: optimizer
  at zero."""
  init = make_optimizer(optimizer).init
  if mesh is None:
    return TrainState(jnp.zeros((), jnp.int32), params, buffers, jax.jit(init)(params))
  placed = shardings(jax.eval_shape(init, params), mesh)
  step = _zeros(jax.ShapeDtypeStruct((), jnp.int32), mesh)
  return TrainState(step, params, buffers, jax.jit(init, out_shardings=placed)(params))


def _zeros(abstract: Any, mesh: Mesh) -> Any:
  return jax.jit(
    lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
    out_shardings=shardings(abstract, mesh),
  )()


def to_checkpoint(state: TrainState, layout: TrainState) -> TrainState:
  """The state in the layout of `checkpoint_state`: padding cut off.

  The same arrays where the layouts do not differ; otherwise every process must call this.
  """
  if _same_layout(state, layout):
    return state

  def cut(state):
    return jax.tree.map(lambda x, to: x[tuple(map(slice, to.shape))], state, layout)

  return jax.jit(cut, out_shardings=_shardings_of(layout))(state)


def from_checkpoint(loaded: Any, placed: Any) -> Any:
  """Loaded arrays in the layout of `placed` (an `abstract_state`): padded with zeros."""
  if _same_layout(loaded, placed):
    return loaded

  def pad_leaf(x, to):
    if x.shape == to.shape:
      return x
    return jnp.pad(x, [(0, m - n) for n, m in zip(x.shape, to.shape, strict=True)])

  def pad(loaded):
    return jax.tree.map(pad_leaf, loaded, placed)

  return jax.jit(pad, out_shardings=_shardings_of(placed))(loaded)


def _unpadded(architecture, model, optimizer) -> TrainState:
  """The state's shapes without padding experts."""
  _, params, buffers = abstract_model(architecture, model)
  opt_state = jax.eval_shape(make_optimizer(optimizer).init, params)
  return TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, buffers, opt_state)


def _padded(tree: Any, mesh: Mesh) -> Any:
  """An abstract state on a mesh: padded shapes and their shardings."""

  def place(leaf, axes):
    shape = _padded_shape(leaf.shape, axes, mesh)
    sharding = NamedSharding(mesh, weight_spec(axes, shape, mesh))
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

  return map_variables(place, tree)


def _padded_shape(shape: tuple[int, ...], axes: str, mesh: Mesh) -> tuple[int, ...]:
  """A shape with its experts padded to a multiple of the axis that shards them."""
  fsdp, expert = mesh.shape["fsdp"], mesh.shape["expert"]
  return tuple(
    stored_experts(size, fsdp, expert) * expert if axis == "E" else size
    for size, axis in zip(shape, axes, strict=True)
  )


def _on_one_device(tree: Any) -> Any:
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _checkpoint_layout(unpadded: Any, architecture: Architecture, mesh: Mesh | None) -> Any:
  if mesh is None:
    return _on_one_device(unpadded)
  # D is a multiple of fsdp; where it is none of fsdp * expert, it is sharded over fsdp alone.
  both = architecture.d_model % (mesh.shape["fsdp"] * mesh.shape["expert"]) == 0
  rules = CHECKPOINT_RULES if both else {"D": "fsdp"}

  def place(leaf, axes):
    sharding = NamedSharding(mesh, partition_spec(axes, rules))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return map_variables(place, unpadded)


def _shardings_of(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.sharding, tree)


def _same_layout(a: Any, b: Any) -> bool:
  return all(
    x.shape == y.shape and x.sharding == y.sharding
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
