"""An abort in C++ ends a process of several with the exit code that its engine acts on.

Where the process that hosts JAX's coordination service is lost, the client in every other process
prints why and aborts, before `Peers` has waited long enough. Its callback for this takes a status
that has no Python type (jaxlib 0.12), so the abort's signal is handled instead.
"""

import ctypes
import os
import signal

from moe_parity.launch.exit_codes import START_AGAIN

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _leave(number: int) -> None:
  os.write(2, b"\naborted: process 0, which coordinates the others, may be lost; start all of them"
              b" again, the run resumes from its last checkpoint\n")  # fmt: skip
  os._exit(START_AGAIN)


_HANDLE = _HANDLER(_leave)  # stays as long as the process


def leave_on_abort() -> None:
  """From now on SIGABRT ends this process with one line and exit code 75.

  Python's own handlers do not serve: they run between two bytecodes, and abort() does not wait.
  """
  library = ctypes.CDLL(None)
  library.signal.restype, library.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, _HANDLER]
  library.signal(signal.SIGABRT, _HANDLE)
