"""Axis letters -> mesh axes: how every array is sharded, in one table.

Letters (also the suffixes of array names, the einsums and the jaxtyping strings):
B sequences, S positions, T tokens (B*S), D d_model, F d_ffn, V vocabulary, H heads, Q d_head,
E experts, K chosen, A assignments (T*K), I d_expert, J d_shared, C slots per expert,
G devices on the `expert` axis, L experts on one device (E/G).

A letter that a table does not list is replicated; "-" marks an axis that always is (the router's, a
norm's). `planning/mesh_sizes.py` describes the mesh axes.

The mesh is the one of the program being traced: `use_mesh(mesh)` around it sets it, everything
below asks for it, and without one every function here returns its argument, so that a program for a
single device contains none of this. Axes are of type Auto: the compiler shards what is between our
constraints.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_parity.planning.mesh_sizes import AXES, MeshSizes, shards_whole_experts
from moe_parity.planning.tpu_slices import ragged_unsupported

Rules = Mapping[str, str | tuple[str, ...]]

ACTIVATIONS: Rules = {"B": AXES, "T": AXES}
WEIGHTS: Rules = {"E": "expert", "D": "fsdp"}
WHOLE_EXPERTS: Rules = {"E": "fsdp"}  # of an array with E, where `shards_whole_experts`
# In a checkpoint there are E experts, which no mesh need divide: both axes shard D instead.
CHECKPOINT_RULES: Rules = {"D": ("fsdp", "expert")}


def partition_spec(axes: str, rules: Rules) -> P:
  """('EDI', WEIGHTS) -> P('expert', 'fsdp', None).

  Raises:
    ValueError: two letters claim one mesh axis.
  """
  entries = [rules.get(letter) for letter in axes]
  claimed = [axis for e in entries for axis in ((e,) if isinstance(e, str) else e or ())]
  if len(claimed) != len(set(claimed)):
    raise ValueError(f"axes {axes!r}: two letters claim one mesh axis in {dict(rules)}")
  return P(*entries)


def weight_rules(axes: str, num_experts: int, mesh: Mesh | AbstractMesh) -> Rules:
  """The rules for a weight with these axes; `num_experts` counts those that it has."""
  if "E" in axes and shards_whole_experts(num_experts, mesh.shape["fsdp"], mesh.shape["expert"]):
    return WHOLE_EXPERTS
  return WEIGHTS


def weight_spec(axes: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
  """How a weight of this shape, its experts padded or not, is sharded on a mesh."""
  num_experts = shape[axes.index("E")] if "E" in axes else 0
  return partition_spec(axes, weight_rules(axes, num_experts, mesh))


def make_mesh(sizes: MeshSizes, devices: Sequence | None = None) -> Mesh | None:
  """A mesh of resolved sizes; None for a single device of this machine, which needs none.

  Args:
    devices: those of another machine, to compile for it; None takes this machine's. They are put
      in the order that suits their links; an axis of a TPU's torus may be split for it (8 of a
      4 x 4 x 4 cube), which `jax.make_mesh` refuses.
  """
  if sizes.num_devices == 1 and devices is None:
    return None
  shape, types = (sizes.data, sizes.fsdp, sizes.expert), (AxisType.Auto,) * len(AXES)
  ordered = mesh_utils.create_device_mesh(
    shape,
    jax.devices()[: sizes.num_devices] if devices is None else devices,
    allow_split_physical_axes=True,
  )
  return Mesh(ordered, AXES, axis_types=types)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None):
  """Programs traced inside are for `mesh`."""
  if mesh is None:
    yield
    return
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    yield


def current_mesh() -> AbstractMesh | None:
  """The mesh of the program being traced; None for a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else mesh


def supports_ragged_all_to_all() -> bool:
  """Whether the current mesh, if it is of a TPU slice, has a ragged all-to-all."""
  mesh = current_mesh()
  device = mesh and mesh.abstract_device
  return device is None or not ragged_unsupported(device.device_kind, mesh.size)


def num_shards() -> int:
  """Shards of a batch: devices of the current mesh."""
  mesh = current_mesh()
  return 1 if mesh is None else mesh.size


def constrain(x: jax.Array, axes: str) -> jax.Array:
  """Constrains an activation's sharding by its axis letters."""
  if current_mesh() is None:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes, ACTIVATIONS))


def replicated_for_use(x: jax.Array, axes: str) -> jax.Array:
  """A weight all-gathered for use; its gradient is sharded as the weight is."""
  return x if current_mesh() is None else _replicated(x, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _replicated(x, axes):
  return jax.lax.with_sharding_constraint(x, P())


def _replicated_forward(x, axes):
  return _replicated(x, axes), None


def _replicated_backward(axes, _, dx):
  # Without this the transposed constraint would ask for the whole gradient on every device.
  return (jax.lax.with_sharding_constraint(dx, partition_spec(axes, WEIGHTS)),)


_replicated.defvjp(_replicated_forward, _replicated_backward)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch [B, S] that enters a step."""
  return NamedSharding(mesh, partition_spec("BS", ACTIVATIONS))


def put_batch(rows_BS: np.ndarray, mesh: Mesh | None) -> jax.Array:
  """The global batch whose rows of this process are `rows_BS`, as its loader gave them.

  Each process's rows go to its own devices; which of them get which row decides no sum.
  """
  if mesh is None:
    return jax.device_put(rows_BS)
  shape = (rows_BS.shape[0] * jax.process_count(), *rows_BS.shape[1:])
  return jax.make_array_from_process_local_data(batch_sharding(mesh), rows_BS, shape)


def put_replicated_batch(rows_BS: np.ndarray, mesh: Mesh) -> jax.Array:
  """Shards a batch that every process has in full over the devices, padded with rows of zeros to a
  multiple of their number."""
  num_rows = -(-rows_BS.shape[0] // mesh.size) * mesh.size
  rows_BS = np.pad(rows_BS, ((0, num_rows - rows_BS.shape[0]), (0, 0)))
  return jax.make_array_from_callback(
    rows_BS.shape, batch_sharding(mesh), lambda index: rows_BS[index]
  )
