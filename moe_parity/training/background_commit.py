"""One save at a time is finished in a thread, whose error the next `wait` raises."""

import concurrent.futures
import contextlib
from collections.abc import Callable


class BackgroundCommit:
  """What the checkpoints of a folder and those of a bucket have in common."""

  def __init__(self):
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._commit: concurrent.futures.Future | None = None

  def finish_later(self, finish: Callable[..., None], *arguments) -> None:
    """Calls `finish` in the thread; the save before must have been waited for."""
    self._commit = self._pool.submit(finish, *arguments)

  def wait(self) -> None:
    """Returns when the last save is finished; raises its error if it failed (a full disk)."""
    commit, self._commit = self._commit, None
    if commit is not None:
      commit.result()

  def close(self) -> None:
    """Waits for the last save. Its error, if any, was `wait`'s to raise, at a run's end or stop."""
    with contextlib.suppress(Exception):
      self.wait()
    self._pool.shutdown()
