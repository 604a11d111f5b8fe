"""Power of a run: measured by counters, or stated, or not known and said to be so."""

import sys
import types

import pytest

from moe_parity.training import power


def rapl(folder, micro_joules, wrap=10**6, name="package-0", number=0):
  zone = folder / f"intel-rapl:{number}"
  zone.mkdir(exist_ok=True)
  (zone / "name").write_text(f"{name}\n")
  (zone / "energy_uj").write_text(f"{micro_joules}\n")
  (zone / "max_energy_range_uj").write_text(f"{wrap}\n")


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(power.time, "monotonic", lambda: now[0])
  return now


def test_packages_are_added_up_and_a_counter_that_wrapped_too(tmp_path, monkeypatch, clock):
  monkeypatch.setattr(power, "RAPL", tmp_path)
  rapl(tmp_path, 900_000)
  rapl(tmp_path, 0, number=1, name="package-1")
  rapl(tmp_path, 5, number=2, name="psys")  # the whole board, packages included
  meter = power.power_meter("cpu", 1)
  meter.update()
  clock[0] += 2.0
  rapl(tmp_path, 100_000)  # began anew at 1,000,000: 0.2 J
  rapl(tmp_path, 400_000, number=1, name="package-1")  # 0.4 J
  meter.update()
  found = meter.result(stated_watts=65.0, num_devices=1)
  assert found["watts"] == pytest.approx(0.3) and "2 CPU package(s)" in found["how"]


@pytest.mark.parametrize("damage", ["none", "unreadable"])
def test_without_a_counter_nothing_is_invented(tmp_path, monkeypatch, damage):
  monkeypatch.setattr(power, "RAPL", tmp_path)
  if damage == "unreadable":
    rapl(tmp_path, 5)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
  meter = power.power_meter("cpu", 1)
  meter.update()
  found = meter.result(0.0, 1)
  assert found["watts"] is None and found["how"].startswith("not measured: ")
  stated = meter.result(65.0, 4)
  assert stated == {"watts": 260.0, "how": "stated: 4 x 65 W (train.device_watts)"}


def test_a_counter_that_fails_later_leaves_no_number(tmp_path, monkeypatch, clock):
  monkeypatch.setattr(power, "RAPL", tmp_path)
  rapl(tmp_path, 5)
  meter = power.power_meter("cpu", 1)
  meter.update()
  (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
  clock[0] += 1
  meter.update()
  assert meter.result(0.0, 1)["watts"] is None


def test_gpus_are_those_that_the_environment_shows(monkeypatch, clock):
  joules = {2: 1000.0, 5: 7000.0}
  fake = types.SimpleNamespace(
    nvmlInit=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetTotalEnergyConsumption=lambda index: 1e3 * joules[index],
  )
  monkeypatch.setitem(sys.modules, "pynvml", fake)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
  meter = power.power_meter("gpu", 2)
  meter.update()
  clock[0] += 4.0
  joules[2], joules[5] = 1400.0, 8000.0
  meter.update()
  assert meter.result(0.0, 2) == {"watts": 350.0, "how": "NVML of 2 GPU(s)"}


@pytest.mark.parametrize("platform, words", [("gpu", "nvidia-ml-py"), ("tpu", "no counter")])
def test_a_missing_library_or_counter_is_the_reason(monkeypatch, platform, words):
  monkeypatch.setitem(sys.modules, "pynvml", None)
  assert words in power.power_meter(platform, 1).result(0.0, 1)["how"]
  assert "several processes" in power.power_meter(platform, 8, 2).result(0.0, 8)["how"]
