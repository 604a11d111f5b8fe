"""Checkpoints by time."""

import pytest

from moe_parity.training.save_clock import SaveClock


def test_a_checkpoint_is_due_when_its_minutes_have_passed():
  """At e810754 saves went by steps only."""
  now = [100.0]
  clock = SaveClock(2, lambda: now[0])
  assert not clock.is_due(1)
  now[0] += 119
  assert not clock.is_due(2)
  now[0] += 1
  assert clock.is_due(3) and clock.is_due(4)
  clock.saved()
  assert not clock.is_due(5)


@pytest.mark.parametrize("late", [True, False])
def test_several_processes_ask_the_first_and_rarely(late, monkeypatch):
  asked = []

  def answer(message):
    asked.append(message)
    return b"save" if late else None

  monkeypatch.setattr("jax.process_count", lambda: 2)
  monkeypatch.setattr("moe_parity.sharding.multihost.broadcast_bytes", answer)
  clock = SaveClock(1, lambda: 0.0)
  assert [step for step in range(1, 40) if clock.is_due(step)] == ([16, 32] if late else [])
  assert asked == [None, None]


def test_without_minutes_only_steps_decide():
  now = [0.0]
  clock = SaveClock(0, lambda: now[0])
  now[0] = 1e9
  assert not clock.is_due(1)
