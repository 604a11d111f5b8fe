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

from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.model.weights import draw
from moe_parity.parallel.mesh import WEIGHTS, Rules, spec
from moe_parity.resources.architecture import Architecture
from moe_parity.training.optimizer import OptimizerOptions, make_optimizer


class TrainState(NamedTuple):
  """Everything a step changes. `step` counts finished optimizer steps."""

  step: jax.Array
  params: nnx.State
  buffers: nnx.State
  optimizer: optax.OptState


def map_variables(function, tree: Any) -> Any:
  """`function(array, axes)` on every array of a state; axes is "" for what is no model variable (a
  counter), else one letter an axis with "-" for that of stacked layers."""

  def of(leaf):
    if not isinstance(leaf, nnx.Variable):
      return function(leaf, "")
    value = leaf.get_value()
    return leaf.replace(function(value, leaf.axes.rjust(len(value.shape), "-")))

  return jax.tree.map(of, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def shardings(tree: Any, mesh: Mesh, rules: Rules = WEIGHTS) -> Any:
  """Where each array of a state lies on a mesh."""
  return map_variables(lambda _, axes: NamedSharding(mesh, spec(axes, rules)), tree)


def _padded(shape: tuple[int, ...], axes: str, mesh: Mesh) -> tuple[int, ...]:
  """A shape with its experts filled up to a multiple of the `expert` axis."""
  size = mesh.shape["expert"]
  return tuple(-(-n // size) * size if a == "E" else n for n, a in zip(shape, axes, strict=True))


def _with_phantoms(tree: Any, mesh: Mesh) -> Any:
  """An abstract state as it lies on a mesh: padded shapes and their shardings."""

  def of(leaf, axes):
    place = NamedSharding(mesh, spec(axes, WEIGHTS))
    return jax.ShapeDtypeStruct(_padded(leaf.shape, axes, mesh), leaf.dtype, sharding=place)

  return map_variables(of, tree)


def _bare(architecture, model, optimizer) -> TrainState:
  """The state's shapes without phantoms, as a checkpoint has them."""
  _, params, buffers = abstract_model(architecture, model)
  opt_state = jax.eval_shape(make_optimizer(optimizer).init, params)
  return TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, buffers, opt_state)


def abstract_state(
  architecture: Architecture, model: ModelOptions, optimizer: OptimizerOptions, mesh: Mesh
) -> TrainState:
  """Shapes and shardings of the state on a mesh: enough to compile a step for it."""
  return _with_phantoms(_bare(architecture, model, optimizer), mesh)


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
    params, buffers = jax.device_put((draw(params, seed), zeros))
    return TrainState(jnp.zeros((), jnp.int32), params, buffers, jax.jit(init)(params))

  def born(variable, part):
    axes = variable.axes.rjust(len(variable.shape), "-")
    place = NamedSharding(mesh, spec(axes, WEIGHTS))
    return jax.make_array_from_callback(_padded(variable.shape, axes, mesh), place, part)

  place = abstract_state(architecture, model, optimizer, mesh)
  params = draw(params, seed, born)
  opt_state = jax.jit(init, out_shardings=shardings(place.optimizer, mesh))(params)
  step, buffers = jax.jit(
    lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (place.step, buffers)),
    out_shardings=shardings((place.step, buffers), mesh),
  )()
  return TrainState(step, params, buffers, opt_state)
