"""What a run draws from the mains while it trains, where the machine can say so.

A CPU's counters (RAPL, the packages under /sys/class/powercap; often readable by root alone) count
all that the machine does, not this run alone. An NVIDIA GPU's counter (NVML, package nvidia-ml-py)
counts the board. Where neither can be read, `train.device_watts` may state the power of a device.
Nothing is guessed: without any of them there is no number, and the reason is written down.
"""

import os
import pathlib
import time
from collections.abc import Callable, Sequence

RAPL = pathlib.Path("/sys/class/powercap")
Counter = tuple[Callable[[], float], float]  # joules by now; joules at which it begins anew, or 0


class PowerMeter:
  """Mean power from the first `update` to the last, of one process's devices.

  Raises nothing: a counter that fails is one that cannot be read.
  """

  def __init__(self, counters: Sequence[Counter], how: str, why_not: str = ""):
    """Args:
    how: what is measured, in words. why_not: why there is no counter.
    """
    self._counters, self._how, self._why_not = list(counters), how, why_not
    self._last: list[float] = []
    self._joules = self._seconds = 0.0
    self._time = 0.0

  def update(self) -> None:
    """Reads the counters; often enough that none begins anew twice in between."""
    if not self._counters:
      return
    try:
      now, values = time.monotonic(), [read() for read, _ in self._counters]
    except Exception as error:  # noqa: BLE001 - a driver's own errors
      self._counters, self._why_not = [], f"{self._how} could not be read ({error})"
      return
    if self._last:
      for value, last, (_, wrap) in zip(values, self._last, self._counters, strict=True):
        self._joules += value - last + (wrap if value < last else 0.0)
      self._seconds += now - self._time
    self._last, self._time = values, now

  def result(self, stated_watts: float, num_devices: int) -> dict[str, float | str | None]:
    """watts (None: not known) and how they are known, or why not.

    Args:
      stated_watts: of a device, 0 if not stated; a measurement goes before it.
      num_devices: of the run.
    """
    if self._counters and self._seconds > 0:
      return {"watts": self._joules / self._seconds, "how": self._how}
    if stated_watts:
      words = f"stated: {num_devices} x {stated_watts:g} W (train.device_watts)"
      return {"watts": stated_watts * num_devices, "how": words}
    why = self._why_not or "no step was taken by the process that finished the run"
    return {"watts": None, "how": f"not measured: {why}"}


def power_meter(platform: str, num_devices: int, num_processes: int = 1) -> PowerMeter:
  """The meter of a platform (cpu, gpu or tpu) for a run on `num_devices`."""
  if num_processes > 1:
    return PowerMeter([], "", "several processes; none sees the others' counters")
  if platform == "cpu":
    return _rapl(RAPL)
  if platform == "gpu":
    return _nvml(num_devices)
  return PowerMeter([], "", f"{platform} devices have no counter that a program can read")


def _rapl(root: pathlib.Path) -> PowerMeter:
  """The sum of the processor packages, other work of the machine included."""
  zones = [p for p in sorted(root.glob("intel-rapl:*")) if p.name.count(":") == 1]
  counters: list[Counter] = []
  for zone in zones:
    try:
      if not (zone / "name").read_text().startswith("package"):
        continue
      path, wrap = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()) / 1e6
      int(path.read_text())
    except (OSError, ValueError) as error:
      return PowerMeter([], "", f"{zone / 'energy_uj'} cannot be read ({error.__class__.__name__})")
    counters.append((lambda path=path: int(path.read_text()) / 1e6, wrap))
  if not counters:
    return PowerMeter([], "", f"this CPU shows no energy counter ({root} has no package)")
  how = f"RAPL of {len(counters)} CPU package(s), other work of the machine included"
  return PowerMeter(counters, how)


def _nvml(num_devices: int) -> PowerMeter:
  """The sum of the boards of the first GPUs of this machine."""
  try:
    import pynvml
  except ImportError:
    return PowerMeter([], "", "the package nvidia-ml-py is not installed")
  try:
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in _visible(num_devices)]
  except Exception as error:  # noqa: BLE001 - NVMLError exists only where the package is
    return PowerMeter([], "", f"NVML cannot be used ({error})")
  energy = pynvml.nvmlDeviceGetTotalEnergyConsumption  # mJ since the driver was loaded
  counters = [(lambda h=handle: energy(h) / 1e3, 0.0) for handle in handles]
  return PowerMeter(counters, f"NVML of {num_devices} GPU(s)")


def _visible(num_devices: int) -> list[int]:
  """NVML's numbers of the run's GPUs; $CUDA_VISIBLE_DEVICES renumbers them for JAX alone.

  Raises:
    ValueError: it names GPUs otherwise than by number, or too few.
  """
  text = os.environ.get("CUDA_VISIBLE_DEVICES", "")
  numbers = [int(part) for part in text.split(",")] if text else list(range(num_devices))
  if len(numbers) < num_devices:
    raise ValueError(f"CUDA_VISIBLE_DEVICES={text} shows fewer GPUs than {num_devices}")
  return numbers[:num_devices]
