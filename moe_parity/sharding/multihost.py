"""Several processes as one run: barriers, agreement, broadcasts and gathers between them.

Every process runs the same program on its own devices and reads its own rows of each batch. Only
the primary one writes files other than the checkpoint's arrays. All share one run folder.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_primary() -> bool:
  """Whether this process writes what is written once a run: the first, or the only one."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process has called it with the same name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def first_message(message: str) -> str:
  """The first process's that is not empty, cut to 300 bytes; the same in all. "" if all are."""
  if jax.process_count() == 1:
    return message
  text = np.zeros(300, np.uint8)
  content = np.frombuffer(message.encode()[: text.size], np.uint8)
  text[: content.size] = content
  for row in np.asarray(multihost_utils.process_allgather(text)).astype(np.uint8):
    if row.any():
      return row.tobytes().rstrip(b"\0").decode(errors="replace")
  return ""


def all_gather(value: np.ndarray) -> np.ndarray:
  """Stacks every process's `value` (of one shape) on a new first axis, in process order."""
  return np.asarray(multihost_utils.process_allgather(value))


def broadcast_bytes(message: bytes | None) -> bytes | None:
  """Broadcasts the primary process's message; the argument of the others is ignored."""
  if jax.process_count() == 1:
    return message
  size = -1 if message is None else len(message)
  size = int(multihost_utils.broadcast_one_to_all(np.array(size, np.int64)))
  if size < 0:
    return None
  text = np.zeros(size, np.uint8)
  if is_primary():
    text[:] = np.frombuffer(message, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(text)).astype(np.uint8).tobytes()
