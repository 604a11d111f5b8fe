"""How this process's C library keeps memory: large buffers stay mapped between steps."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_large_buffers() -> bool:
  """Stops glibc from giving large freed buffers back to the system after every step.

  By default each buffer over 32 MiB at most is mapped anew and its pages are faulted in again,
  every step. Call before the first array is made; the process then never shrinks. Concerns CPU
  runs only, as XLA:CPU takes its buffers from malloc.

  Returns:
    whether it took effect: False where the C library is not glibc (macOS, musl).
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1),
              mallopt(M_TOP_PAD, 2**28)])  # fmt: skip
