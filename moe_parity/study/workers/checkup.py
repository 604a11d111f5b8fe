"""Whether a machine and a place can run a study: what `moe-parity doctor` prints."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import secrets
import shutil
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from moe_parity.data import storage
from moe_parity.errors import UserError
from moe_parity.launch.gpu import extra_for_driver
from moe_parity.study.workers.leases import DONE, Leases

LEAST_PYTHON = (3, 12)
LEAST_DISK_GB = 5
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")  # of JAX, for CUDA 13 and 12
MOST_SKEW_SECONDS = 60  # certificates of https services and tokens of clouds fail beyond minutes


class HealthCheck(NamedTuple):
  """One thing checked; `mend` is a command or a step, "" where it is well."""

  what: str
  ok: bool
  found: str
  mend: str = ""


def checkup(workdir: str | pathlib.Path | None, devices: bool = True) -> list[HealthCheck]:
  """Everything that is checked, in the order a start would need it.

  Args:
    workdir: a place for studies, checked too; None checks the machine alone.
    devices: whether JAX opens its devices, which takes them from others for the moment.
  """
  findings = [python(), *jax_and_devices(devices), driver(), disk(storage.cache_folder(), "cache")]
  if workdir is not None:
    findings += study_place(workdir)
  return findings


def python() -> HealthCheck:
  """The interpreter's version."""
  ok = sys.version_info >= LEAST_PYTHON
  return HealthCheck("python", ok, platform.python_version(), "" if ok else "bash launch/local.sh")


def jax_and_devices(devices: bool = True) -> list[HealthCheck]:
  """JAX, jaxlib and libtpu by version, and JAX's devices unless they are left out."""
  versions = {}
  for name in ("jax", "jaxlib", "libtpu"):
    if importlib.util.find_spec(name) is not None:
      versions[name] = importlib.metadata.version(name)
  text = ", ".join(f"{name} {version}" for name, version in versions.items())
  if "jax" not in versions:
    return [HealthCheck("jax", False, "not installed", "bash launch/local.sh --setup")]
  fits = versions["jax"].split(".")[:3] == versions.get("jaxlib", "").split(".")[:3]
  found = [HealthCheck("jax", fits, text, "" if fits else f"pip install jaxlib=={versions['jax']}")]
  if not devices:
    return found
  try:
    import jax

    from moe_parity.aot import libtpu

    libtpu.silence_probe()
    there = jax.devices()
    kinds = sorted({device.device_kind for device in there})
    text = f"{len(there)} x {', '.join(kinds)}"
    if there[0].platform == "cpu" and _expects_gpus():
      text += ", though there is an NVIDIA driver"
      mend = "see what JAX wrote as it started, and the row driver; JAX_PLATFORMS=cpu takes the CPU"
      found.append(HealthCheck("devices", False, text, mend))
    else:
      found.append(HealthCheck("devices", True, text))
  except RuntimeError as error:
    line = " ".join(str(error).split())[:200]
    mend = "end the process that holds the chips, or install the extra tpu, gpu or gpu-cuda12"
    found.append(HealthCheck("devices", False, line, mend))
  return found


def _expects_gpus() -> bool:
  """Whether JAX should find GPUs: it takes the CPU, with a warning, where CUDA does not start."""
  return shutil.which("nvidia-smi") is not None and not os.environ.get("JAX_PLATFORMS")


def driver() -> HealthCheck:
  """The NVIDIA driver, and whether JAX has a plugin for it."""
  program = shutil.which("nvidia-smi")
  if program is None:
    return HealthCheck("driver", True, "no NVIDIA GPU")
  query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
  asked = subprocess.run(query, capture_output=True, text=True)
  version = asked.stdout.split("\n")[0].strip()
  if asked.returncode or not version.split(".")[0].isdigit():
    mend = "install the NVIDIA driver, then reboot"
    return HealthCheck("driver", False, "nvidia-smi fails", mend)
  try:
    extra = extra_for_driver(version)
  except UserError as error:
    return HealthCheck("driver", False, version, str(error))
  # A driver runs programs of every CUDA before its own too.
  plugins = PLUGINS if extra == "gpu" else PLUGINS[1:]
  ok = any(importlib.util.find_spec(plugin) is not None for plugin in plugins)
  mend = f"EXTRA={extra} bash launch/local.sh --setup"
  return HealthCheck("driver", ok, version, "" if ok else mend)


