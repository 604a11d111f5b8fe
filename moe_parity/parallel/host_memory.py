"""How this process's C library keeps memory: large buffers stay mapped between steps."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
NEVER = -1  # the largest size there is


def keep_large_buffers() -> bool:
  """Stops glibc from giving large freed buffers back to the system after every step.

  By default each buffer over 32 MiB at most is mapped anew and its pages are faulted in again,
  every step; so is each buffer over 64 MiB of a thread that was given a heap of its own, hence one
  heap for all. Call before JAX starts its threads; the process then never shrinks. Of use to CPU
  runs, as XLA:CPU takes its buffers from malloc: without it a tenth of a small model's step went
  into page faults.

  Returns:
    whether it took effect: False where the C library is not glibc (macOS, musl).
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, NEVER),
              mallopt(M_TOP_PAD, 2**28), mallopt(M_ARENA_MAX, 1)])  # fmt: skip
