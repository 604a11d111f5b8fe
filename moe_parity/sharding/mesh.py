"""Axis letters -> mesh axes: where every array lies, in one table.

Letters (also the suffixes of array names, the einsums and the jaxtyping strings):
B sequences, S positions, T tokens (B*S), D d_model, F d_ffn, V vocabulary, H heads, Q d_head,
E experts, K chosen, A assignments (T*K), I d_expert, J d_shared, C slots per expert,
G devices on the `expert` axis, L experts on one device (E/G).

A letter that a table does not list is whole on every device; "-" marks an axis that is always so
(the router's, a norm's). What the mesh axes are for stands in `planning/mesh_sizes.py`.

The mesh is the one of the program being traced: `use(mesh)` around it sets it, everything below
asks for it, and without one every function here leaves its argument as it is, so that a program
for a single device contains none of this. Axes are of type Auto: the compiler places what is
between our constraints.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_parity.planning.expert_parallel import lacks_ragged
from moe_parity.planning.mesh_sizes import AXES, MeshSizes

Rules = Mapping[str, str | tuple[str, ...]]

ACTIVATIONS: Rules = {"B": AXES, "T": AXES}
WEIGHTS: Rules = {"E": "expert", "D": "fsdp"}
# In a checkpoint there are E experts, which no mesh need divide: both axes cut D instead.
STORED: Rules = {"D": ("fsdp", "expert")}


def spec(axes: str, rules: Rules) -> P:
  """('EDI', WEIGHTS) -> P('expert', 'fsdp', None).

  Raises:
    ValueError: two letters claim one mesh axis.
  """
  entries = [rules.get(letter) for letter in axes]
  claimed = [axis for e in entries for axis in ((e,) if isinstance(e, str) else e or ())]
  if len(claimed) != len(set(claimed)):
    raise ValueError(f"axes {axes!r}: two letters claim one mesh axis in {dict(rules)}")
  return P(*entries)


def make_mesh(sizes: MeshSizes, devices: Sequence | None = None) -> Mesh | None:
  """The mesh of known sizes; None for a single device of this machine, which needs none.

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
def use(mesh: Mesh | None):
  """Traces what is inside for `mesh`."""
  if mesh is None:
    yield
    return
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    yield


def current() -> AbstractMesh | None:
  """The mesh of the program being traced; None for a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else mesh


def has_ragged() -> bool:
  """Whether the slice that the current mesh is of, if it is of a TPU's, has a ragged all-to-all."""
  mesh = current()
  device = mesh and mesh.abstract_device
  return device is None or not lacks_ragged(device.device_kind, mesh.size)


def num_shards() -> int:
  """Parts that a batch is cut into: devices of the current mesh."""
  mesh = current()
  return 1 if mesh is None else mesh.size


def constrain(x: jax.Array, axes: str) -> jax.Array:
  """An activation laid out by its letters."""
  if current() is None:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, ACTIVATIONS))


def gathered(x: jax.Array, axes: str) -> jax.Array:
  """A weight, whole on every device while it is used; its gradient goes back to where it lies."""
  return x if current() is None else _gathered(x, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x, axes):
  return jax.lax.with_sharding_constraint(x, P())


def _gathered_forward(x, axes):
  return _gathered(x, axes), None


def _gathered_backward(axes, _, dx):
  # Without this the transposed constraint would ask for the whole gradient on every device.
  return (jax.lax.with_sharding_constraint(dx, spec(axes, WEIGHTS)),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of a batch [B, S] that enters a step."""
  return NamedSharding(mesh, spec("BS", ACTIVATIONS))


def on_devices(rows_BS: np.ndarray, mesh: Mesh | None) -> jax.Array:
  """The global batch of which `rows_BS` is this process's part, as its loader gave it.

  Each process's rows go to its own devices; which of them get which row decides no sum.
  """
  if mesh is None:
    return jax.device_put(rows_BS)
  shape = (rows_BS.shape[0] * jax.process_count(), *rows_BS.shape[1:])
  return jax.make_array_from_process_local_data(batch_sharding(mesh), rows_BS, shape)


def same_on_all(rows_BS: np.ndarray, mesh: Mesh) -> jax.Array:
  """A batch that every process holds whole, cut over the devices, with rows of zeros after it until
  they divide it."""
  num_rows = -(-rows_BS.shape[0] // mesh.size) * mesh.size
  rows_BS = np.pad(rows_BS, ((0, num_rows - rows_BS.shape[0]), (0, 0)))
  return jax.make_array_from_callback(
    rows_BS.shape, batch_sharding(mesh), lambda index: rows_BS[index]
  )
