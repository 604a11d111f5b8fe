"""What telemetry writes, and how a run continues from the logs that a checkpoint holds."""

import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from moe_parity.training.telemetry import Telemetry

LINES = [{"kind": "train", "step": step, "loss": 3 - step / 8, "seconds": step / 4}
         for step in range(1, 8)]  # fmt: skip


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


def steps(folder) -> list[int]:
  return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def killed(tmp_path):
  """(folder of a run that logged 7 steps, what its checkpoint of step 5 holds)."""
  telemetry = Telemetry(tmp_path, from_step=0)
  assert not (tmp_path / "tensorboard").exists()
  for line in LINES:
    telemetry.write(line)
    telemetry.write_routing(line["step"], line["step"] * 10, np.full((2, 3), 1 / line["step"]))
    if line["step"] == 5:
      logs = telemetry.snapshot()
  telemetry.snapshot()
  telemetry.close()
  return tmp_path, logs


def resumed(folder, logs, from_step=5):
  """The warnings of a run that resumes and logs the steps that are left."""
  warnings = []
  telemetry = Telemetry(folder, from_step=from_step, logs=logs, warn=warnings.append)
  for line in LINES[from_step:]:
    telemetry.write(line)
    telemetry.write_routing(line["step"], line["step"] * 10, np.full((2, 3), 1 / line["step"]))
  telemetry.snapshot()
  telemetry.close()
  telemetry.close()  # at the end of a run, and as its context ends
  return warnings


def test_a_resumed_run_has_each_step_and_event_once(killed):
  """At e810754 events that were not flushed before a kill were lost."""
  folder, logs = killed
  for path in (folder / "tensorboard").iterdir():
    path.write_bytes(path.read_bytes()[:100])  # what a kill leaves of them
  assert resumed(folder, logs) == []
  assert steps(folder) == list(range(1, 8))
  written = events(folder / "tensorboard")
  assert [e.step for e in written if e.session_log.status == SessionLog.START] == [1]
  losses = [(e.step, v.simple_value) for e in written for v in e.summary.value
            if v.tag == "train/loss"]  # fmt: skip
  assert losses == [(line["step"], line["loss"]) for line in LINES]
  with np.load(folder / "routing.npz") as routing:
    assert routing["steps"].tolist() == list(range(1, 8)) and routing["loads"].shape == (7, 2, 3)


def change(text: str, damage: str) -> str:
  lines = text.splitlines(keepends=True)
  match damage:
    case "lost":
      return ""
    case "cut":
      return "".join(lines[:3]) + lines[3][:9]
    case "flipped":
      return text.replace("2.75", "2.95", 1)
    case "blank":
      return "\n".join(["", *lines])
    case "nul":
      return text.replace(lines[1], "\0" * len(lines[1]), 1)
    case "doubled":
      return "".join([*lines[:2], *lines[1:]])


@pytest.mark.parametrize(
  "damage, told",
  [
    ("lost", "5 of its 5"), ("cut", "2 of its 5"), ("flipped", "1 of its 5"),
    ("nul", "2 of its 5"), ("doubled", "had 1 strange lines"), ("blank", ""),
  ],
)  # fmt: skip
def test_lines_lost_before_a_checkpoint_are_named(damage, told, killed):
  """At e810754 the certificate passed with 140 steps missing."""
  folder, logs = killed
  path = folder / "metrics.jsonl"
  path.write_text(change(path.read_text(), damage))
  warnings = resumed(folder, logs)
  assert steps(folder) == list(range(1, 8))
  assert len(warnings) == (1 if told else 0) and told in "".join(warnings)


@pytest.mark.parametrize("damage", ["cut", "lost", "other"])
def test_expert_loads_are_restored_from_the_checkpoint(damage, killed):
  folder, logs = killed
  path = folder / "routing.npz"
  before = path.read_bytes()
  if damage == "lost":
    path.unlink()
  elif damage == "cut":
    path.write_bytes(before[:50])
  else:
    np.savez(path, steps=np.arange(1, 6), num_tokens=np.arange(5), loads=np.zeros((5, 2, 3)))
  warnings = resumed(folder, logs)
  assert len(warnings) == 1 and "routing.npz was lost or damaged; restored" in warnings[0]
  with np.load(path) as found:
    assert found["num_tokens"].tolist() == [10 * step for step in range(1, 8)]


def test_expert_loads_are_on_disk_before_the_next_step_is(killed):
  """A run that is killed again at once has what its checkpoint has."""
  folder, logs = killed
  (folder / "routing.npz").unlink()
  telemetry = Telemetry(folder, from_step=5, logs=logs, warn=lambda line: None)
  with np.load(folder / "routing.npz") as found:
    assert found["steps"].tolist() == [1, 2, 3, 4, 5]
  telemetry.close()


def test_a_checkpoint_without_logs_keeps_what_is_whole(killed):
  """Those of earlier versions hold none."""
  folder, _ = killed
  assert resumed(folder, {}) == [] and steps(folder) == list(range(1, 8))
  path = folder / "metrics.jsonl"
  path.write_text(path.read_text().replace('"step": 2,', '"step": ,'))
  warnings = resumed(folder, {})
  assert len(warnings) == 1 and "1 lines before step 5 are lost" in warnings[0]
  assert steps(folder) == [1, 3, 4, 5, 6, 7]


def test_a_run_killed_before_its_first_checkpoint_starts_anew(killed):
  folder, _ = killed
  assert resumed(folder, {}, from_step=0) == []
  assert steps(folder) == list(range(1, 8))
