"""What a run is trained on, so that seconds are compared only where machines are of one kind."""

import os
import pathlib
import platform

import jax


def machine(num_devices: int) -> dict[str, str | int]:
  """What a run is trained on: platform, device, num_devices of the run's mesh; cpu and num_cores
  of the host, which on a CPU are the device. Equal for machines of one kind."""
  return {
    "platform": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "num_devices": num_devices,
    "cpu": cpu_name(),
    "num_cores": os.cpu_count() or 0,
  }


def cpu_name(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
  """The processor's name as the system gives it: Linux in a file, others by themselves."""
  if cpuinfo.is_file():
    for line in cpuinfo.read_text(errors="replace").splitlines():
      name, _, value = line.partition(":")
      if name.strip() == "model name":
        return value.strip()
  return platform.processor() or platform.machine()
