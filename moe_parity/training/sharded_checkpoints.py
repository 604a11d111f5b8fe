"""Checkpoints of processes that share a bucket and no disk: each writes its shards there.

Orbax marks a checkpoint as whole when every process has written its part. Then the first process
adds the logs and notes it as the one to resume from (`BucketCheckpoints.publish`). A life of a
worker has a folder of its own, so one that was only asleep damages nothing that counts.
"""

from collections.abc import Callable
from typing import Any

from moe_parity.data import storage
from moe_parity.errors import UserError
from moe_parity.sharding import multihost
from moe_parity.training.checkpoint import LOGS, Restored
from moe_parity.training.checkpoint_writer import (
  LEDGER,
  CheckpointWriter,
  from_items,
  orbax,
  state_items,
)
from moe_parity.training.control import BucketCheckpoints
from moe_parity.training.state import TrainState

IS_WHOLE = "commit_success.txt"  # what orbax writes last into each folder of a checkpoint


class ShardedCheckpoints(CheckpointWriter):
  """As `Checkpoints`, on a bucket.

  Args:
    keep: how many of this life's checkpoints stay.
    check_owner: called before a checkpoint is noted; raises where another has the run now.
  """

  def __init__(self, places: BucketCheckpoints, keep: int, check_owner: Callable[[], None]):
    super().__init__()
    self.folder, self._places, self._keep = places.write, places, keep
    self._check_owner = check_owner

  def steps(self) -> list[int]:
    """Steps of this life's whole checkpoints, the newest first."""
    return whole_steps(self.folder)

  def _new_path(self, step: int) -> Any:
    return _place(f"{self.folder}/{step}")

  def _finish(self, saving: Any, path: Any, step: int, logs: dict[str, bytes]) -> None:
    saving.result()
    if not multihost.is_primary():
      return
    for name, content in logs.items():
      storage.write_bytes(f"{self.folder}/{step}/{LOGS}/{name}", content)
    self._check_owner()
    self._places.publish()
    for old in self.steps()[self._keep :]:
      storage.remove_below(f"{self.folder}/{old}")

  def restore(self, abstract_state: TrainState, abstract_ledger: dict[str, Any]) -> Restored | None:
    """The checkpoint that the life before noted; None for a fresh run.

    Raises:
      UserError: it cannot be read.
    """
    if not self._places.read:
      return None
    step, loaded, why = self._places.step, None, ""
    place = f"{self._places.read}/{step}"
    try:
      loaded = orbax().load_checkpointables(
        _place(place), state_items(abstract_state) | {LEDGER: abstract_ledger}
      )
    except Exception as error:  # noqa: BLE001 - a damaged object surfaces as any of many types
      why = " ".join(str(error).split())[:200] or type(error).__name__
    if why := multihost.first_message(why):
      raise UserError(
        f"{place} cannot be read ({why}); remove latest.json of this run there to train it from its"
        " beginning"
      )
    state, ledger = from_items(loaded)
    logs = {}
    if multihost.is_primary():
      logs = {
        name: storage.read_bytes(f"{place}/{LOGS}/{name}")
        for name in storage.names(f"{place}/{LOGS}")
      }
    return Restored(step, state, ledger, (), logs)


def whole_steps(folder: str) -> list[int]:
  """Steps of the whole checkpoints in a folder of a bucket, the newest first."""
  names = [name.split("/") for name in storage.names(folder)]
  steps = [int(name[0]) for name in names if name[1:] == [IS_WHOLE] and name[0].isdigit()]
  return sorted(steps, reverse=True)


def _place(url: str):
  from etils import epath

  return epath.Path(url)
