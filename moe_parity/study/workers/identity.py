"""Who a worker is: the process it runs as, and the name that its engine gave it.

Host names and process numbers repeat: containers of one host have equal names and count processes
from 1, each in a PID namespace of its own. So a process is known by the boot of its kernel, its PID
namespace, its number there and the time it started.
"""

import dataclasses
import functools
import os
import pathlib
import platform
import socket
import subprocess
from collections.abc import Mapping

NAME_VARIABLES = (  # of each engine, the variables that together name a worker over restarts
  ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
  ("JOBSET_NAME", "JOB_INDEX"),
  ("SKYPILOT_TASK_ID",),
  ("TPU_NAME",),
)


@dataclasses.dataclass(frozen=True)
class Process:
  """One process, distinct from every other that was or will be.

  Attributes:
    boot: of the kernel; "" where it cannot be read.
    pid_namespace: "" where it cannot be read, or /proc shows another namespace than the process's.
    started: when the process did, as its kernel counts; "" where it cannot be read.
  """

  host: str
  pid: int
  boot: str = ""
  pid_namespace: str = ""
  started: str = ""

  def is_gone(self) -> bool:
    """Whether this process has surely ended, as far as the calling process can tell.

    Only processes of the same boot and PID namespace can be looked for; others may be alive.
    """
    return self._can_be_looked_for() and _started(self.pid) != self.started

  def is_here(self) -> bool:
    """Whether this process surely runs, as far as the calling process can tell."""
    return self._can_be_looked_for() and _started(self.pid) == self.started

  def _can_be_looked_for(self) -> bool:
    here = this_process()
    if not (self.boot and self.pid_namespace and self.started):
      return False
    return (self.boot, self.pid_namespace) == (here.boot, here.pid_namespace)


@functools.cache
def _this_process(pid: int) -> Process:
  started = _started("self" if platform.system() == "Linux" else pid)
  return Process(socket.gethostname(), pid, _boot(), _pid_namespace(), started)


def this_process() -> Process:
  """The calling process."""
  return _this_process(os.getpid())  # anew in a forked child


def worker_name(environment: Mapping[str, str]) -> str:
  """The name that an engine gave this worker, which stays when it starts it again; "" if none.

  Processes of one run have one name: they are one worker.
  """
  for variables in NAME_VARIABLES:
    values = [environment.get(name, "") for name in variables]
    if all(values):
      return "-".join(values)
  return ""


def _boot() -> str:
  try:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return _asked(["sysctl", "-n", "kern.boottime"])


def _pid_namespace() -> str:
  if platform.system() != "Linux":
    return "none"
  try:
    if int(pathlib.Path("/proc/self/stat").read_text().split()[0]) != os.getpid():
      return ""  # /proc belongs to another namespace: it shows other processes under our numbers
    return os.readlink("/proc/self/ns/pid")
  except OSError:
    return ""


def _started(pid: int | str) -> str:
  """When a process started; "" if there is none. One that ended and was not waited for is none."""
  if platform.system() != "Linux":
    return _asked(["ps", "-o", "lstart=", "-p", str(pid)])
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return ""
  return "" if fields[0] in "ZX" else fields[19]  # field 22 of proc(5), the name being field 2


def _asked(command: list[str]) -> str:
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return ""
