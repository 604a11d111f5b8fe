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
class RunControl:
  """Given to `train_arm`.

  Attributes:
    check_owner: called right before each write into the run folder, in the first process; raises
      where another worker has the run now.
  """

  check_owner: Callable[[], None] = lambda: None
  stop: StopRequests = dataclasses.field(default_factory=StopRequests)