def disk(folder: pathlib.Path, what: str) -> HealthCheck:
  """Free space where a folder is or would be made."""
  there = next(path for path in (folder, *folder.parents) if path.exists())
  free = shutil.disk_usage(there).free / 1e9
  ok = free >= LEAST_DISK_GB
  mend = "" if ok else "free some space, or set MOE_PARITY_CACHE to another disk"
  return HealthCheck(f"{what} disk", ok, f"{free:.0f} GB free at {folder}", mend)


def study_place(workdir: str | pathlib.Path) -> list[HealthCheck]:
  """Whether a place can be read, written, and used for leases; and its clock against this host's.

  Writes two small objects and removes them.
  """
  name = f"doctor-{secrets.token_hex(4)}"
  is_new = not storage.is_remote(workdir) and not pathlib.Path(workdir).exists()
  try:
    read_and_write(workdir, name)
    compare_and_swap(workdir, name)
  except (OSError, ValueError, RuntimeError) as error:
    line = " ".join(str(error).split())[:300]
    remote = storage.is_remote(workdir)
    mend = "gcloud auth application-default login" if remote else "chmod it, or use another place"
    if remote and importlib.util.find_spec("gcsfs") is None:
      mend = "pip install gcsfs"
    return [HealthCheck("place", False, f"{workdir}: {line}", mend)]
  finally:
    _remove(workdir, name)
    if is_new and pathlib.Path(workdir).is_dir():
      pathlib.Path(workdir).rmdir()
  findings = [HealthCheck("place", True, f"{workdir}: read, write, compare-and-swap")]
  if storage.is_remote(workdir):
    return [*findings, clock_skew()]
  return [*findings, disk(pathlib.Path(workdir), "place's")]


def read_and_write(workdir: str | pathlib.Path, name: str) -> None:
  """Writes an object, reads it back.

  Raises:
    UserError, OSError: it cannot, or the place returns something else.
  """
  content = secrets.token_bytes(64)
  if storage.is_remote(workdir):
    url = f"{str(workdir).rstrip('/')}/{name}/content"
    storage.write_bytes(url, content)
    read = storage.read_bytes(url)
  else:
    path = pathlib.Path(workdir) / name / "content"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    read = path.read_bytes()
  if read != content:
    raise UserError(f"{workdir} returns other bytes than were written")


def compare_and_swap(workdir: str | pathlib.Path, name: str) -> None:
  """Acquires a lease twice, of which the second must be refused.

  Raises:
    UserError: both are granted.
  """
  location = str(workdir).rstrip("/") + f"/{name}"
  first, second = Leases(location), Leases(location)
  generation = first._read("lease")[1]
  granted = [
    bool(leases._write("lease", {"state": DONE}, generation)) for leases in (first, second)
  ]
  if granted != [True, False]:
    raise UserError(f"{workdir} grants one lease twice: workers there would train one run at once")


def clock_skew() -> HealthCheck:
  """This host's clock against Cloud Storage's."""
  import urllib.request

  try:
    request = urllib.request.Request("https://storage.googleapis.com", method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as answer:
      date = answer.headers["Date"]
  except OSError as error:
    date = getattr(error, "headers", {}).get("Date") if hasattr(error, "headers") else None
  if not date:
    return HealthCheck("clock", True, "not known: storage.googleapis.com did not answer")
  skew = time.time() - parsedate_to_datetime(date).timestamp()
  ok = abs(skew) <= MOST_SKEW_SECONDS
  return HealthCheck("clock", ok, f"{skew:+.0f} s", "" if ok else "sudo timedatectl set-ntp true")


def _remove(workdir: str | pathlib.Path, name: str) -> None:
  try:
    if storage.is_remote(workdir):
      storage.remove_below(f"{str(workdir).rstrip('/')}/{name}")
    else:
      shutil.rmtree(pathlib.Path(workdir) / name, ignore_errors=True)
  except (OSError, ValueError):
    return
