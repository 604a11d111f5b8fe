"""How long training took and how fast it runs, without validation and checkpoints."""

import contextlib
import time


class TrainingTimer:
  """Seconds spent training, summed over restarts; pauses for validation and saving are left out."""

  def __init__(
    self,
    tokens_per_step: int,
    flops_per_token: int,
    peak_flops_per_second: float,
    *,
    first_step: int = 0,
    seconds_before: float = 0.0,
  ):
    """Args:
    flops_per_token: of training (forward and backward), by the plan's convention.
    peak_flops_per_second: of all devices together; what counts as 1 in `peak_share`.
    first_step: finished steps of the checkpoint that the run resumes from.
    seconds_before: that those steps took.
    """
    self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
    self.peak_flops_per_second = peak_flops_per_second
    self._seconds_before = seconds_before
    self._start = time.perf_counter()
    self._last_step, self._last_time = first_step, self._start

  @property
  def seconds(self) -> float:
    return self._seconds_before + time.perf_counter() - self._start

  @contextlib.contextmanager
  def paused(self):
    """Leaves the time inside out of `seconds` and of the rates."""
    start = time.perf_counter()
    yield
    pause = time.perf_counter() - start
    self._start += pause
    self._last_time += pause

  def tokens_per_second(self, step: int) -> float:
    """The mean rate since the last call, which was after an earlier step."""
    now = time.perf_counter()
    seconds, num_steps = now - self._last_time, step - self._last_step
    self._last_step, self._last_time = step, now
    return num_steps * self.tokens_per_step / max(seconds, 1e-9)
