"""What telemetry writes beside metrics.jsonl."""

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from moe_parity.training.telemetry import Telemetry


def events(folder) -> list[Event]:
  """Of all event files: records of an 8-byte length, 4 bytes of checksum, the event, 4 more."""
  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      found.append(Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


@pytest.mark.parametrize("finished", [0, 7])
def test_tensorboard_forgets_steps_that_are_made_again(tmp_path, finished):
  telemetry = Telemetry(tmp_path, from_step=finished)
  assert not (tmp_path / "tensorboard").exists()
  telemetry.write({"kind": "train", "step": finished + 1, "loss": 2.5})
  telemetry.close()
  written = events(tmp_path / "tensorboard")
  starts = [e.step for e in written if e.session_log.status == SessionLog.START]
  assert starts == [finished + 1]
  scalars = [(e.step, v.tag, v.simple_value) for e in written for v in e.summary.value]
  assert scalars == [(finished + 1, "train/loss", 2.5)]
