import jax
import pytest

from moe_parity import config
from moe_parity.commands.common import ROOT, idle_devices


@pytest.mark.parametrize(
  "num_devices, data, note",
  [(2, 1, "note: 1 of 2 devices stay idle; --config.mesh.data=-1"), (2, -1, ""), (1, 1, "")],
)
def test_devices_that_a_run_does_not_use_are_said(monkeypatch, num_devices, data, note):
  monkeypatch.setattr(jax, "device_count", lambda: num_devices)
  loaded = config.load(f"{ROOT}/configs/demo.py", [f"--config.mesh.data={data}"])
  said = idle_devices(loaded)
  assert said.startswith(note) and bool(said) == bool(note)
