"""A run that takes no step any more is noticed, and a slow one is left alone."""

import threading
import time

from moe_parity.study.workers.watchdog import Watchdog
from tests.helpers.clock import Clock


def test_ten_minutes_without_a_step_are_too_many():
  clock = Clock()
  dog = Watchdog(lambda why: None, clock=clock)
  clock.now = 600
  assert dog.why() == ""
  clock.now = 601
  assert dog.why() == "no step for 601 s, where 600 s are the most"


def test_slow_steps_are_given_twenty_of_their_medians():
  clock = Clock()
  dog = Watchdog(lambda why: None, clock=clock)
  for _ in range(5):
    clock.now += 100
    dog.step()
  assert dog.limit_seconds() == 2000
  clock.now += 2000
  assert dog.why() == ""
  clock.now += 1
  assert dog.why() != ""


def test_a_validation_may_take_longer_and_its_time_is_no_step():
  clock = Clock()
  dog = Watchdog(lambda why: None, clock=clock)
  with dog.pausing():
    clock.now += 3000
    assert dog.why() == ""
  assert dog.why() == ""
  clock.now += 601
  assert dog.why() != ""


def test_a_stuck_run_is_told_with_the_stacks_of_its_threads(capfd):
  clock, stopped = Clock(), threading.Event()
  dog = Watchdog(lambda why: stopped.set(), clock=clock)
  with dog.watching(seconds=0.01):
    while not stopped.wait(0.02):
      clock.now += 20
  assert 600 < clock.now < 6000
  assert "test_a_stuck_run_is_told" in capfd.readouterr().err


def test_a_pause_of_the_whole_machine_is_not_the_run_s():
  clock, stopped = Clock(), threading.Event()
  dog = Watchdog(lambda why: stopped.set(), clock=clock)
  with dog.watching(seconds=0.01):
    time.sleep(0.1)  # the thread waits
    clock.now += 7200
    assert not stopped.wait(0.5) and dog.why() == ""
    clock.now += 50
    time.sleep(0.1)
    assert dog.why() == "" and dog.limit_seconds() == 600
    while not stopped.wait(0.02):
      clock.now += 20
  assert 7200 + 600 < clock.now
