"""SIGTERM, SIGUSR1 and Ctrl-C end a worker between two steps, with a checkpoint; a second at once.

Engines warn before they take a machine away: Slurm and Kubernetes by SIGTERM, Slurm also by a
signal of the user's choice. The first signal is noted; the training loop asks after every step,
saves a checkpoint and stops. Outside of the loop (data, compiling, evaluation) nothing is to be
saved, and the worker stops at once.

With several processes SIGTERM belongs to JAX's preemption service, which makes all of them stop
after the same step; the other two signals are passed on to it.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from moe_parity.errors import Stopped, UserError
from moe_parity.launch.exit_codes import START_AGAIN
from moe_parity.study.workers.aborts import leave_on_abort
from moe_parity.study.workers.peers import BEAT_SECONDS, SILENT_SECONDS, Peers
from moe_parity.study.workers.watchdog import Watchdog
from moe_parity.training.control import StopRequests

INTERRUPTED = 130  # as a shell calls a process that Ctrl-C ended
UNWIND_SECONDS = 8.0  # for a worker that is outside of the loop to stop by itself
RELEASE_SECONDS = 3.0  # for storage to take the last record of a lease
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals(StopRequests):
  """The signals of this process while it is entered; a training loop asks it after every step.

  Attributes:
    release: called before the process leaves at once; releases its leases.
    several_processes: of one run; set before a run is trained.
  """

  def __init__(self):
    self.release: Callable[[], None] = lambda: None
    self.several_processes = False
    self._first, self._stepping, self._calls = 0, False, 0
    self._peers: Peers | None = None
    self._over = threading.Event()
    self._watchdog = Watchdog(lambda why: self.leave_now(START_AGAIN, f"{why}; start me again"))

  @property
  def code(self) -> int:
    """The exit code that the first signal asks for."""
    return INTERRUPTED if self._first == signal.SIGINT else START_AGAIN

  def __enter__(self):
    self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._listen, daemon=True, name="stop signals")
    self._thread.start()
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, Exception):
      self.wait_for_lost_process(error)
    self._over.set()
    if self._peers is not None:
      self._peers.leave(well=not isinstance(error, Exception))
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._writer.close()  # ends the thread
    self._thread.join()
    self._reader.close()
    if isinstance(error, Stopped):
      error.code = self.code

  def join_processes(self) -> None:
    """Call after JAX joined the processes of a run: from now on SIGTERM is its service's."""
    import jax

    self.several_processes = jax.process_count() > 1
    if self.several_processes:
      from jax._src import distributed  # the only way to the service's store

      lost = lambda line: self.leave_now(START_AGAIN, line)  # noqa: E731
      place = jax.process_index(), jax.process_count()
      self._peers = Peers(distributed.global_state.client, *place, lost)
      self._peers.start()
      if jax.process_index():  # the first holds the leases, and the service
        leave_on_abort(distributed.global_state.coordinator_address)

  @contextlib.contextmanager
  def stepping(self) -> Iterator[None]:
    """See `StopRequests`."""
    with self._watchdog.watching():
      self._stepping = True
      try:
        yield
      finally:
        self._stepping = False

  def pausing(self) -> contextlib.AbstractContextManager:
    """See `StopRequests`."""
    return self._watchdog.pausing()

  def should_stop(self) -> bool:
    """See `StopRequests`."""
    self._watchdog.step()
    if not self.several_processes:
      return self._first != 0
    from jax.experimental import multihost_utils

    self._calls += 1  # over all runs of this process, as the service wants a number that goes up
    if not multihost_utils.reached_preemption_sync_point(self._calls):
      return False
    self._first = self._first or signal.SIGTERM
    signal.signal(signal.SIGTERM, self._handle)  # the next one is a second
    return True

  def wait_for_lost_process(self, error: Exception) -> None:
    """See `StopRequests`. Where a process is lost, `Peers` ends this one before this returns."""
    if self._peers is not None and not isinstance(error, UserError):
      time.sleep(SILENT_SECONDS + 3 * BEAT_SECONDS)

  def leave_now(self, code: int, why: str) -> None:
    """Ends the process at once, its leases released; from any thread."""
    releasing = threading.Thread(target=self.release, daemon=True)
    releasing.start()
    releasing.join(RELEASE_SECONDS)
    print(f"\n{why}", file=sys.__stderr__, flush=True)
    os._exit(code)

  def _handle(self, number: int, frame: object) -> None:
    if self._first:
      return  # the listening thread leaves
    self._first = number
    if self.several_processes:
      os.kill(os.getpid(), signal.SIGTERM)
    elif not self._stepping:
      raise Stopped(f"stopped by {signal.Signals(number).name}")

  def _listen(self) -> None:
    """Hears signals also while the main thread is in a library and runs no Python."""
    count = 0
    while data := self._reader.recv(1):
      if data[0] not in SIGNALS:
        continue
      count += 1
      name = signal.Signals(data[0]).name
      code = INTERRUPTED if data[0] == signal.SIGINT else START_AGAIN
      if count > 1:
        self.leave_now(code, f"stopped at once by a second signal, {name}")
      if not self.several_processes and not self._stepping:
        args = code, f"stopped by {name} outside of the training loop"
        threading.Thread(target=self._leave_unless_over, args=args, daemon=True).start()

  def _leave_unless_over(self, code: int, why: str) -> None:
    if not self._over.wait(UNWIND_SECONDS):
      self.leave_now(code, why)
