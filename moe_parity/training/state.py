"""What a step changes: where it lies, how it is born, and its form in a checkpoint.

On a mesh every part of the state is born where it lies: a device's part of a weight is drawn by its
own host, and optimizer moments are laid out as the weights they belong to.

Weights of E experts on a mesh whose `expert` axis has G devices are padded to G * ceil(E / G).
The phantom experts behind the E real ones are zero, no router column leads to them, so their
gradients are zero, and they are cut off before anything is saved: a checkpoint fits any mesh.
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
from moe_parity.sharding.mesh import STORED, WEIGHTS, spec
from moe_parity.training.optimizer import OptimizerOptions, make_optimizer


class TrainState(NamedTuple):
  """Everything a step changes. `step` counts finished optimizer steps."""

  step: jax.Array
  params: nnx.State
  buffers: nnx.State
  optimizer: optax.OptState


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Where each array of a state lies on a mesh."""
  return map_variables(lambda _, axes: NamedSharding(mesh, spec(axes, WEIGHTS)), tree)


def _filled(shape: tuple[int, ...], axes: str, mesh: Mesh) -> tuple[int, ...]:
  """A shape with its experts filled up to a multiple of the `expert` axis."""
  size = mesh.shape["expert"]
  return tuple(-(-n // size) * size if a == "E" else n for n, a in zip(shape, axes, strict=True))


def _with_phantoms(tree: Any, mesh: Mesh) -> Any:
  """An abstract state as it lies on a mesh: filled shapes and their shardings."""

  def of(leaf, axes):
    place = NamedSharding(mesh, spec(axes, WEIGHTS))
    return jax.ShapeDtypeStruct(_filled(leaf.shape, axes, mesh), leaf.dtype, sharding=place)

  return map_variables(of, tree)


def _bare(architecture, model, optimizer) -> TrainState:
  """The state's shapes without phantoms."""
  _, params, buffers = abstract_model(architecture, model)
  opt_state = jax.eval_shape(make_optimizer(optimizer).init, params)
  return TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, buffers, opt_state)


def abstract_state(
  architecture: Architecture,
  model: ModelOptions,
  optimizer: OptimizerOptions,
  mesh: Mesh | None = None,
) -> TrainState:
  """Shapes and shardings of the state: enough to compile a step for it."""
  bare = _bare(architecture, model, optimizer)
  return _on_one_device(bare) if mesh is None else _with_phantoms(bare, mesh)


def _on_one_device(tree: Any) -> Any:
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def init_state(
  architecture: Architecture,
  model: ModelOptions,
  optimizer: OptimizerOptions,
  seed: int,
  mesh: Mesh | None = None,
) -> TrainState:
  """A fresh state: weights drawn on the host, optimizer at zero. The same numbers on any mesh."""
  _, params, buffers = abstract_model(architecture, model)
  init = make_optimizer(optimizer).init
  if mesh is None:
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), buffers)
    params, buffers = jax.device_put((init_params(params, seed), zeros))
    return TrainState(jnp.zeros((), jnp.int32), params, buffers, jax.jit(init)(params))

  def born(variable, part):
    axes = variable.axes.rjust(len(variable.shape), "-")
    place = NamedSharding(mesh, spec(axes, WEIGHTS))
    return jax.make_array_from_callback(_filled(variable.shape, axes, mesh), place, part)

  place = abstract_state(architecture, model, optimizer, mesh)
  params = init_params(params, seed, born)
  opt_state = jax.jit(init, out_shardings=shardings(place.optimizer, mesh))(params)
  step, buffers = jax.jit(
    lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (place.step, buffers)),
    out_shardings=shardings((place.step, buffers), mesh),
  )()
  return TrainState(step, params, buffers, opt_state)


def stored_state(
  architecture: Architecture,
  model: ModelOptions,
  optimizer: OptimizerOptions,
  mesh: Mesh | None = None,
) -> TrainState:
  """Shapes and shardings of the state as a checkpoint has them: E experts, cut for any mesh."""
  return _as_stored(_bare(architecture, model, optimizer), architecture, mesh)


def model_places(
  architecture: Architecture, model: ModelOptions, mesh: Mesh | None = None
) -> tuple[Any, Any]:
  """(params, buffers) without the rest of a state: as a checkpoint has them, as they lie on the
  mesh; both abstract."""
  bare = abstract_model(architecture, model)[1:]
  lying = _on_one_device(bare) if mesh is None else _with_phantoms(bare, mesh)
  return _as_stored(bare, architecture, mesh), lying


def _as_stored(bare: Any, architecture: Architecture, mesh: Mesh | None) -> Any:
  if mesh is None:
    return _on_one_device(bare)
  # D is a multiple of fsdp; where fsdp * expert does not divide it, fsdp alone cuts it.
  both = architecture.d_model % (mesh.shape["fsdp"] * mesh.shape["expert"]) == 0
  rules = STORED if both else {"D": "fsdp"}

  def of(leaf, axes):
    place = NamedSharding(mesh, spec(axes, rules))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

  return map_variables(of, bare)


def to_stored(state: TrainState, stored: TrainState) -> TrainState:
  """The state as its checkpoint has it (`stored_state`): phantoms cut off. The same arrays where
  the two do not differ; otherwise every process must call this."""
  if _alike(state, stored):
    return state

  def cut(state):
    return jax.tree.map(lambda x, to: x[tuple(map(slice, to.shape))], state, stored)

  return jax.jit(cut, out_shardings=_places(stored))(state)


def from_stored(loaded: Any, state: Any) -> Any:
  """What was loaded as it lies on the mesh of `state` (`abstract_state`): zeros for phantoms."""
  if _alike(loaded, state):
    return loaded

  def fill(loaded):
    def of(x, to):
      if x.shape == to.shape:
        return x
      return jnp.pad(x, [(0, m - n) for n, m in zip(x.shape, to.shape, strict=True)])

    return jax.tree.map(of, loaded, state)

  return jax.jit(fill, out_shardings=_places(state))(loaded)


def _places(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.sharding, tree)


def _alike(a: Any, b: Any) -> bool:
  return all(
    x.shape == y.shape and x.sharding == y.sharding
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
