"""A Slurm cluster of this machine alone, for tests: munged, slurmctld and slurmd in a folder.

Needs root and Debian's slurm-wlm and munge. Nothing of it outlives `stop`, and nothing outside the
folder is written.
"""

import os
import pathlib
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={port}
SlurmdPort={node_port}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SchedulerParameters=sched_interval=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
  """Why there can be no cluster here, "" where there can."""
  if os.geteuid() != 0:
    return "a Slurm cluster for tests needs root"
  absent = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
  return f"apt-get install slurm-wlm munge: no {', '.join(absent)}" if absent else ""


def _path() -> str:
  return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


class SlurmCluster:
  """Starts the daemons; `env` is what commands of this cluster need."""

  def __init__(self, folder: pathlib.Path, *, cpus: int = 2):
    self.folder, host = folder, socket.gethostname()
    for name in ("munge", "state", "spool"):
      (folder / name).mkdir(parents=True, mode=0o755)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    config = CONFIG.format(
      folder=folder, host=host, cpus=cpus, port=_free_port(), node_port=_free_port()
    )
    (folder / "slurm.conf").write_text(config)
    self.env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    for name in list(self.env):  # of a job that the tests themselves may run in
      if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF":
        del self.env[name]
    self._daemons: list[subprocess.Popen] = []
    munge = {
      n: f"--{n}={folder}/munge/{n.split('-')[0]}" for n in ("pid-file", "log-file", "seed-file")
    }
    self._start(
      *("munged", "--foreground", "--force", f"--key-file={key}"),
      *(f"--socket={folder}/munge/socket", *munge.values()),
    )
    self._wait("munged", lambda: (folder / "munge/socket").exists())
    self._start("slurmctld", "-D")
    self._start("slurmd", "-D", "-N", host)
    self._wait("the node", lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t"))

  def _start(self, *argv: str) -> None:
    log = open(self.folder / f"{argv[0]}.out", "w")  # noqa: SIM115 - the daemon's, as long as it is
    with log:
      self._daemons.append(
        subprocess.Popen(argv, env=self.env, stdout=log, stderr=subprocess.STDOUT)
      )

  def _wait(self, what: str, ready, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
      assert time.monotonic() < deadline, f"{what} is not there; see {self.folder}"
      time.sleep(0.1)

  def run(self, *argv: str) -> str:
    """What a command of the cluster prints, whether it succeeds or not."""
    return subprocess.run(argv, env=self.env, capture_output=True, text=True).stdout

  def job(self, name: str) -> dict[str, str]:
    """The fields of a job, as scontrol knows them."""
    words = self.run("scontrol", "show", "job", "-o", name).split()
    return dict(word.split("=", 1) for word in words if "=" in word)

  def wait_until(self, fact, seconds: float) -> None:
    """Waits until something holds of the cluster."""
    self._wait("what the test waits for", fact, seconds)

  def wait_for(self, name: str, state: str, seconds: float = 120) -> dict[str, str]:
    """Waits until a job is in a state; its fields."""
    self._wait(f"job {name} {state}", lambda: self.job(name).get("JobState") == state, seconds)
    return self.job(name)

  def stop(self) -> None:
    """Ends all jobs and daemons."""
    self.run("scancel", "--user=root")
    for daemon in reversed(self._daemons):
      daemon.terminate()
    for daemon in self._daemons:
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
