"""When a checkpoint is due by time, in all processes of a run after the same step."""

import time
from collections.abc import Callable

import jax

from moe_parity.sharding import multihost

STEPS_BETWEEN_LOOKS = 16  # of several processes, which then ask the first


class SaveClock:
  """Says when `minutes` have passed since the last checkpoint; 0 never does."""

  def __init__(self, minutes: int | float, clock: Callable[[], float] = time.monotonic):
    self._seconds, self._clock = 60 * minutes, clock
    self._saved = clock()

  def is_due(self, step: int) -> bool:
    """Whether to save after `step`; every process calls it after each, and gets one answer."""
    if not self._seconds:
      return False
    is_late = self._clock() - self._saved >= self._seconds
    if jax.process_count() == 1:
      return is_late
    if step % STEPS_BETWEEN_LOOKS:
      return False
    return multihost.broadcast_bytes(b"save" if is_late else None) is not None

  def saved(self) -> None:
    """A checkpoint was begun now."""
    self._saved = self._clock()
