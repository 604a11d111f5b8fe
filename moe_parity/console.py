"""Progress bars: for text on its way to tokens, and for runs on their way to a result.

Without a terminal (a log file, CI) bars are left out and training prints a line now and then.
"""

import contextlib
import sys
import time
from collections.abc import Mapping

QUIET_SECONDS = 10.0  # between lines of an arm when there is no terminal


def duration(hours: int | float) -> str:
  """Hours in the unit that suits: 0.4 s, 12 min, 3.5 h."""
  for size, unit in ((1.0, "h"), (1 / 60, "min")):
    if hours >= size:
      return f"{hours / size:.3g} {unit}"
  return f"{hours * 3600:.2g} s" if hours else "0 s"


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
  """One bar for all FLOPs of the runs of this call, one for the run in training.

  What is to be done may grow, for a study that goes by stages: `plan` says anew.
  """

  def __init__(self):
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    self._terminal = sys.stdout.isatty()
    self._bars = Progress(
      TextColumn("{task.description:20}"),
      BarColumn(),
      TextColumn("{task.percentage:3.0f}%"),
      TimeRemainingColumn(),
      TextColumn("{task.fields[note]}"),
      disable=not self._terminal,
    )
    self._all = None
    self._total, self._share = {}, {}  # FLOPs by label
    self._tasks: dict = {}
    self._last = 0.0

  def __enter__(self):
    self._bars.start()
    return self

  def __exit__(self, *exception):
    self._bars.stop()

  def plan(self, flops: Mapping[str, int | float]) -> None:
    """What is left to do: FLOPs by label of each run."""
    self._total.update(flops)
    if self._all is None and len(self._total) > 1:
      self._all = self._bars.add_task("all runs", total=0, note="")
    if self._all is not None:
      self._bars.update(self._all, total=sum(self._total.values()))

  def update(self, label: str, progress) -> None:
    """Shows a logged step of a run."""
    line = progress.line
    note = f"{line['cross_entropy']:.3f} nats  {line['tokens_per_second']:,.0f} tok/s"
    if label not in self._tasks:
      self._tasks[label] = self._bars.add_task(label, total=progress.num_steps, note=note)
    self._bars.update(self._tasks[label], completed=progress.step, note=note)
    self._share[label] = self._total.get(label, 0) * progress.step / progress.num_steps
    if self._all is not None:
      self._bars.update(self._all, completed=sum(self._share.values()))
    last = progress.step == progress.num_steps
    if not self._terminal and (last or time.monotonic() - self._last > QUIET_SECONDS):
      self._last = time.monotonic()
      print(f"{label:20} step {progress.step}/{progress.num_steps}  {note}", flush=True)

  def print(self, text: str) -> None:
    """A line that stays above the bars."""
    self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
