"""What libtpu would look up on a TPU host is stated only where there is no TPU."""

import os

import pytest

from moe_parity.aot import libtpu

NAMES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD")


@pytest.mark.parametrize("device, stated", [("", 3), ("/dev/accel*", 0), ("/dev/vfio/[0-9]*", 0)])
def test_a_tpu_host_keeps_its_own_environment(device, stated, monkeypatch):
  monkeypatch.setattr(libtpu.glob, "glob", lambda pattern: [pattern] if pattern == device else [])
  for name in NAMES:
    monkeypatch.setenv(name, "")  # restored at the end
    monkeypatch.delenv(name)
  libtpu.silence_probe()
  assert sum(name in os.environ for name in NAMES) == stated
