"""How the caller steers a run: may it write, must it stop. The defaults let it run."""

import contextlib
import dataclasses
from collections.abc import Callable


class StopRequests:
  """Tells a run when to stop. This one never does; see `study.workers.stop_signals`."""

  def stepping(self) -> contextlib.AbstractContextManager:
    """Around the training loop, which calls `should_stop` after every step."""
    return contextlib.nullcontext()

  def pausing(self) -> contextlib.AbstractContextManager:
    """Within `stepping`, around what takes longer than a step: a validation, a checkpoint."""
    return contextlib.nullcontext()

  def should_stop(self) -> bool:
    """Whether to save a checkpoint of this step and stop; the same in every process of a run.

    Every process calls it equally often.
    """
    return False

  def wait_for_lost_process(self, error: Exception) -> None:
    """After an error that is no user's: does not return where it comes of a process that is lost.

    Where another process of the run ended, collectives fail here; that is no failure of the run.
    """


@dataclasses.dataclass(frozen=True)
class BucketCheckpoints:
  """Where a run's checkpoints are when its processes share a bucket and no disk.

  Attributes:
    write: the gs:// folder of this life of the worker; every process writes its shards there.
    read: the folder of the checkpoint that it resumes from, "" for a fresh run.
    step: of that checkpoint; later ones there were never noted, so they count as not written.
    publish: notes the newest checkpoint of `write` as the one to resume from; called in the first
      process when a checkpoint is whole, before the next is begun.
  """

  write: str
  read: str = ""
  step: int = 0
  publish: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class RunControl:
  """Given to `train_arm`.

  Attributes:
    check_owner: called right before each write into the run folder, in the first process; raises
      where another worker has the run now.
    bucket: None where the run folder holds the checkpoints.
  """

  check_owner: Callable[[], None] = lambda: None
  stop: StopRequests = dataclasses.field(default_factory=StopRequests)
  bucket: BucketCheckpoints | None = None
