"""An abort in C++ because the first process is lost ends with the exit code that engines act on.

Where the process that hosts JAX's coordination service is lost, the client in every other process
prints why and aborts, before `Peers` has waited long enough. Its callback for this takes a status
that has no Python type (jaxlib 0.12), so the abort's signal is handled instead. An abort of this
process's own (an assertion in native code) stays what it is: started again it would abort again,
and an engine starts a worker that asks for it as often as it asks.
"""

import ctypes
import os
import signal
import socket

from moe_parity.launch.exit_codes import START_AGAIN

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_CONNECT_SECONDS = 5.0  # a host that is lost does not even refuse
_handles: list = []  # stay as long as the process


def leave_on_abort(coordinator: str) -> None:
  """From now on SIGABRT ends this process with one line, and exit code 75 where process 0 is lost.

  Python's own handlers do not serve: they run between two bytecodes, and abort() does not wait.

  Args:
    coordinator: HOST:PORT where process 0 listens as long as it lives.
  """
  library = ctypes.CDLL(None)
  library.signal.restype, library.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]

  def leave(number: int) -> None:
    if _listens(coordinator):
      os.write(2, b"\naborted by an error of this process: process 0 is there\n")
      library.signal(number, None)  # what signals do by default: this one ends the process
      os.kill(os.getpid(), number)
    else:
      os.write(2, b"\naborted: process 0, which coordinates the others, is lost; start all of them"
                  b" again, the run resumes from its last checkpoint\n")  # fmt: skip
      os._exit(START_AGAIN)

  _handles.append(_HANDLER(leave))
  library.signal(signal.SIGABRT, ctypes.cast(_handles[-1], ctypes.c_void_p))


def _listens(coordinator: str) -> bool:
  host, _, port = coordinator.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
  except (OSError, ValueError):
    return False
  return True
