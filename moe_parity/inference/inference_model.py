"""A model with the weights it computes with: what generation and scoring of continuations share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from moe_parity.errors import UserError
from moe_parity.model.options import ModelOptions
from moe_parity.model.sharding import cast_matrices
from moe_parity.model.transformer import abstract_model
from moe_parity.planning.architecture import Architecture
from moe_parity.sharding import mesh as meshes


class InferenceModel:
  """Parameters of a training run, checked and cast once.

  Attributes:
    options: those of training, without dropped assignments and without recomputation.
    graph: the module's definition, to merge with `weights` inside a jitted function.
    weights: parameters (matrices in options.dtype) and buffers.
    mesh: that the weights are sharded over; None on one device.
  """

  def __init__(
    self,
    architecture: Architecture,
    options: ModelOptions,
    params: nnx.State,
    buffers: nnx.State,
    mesh: Mesh | None = None,
  ):
    """
    Raises:
      UserError: weights that are not finite.
    """
    check_finite(params)
    self.architecture, self.mesh = architecture, mesh
    self.options = options.for_inference()
    self.graph = abstract_model(architecture, self.options)[0]
    self.weights = cast_matrices(params, options.dtype), buffers

  @property
  def replicated(self) -> NamedSharding | None:
    """Sharding of a result that every device holds; None on one device."""
    return self.mesh and NamedSharding(self.mesh, meshes.P())

  def put_batch(self, batch_BS: np.ndarray) -> Int[Array, "B S"]:
    """A batch, the same in all processes, with its sequences sharded over the devices."""
    if self.mesh is None:
      return jnp.asarray(batch_BS)
    return meshes.put_replicated_batch(batch_BS, self.mesh)


def check_finite(params: nnx.State) -> None:
  """
  Raises:
    UserError: a weight that is not a finite number; names it.
  """
  for path, variable in nnx.to_flat_state(params):
    if not bool(_is_finite(variable.get_value())):
      raise UserError(
        f"weight {'/'.join(map(str, path))} holds numbers that are not finite; the run diverged:"
        " take an earlier checkpoint"
      )


@jax.jit
def _is_finite(array):
  return jnp.isfinite(array).all()
