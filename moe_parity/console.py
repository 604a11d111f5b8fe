"""Progress bars: for text on its way to tokens, and for arms on their way to a result.

Without a terminal (a log file, CI) bars are left out and training prints a line now and then.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

QUIET_SECONDS = 10.0  # between lines of an arm when there is no terminal


@contextlib.contextmanager
def bytes_bar():
  """Yields a `progress(stage, done, total)` for bytes of text."""
  from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

  columns = (TextColumn("{task.description:24}"), BarColumn(), DownloadColumn())
  with Progress(*columns, TransferSpeedColumn(), disable=not sys.stdout.isatty()) as bars:
    tasks: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
      if stage not in tasks:
        tasks[stage] = bars.add_task(stage, total=total or None)
      bars.update(tasks[stage], completed=done, total=total or None)

    yield progress


class Stages:
  """Wall and CPU seconds and bytes of each stage that a `progress(stage, done, total)` reports.

  CPU seconds are those of all threads of this process, so that bytes over them are a rate per core
  whatever else the machine does.
  """

  def __init__(self, show):
    self._show, self._last = show, (time.monotonic(), time.process_time())
    self._seconds: dict[str, list[float]] = {}
    self._bytes: dict[str, tuple[int, int]] = {}

  def progress(self, stage: str, done: int, total: int) -> None:
    now = time.monotonic(), time.process_time()
    spent = self._seconds.setdefault(stage, [0.0, 0.0])
    for kind in (0, 1):
      spent[kind] += now[kind] - self._last[kind]
    self._last = now
    first, _ = self._bytes.get(stage, (done if total else 0, 0))
    self._bytes[stage] = first, done
    self._show(stage, done, total)

  def rows(self) -> list[dict]:
    """A row a stage, in order."""
    rows = []
    for stage, (seconds, cpu_seconds) in self._seconds.items():
      size = self._bytes[stage][1] - self._bytes[stage][0]
      rows.append(
        {
          "stage": stage,
          "megabytes": size / 1e6,
          "seconds": seconds,
          "cpu_seconds": cpu_seconds,
          "megabytes_per_cpu_second": size / 1e6 / cpu_seconds if cpu_seconds else 0.0,
        }
      )
    return rows


class TrainingBars:
  """One bar for all FLOPs of the arms at hand, one for the arm in training."""

  def __init__(self, arms: Sequence):
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    self._terminal = sys.stdout.isatty()
    self._bars = Progress(
      TextColumn("{task.description:16}"),
      BarColumn(),
      TextColumn("{task.percentage:3.0f}%"),
      TimeRemainingColumn(),
      TextColumn("{task.fields[note]}"),
      disable=not self._terminal,
    )
    total = sum(arm.train_flops for arm in arms)
    self._all = self._bars.add_task("all arms", total=total, note="") if len(arms) > 1 else None
    self._share = {(arm.name, arm.seed): 0.0 for arm in arms}
    self._tasks: dict = {}
    self._last = 0.0

  def __enter__(self):
    self._bars.start()
    return self

  def __exit__(self, *exception):
    self._bars.stop()

  def update(self, arm, progress) -> None:
    """Shows a logged step of an arm."""
    key, line = (arm.name, arm.seed), progress.line
    note = f"{line['cross_entropy']:.3f} nats  {line['tokens_per_second']:,.0f} tok/s"
    if key not in self._tasks:
      self._tasks[key] = self._bars.add_task(arm.name, total=progress.num_steps, note=note)
    self._bars.update(self._tasks[key], completed=progress.step, note=note)
    self._share[key] = arm.train_flops * progress.step / progress.num_steps
    if self._all is not None:
      self._bars.update(self._all, completed=sum(self._share.values()))
    last = progress.step == progress.num_steps
    if not self._terminal and (last or time.monotonic() - self._last > QUIET_SECONDS):
      self._last = time.monotonic()
      print(f"{arm.name:16} step {progress.step}/{progress.num_steps}  {note}", flush=True)

  def print(self, text: str) -> None:
    """A line that stays above the bars."""
    self._bars.console.print(text, highlight=False, markup=False)
