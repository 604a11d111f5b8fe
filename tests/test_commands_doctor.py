"""What `doctor` finds on a machine and at a place, and the way out it names."""

import json

import pytest

from moe_parity import cli
from moe_parity.study.workers import checkup
from moe_parity.study.workers.leases import Leases


def doctor(capsys, *words):
  code = cli.main(["doctor", "--json", *words])
  return code, {f["what"]: f for f in json.loads(capsys.readouterr().out)}


def test_a_machine_that_is_well_is_told_so(capsys, tmp_path):
  code, found = doctor(capsys, f"--workdir={tmp_path}/new")
  assert code == 0 and all(f["ok"] for f in found.values())
  assert "compare-and-swap" in found["place"]["found"] and "jax " in found["jax"]["found"]
  assert not list(tmp_path.iterdir())  # nothing stays


def test_devices_that_others_use_are_not_opened(monkeypatch, capsys):
  import jax

  monkeypatch.setattr(jax, "devices", lambda: 1 / 0)
  cli.main(["doctor", "--skip-devices", "--json"])
  found = [finding["what"] for finding in json.loads(capsys.readouterr().out)]
  assert "jax" in found and "devices" not in found


def test_a_place_that_cannot_be_written_has_a_way_out(capsys, tmp_path):
  (tmp_path / "file").write_text("")
  code, found = doctor(capsys, f"--workdir={tmp_path}/file/study")
  assert code == 2 and not found["place"]["ok"] and found["place"]["mend"]


def test_a_place_that_grants_a_lease_twice_is_found(tmp_path, monkeypatch):
  """As a mounted bucket does."""
  real = Leases._write
  blind = lambda self, key, record, generation: real(  # noqa: E731
    self, key, record, self._read(key)[1]
  )
  monkeypatch.setattr(Leases, "_write", blind)
  (place,) = checkup.study_place(tmp_path)
  assert not place.ok and "grants one lease twice" in place.found


def nvidia_smi(monkeypatch, folder, version):
  """A stand-in that names a driver."""
  program = folder / "nvidia-smi"
  program.write_text(f"#!/bin/sh\necho {version}\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
  "version, mend",
  [("580.65.06", "EXTRA=gpu "), ("535.104", "EXTRA=gpu-cuda12 "), ("470.82", "NVIDIA driver 470")],
)
def test_the_driver_decides_which_jax_to_install(version, mend, tmp_path, monkeypatch):
  nvidia_smi(monkeypatch, tmp_path, version)
  found = checkup.driver()
  assert not found.ok and found.found == version and found.mend.startswith(mend)


@pytest.mark.parametrize("version, ok", [("580.65.06", True), ("535.104", True), ("470.82", False)])
def test_a_newer_driver_runs_an_older_cuda(version, ok, tmp_path, monkeypatch):
  nvidia_smi(monkeypatch, tmp_path, version)
  has_12 = {"jax_cuda12_plugin": object()}
  monkeypatch.setattr(checkup.importlib.util, "find_spec", has_12.get)
  assert checkup.driver().ok == ok


def test_a_gpu_that_jax_does_not_take_is_no_health(tmp_path, monkeypatch):
  nvidia_smi(monkeypatch, tmp_path, "580.65.06")
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  devices = checkup.jax_and_devices()[1]
  assert not devices.ok and "though there is an NVIDIA driver" in devices.found
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # asked for
  assert checkup.jax_and_devices()[1].ok


def test_a_full_disk_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(checkup, "LEAST_DISK_GB", 1e9)
  found = checkup.disk(tmp_path / "not" / "yet", "cache")
  assert not found.ok and "MOE_PARITY_CACHE" in found.mend
