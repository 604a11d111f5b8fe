"""Several processes as one run: who writes, what they agree on, what they add up.

Every process runs the same program on its own devices and reads its own rows of each batch. Only
the first writes files that are not the checkpoint's arrays. All of them see one run folder.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
  """Whether this process writes what is written once; true where it is the only one."""
  return jax.process_index() == 0


def wait(what: str) -> None:
  """Returns when every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def everywhere(fact: bool) -> bool:
  """Whether `fact` holds in every process; each learns the same."""
  if jax.process_count() == 1:
    return fact
  return bool(np.all(multihost_utils.process_allgather(np.array(fact))))


def gather(value: np.ndarray) -> np.ndarray:
  """Every process's `value` (of one shape), on a new first axis in the order of the processes."""
  return np.asarray(multihost_utils.process_allgather(value))


def tell(message: bytes | None) -> bytes | None:
  """What the first process says, in every process; the others' argument does not count."""
  size = -1 if message is None else len(message)
  size = int(multihost_utils.broadcast_one_to_all(np.array(size, np.int64)))
  if size < 0:
    return None
  text = np.zeros(size, np.uint8)
  if is_first():
    text[:] = np.frombuffer(message, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(text)).astype(np.uint8).tobytes()
