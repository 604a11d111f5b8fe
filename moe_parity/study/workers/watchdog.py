"""Ends a run that takes no step any more, so that its engine can start it again.

Time in which the machine stood still (a virtual machine that is moved, or saved to disk) is not the
run's.
"""

import collections
import contextlib
import faulthandler
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

LEAST_SECONDS = 600.0
MEDIANS = 20
PAUSED_SECONDS = 60.0  # a thread that waits so much longer than it asked for did not run
PAUSE_FACTOR = 6  # a validation or a checkpoint may take so many times the limit of a step


class Watchdog:
  """Watches the time between steps.

  Args:
    overdue: called once, from a thread, with a line that says how long there was no step.
    clock: seconds.
  """

  def __init__(
    self,
    overdue: Callable[[str], None],
    *,
    least_seconds: int | float = LEAST_SECONDS,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._overdue, self._least, self._clock = overdue, least_seconds, clock
    self._durations: collections.deque[float] = collections.deque(maxlen=101)
    self._since, self._factor = clock(), 1
    self._over = threading.Event()

  def step(self) -> None:
    """A step is done."""
    now = self._clock()
    self._durations.append(now - self._since)
    self._since = now

  def limit_seconds(self) -> float:
    """How long a step may take: max(10 minutes, 20 medians)."""
    median = statistics.median(self._durations) if self._durations else 0.0
    return self._factor * max(self._least, MEDIANS * median)

  def why(self) -> str:
    """Why the run counts as stuck; "" while it does not."""
    waited = self._clock() - self._since
    limit = self.limit_seconds()
    return f"no step for {waited:.0f} s, where {limit:.0f} s are the most" if waited > limit else ""

  @contextlib.contextmanager
  def watching(self, seconds: int | float = 5.0) -> Iterator[None]:
    """Around a training loop; looks every `seconds`."""
    self._since, self._over = self._clock(), threading.Event()
    self._durations.clear()
    thread = threading.Thread(target=self._watch, args=(seconds, self._over), daemon=True)
    thread.start()
    try:
      yield
    finally:
      self._over.set()

  @contextlib.contextmanager
  def pausing(self) -> Iterator[None]:
    """Around what takes longer than a step."""
    self._factor = PAUSE_FACTOR
    try:
      yield
    finally:
      self._factor, self._since = 1, self._clock()

  def _watch(self, seconds: int | float, over: threading.Event) -> None:
    looked = self._clock()
    while not over.wait(seconds):
      now = self._clock()
      if (paused := now - looked - seconds) > PAUSED_SECONDS:  # the whole machine, with this thread
        self._since = min(self._since + paused, now)
      looked = now
      if why := self.why():
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        self._overdue(why)
        return
