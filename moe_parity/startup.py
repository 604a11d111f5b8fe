"""Starts JAX: joins the processes of a run, and sets caches and host memory first."""

import ctypes
import os
import platform

from moe_parity.data.storage import cache_folder
from moe_parity.errors import UserError
from moe_parity.planning.gpu_cards import MEMORY_FRACTION

AUTO = "auto"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
GPU_MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # its name, and former
GPU_MEMORY_FRACTION = str(MEMORY_FRACTION)  # of a GPU's memory, taken at the start
COMPILE_CACHE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own
NEVER = -1  # as an unsigned number, the largest size


def start_jax(
  coordinator: str = "", num_processes: int = 0, process_id: int = -1, compile_cache: str = ""
) -> None:
  """Starts JAX in this process; call before the first array is made.

  Joins the other processes of the run, if there are any; stores compiled programs in the cache
  folder, so that a second start need not compile; and sets `keep_large_buffers`, which must come
  before JAX starts its threads. On a GPU it reserves GPU_MEMORY_FRACTION of the memory, unless the
  environment says otherwise ($XLA_CLIENT_MEM_FRACTION; $XLA_PYTHON_CLIENT_PREALLOCATE=false).

  Args:
    coordinator: HOST:PORT where the first process listens; "auto" detects it from the cluster
      (Cloud TPU, Slurm, Open MPI, Kubernetes, $JAX_COORDINATOR_ADDRESS); "" is a single process.
    num_processes, process_id: how many there are and which this is, unless "auto" detects them.
    compile_cache: where compiled programs are stored, gs:// too; "" is
      $JAX_COMPILATION_CACHE_DIR, or without one the cache folder.
  Raises:
    UserError: a coordinator without the other two, or they without a coordinator.
  """
  if not any(name in os.environ for name in GPU_MEMORY):  # XLA refuses both at once
    os.environ[GPU_MEMORY[0]] = GPU_MEMORY_FRACTION  # read when devices are first used
  import jax

  from moe_parity.aot import libtpu

  libtpu.silence_probe()
  keep_large_buffers()
  _join(jax, coordinator, num_processes, process_id)
  compile_cache = compile_cache or os.environ.get(COMPILE_CACHE) or str(cache_folder() / "compiled")
  jax.config.update("jax_compilation_cache_dir", compile_cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _join(jax, coordinator: str, num_processes: int, process_id: int) -> None:
  if not coordinator:
    if num_processes or process_id >= 0:
      raise UserError(
        "--num-processes and --process-id need --coordinator=HOST:PORT, the address of process 0;"
        " leave them out for a single process"
      )
  elif coordinator == AUTO:
    jax.distributed.initialize(num_processes=num_processes or None,
                               process_id=process_id if process_id >= 0 else None)  # fmt: skip
  elif not 0 <= process_id < num_processes:
    raise UserError(
      f"--coordinator={coordinator} with --num-processes={num_processes} --process-id={process_id}:"
      " each process needs the number of processes and its own, from 0; or use --coordinator=auto"
      " on a cluster that provides them"
    )
  else:
    jax.distributed.initialize(coordinator, num_processes, process_id)


def keep_large_buffers() -> bool:
  """Stops glibc from returning large freed buffers to the system after every step.

  By default each large buffer (the threshold is 32 MiB at most) is mapped again in every step and
  its pages are faulted in again; so is each buffer over 64 MiB of a thread with a heap of its own,
  hence one heap for all. The process then never shrinks. It helps CPU runs, where XLA allocates its
  buffers with malloc and a small model's step would spend much of its time in page faults.

  Returns:
    whether it took effect: False where the C library is not glibc (macOS, musl).
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, NEVER),
              mallopt(M_TOP_PAD, 2**28), mallopt(M_ARENA_MAX, 1)])  # fmt: skip
