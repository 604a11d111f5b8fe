"""The processes of one run watch each other: where one is lost, the others end and say so.

Without it they would wait in a collective for as long as its transport does, and end in a stack of
C++. Every process counts up a key in the store of JAX's coordination service, from a thread of its
own, and reads those of the others.

A virtual machine that is paused (a snapshot, a migration) stops all of its processes, and those of
other machines that wait for its answer. The first to go on would find the others silent for as long
as that took. So a look counts as at most LATE_SECONDS of silence, unless the store did not answer.
"""

import math
import threading
import time
from collections.abc import Callable

BEAT_SECONDS = 2.0
SILENT_SECONDS = 15.0  # ends the others well within 30 s
LATE_SECONDS = 5.0  # a wait or a call that takes longer was suspended itself
PREFIX = "moe_parity/alive/"
LEFT = "left"  # what a process that ended well leaves behind


class Peers:
  """This process among those of its run.

  Args:
    store: a client of JAX's coordination service.
    lost: called once, from a thread, with a line that names the lost process.
    clock: seconds.
  """

  def __init__(
    self,
    store,
    index: int,
    count: int,
    lost: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
  ):
    self._store, self._index, self._count = store, index, count
    self._lost, self._clock = lost, clock
    self._number, self._reached = 0, 0.0
    self._seconds, self._read = 0.0, clock()  # seconds that count; when they were last counted
    self._seen: dict[int, tuple[str, float]] = {}  # process -> its count, when first seen
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True, name="peers")

  def start(self) -> None:
    """Begins to beat and to watch."""
    self._thread.start()

  def leave(self, well: bool = True) -> None:
    """This process ends. Where it ends as it should, its silence is no failure; after an error of
    its own the others, which wait for it in a collective, find it silent and end too."""
    self._over.set()
    self._thread.join(SILENT_SECONDS)
    if not well:
      return
    try:
      self._store.key_value_set(f"{PREFIX}{self._index}", LEFT, True)
    except Exception:  # noqa: BLE001 - the service is gone, and with it all who could miss this one
      return

  def look(self) -> str:
    """Beats once and looks once; a line about a lost process, "" while none is."""
    now = self._count_seconds(LATE_SECONDS)
    self._number += 1
    try:
      self._store.key_value_set(f"{PREFIX}{self._index}", str(self._number), True)
      counts = self._store.key_value_dir_get(PREFIX)
    except Exception:  # noqa: BLE001 - of jaxlib, whose types differ by version
      silent = self._count_seconds() - self._reached
      return self._line(0, silent) if silent > SILENT_SECONDS else ""
    self._reached = now = self._count_seconds(LATE_SECONDS)
    for key, count in counts:
      process = int(key.rpartition("/")[2])
      if self._seen.get(process, ("",))[0] != count:
        self._seen[process] = count, now
    for process, (count, since) in sorted(self._seen.items()):
      if process != self._index and count != LEFT and now - since > SILENT_SECONDS:
        return self._line(process, now - since)
    return ""

  def _count_seconds(self, most: float = math.inf) -> float:
    """Seconds so far, with at most so many of those since they were last counted."""
    now = self._clock()
    self._seconds += min(now - self._read, most)
    self._read = now
    return self._seconds

  def _line(self, process: int, silent: float) -> str:
    return (
      f"process {process} of {self._count} is lost (no sign of life for {silent:.0f} s); start all"
      " of them again, the run resumes from its last checkpoint"
    )

  def _watch(self) -> None:
    while not self._over.wait(BEAT_SECONDS):
      if line := self.look():
        self._lost(line)
        return
