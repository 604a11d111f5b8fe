"""Processes of one run notice that one of them is lost."""

import json
import os
import subprocess
import sys

import pytest

from moe_parity.study.workers.peers import LEFT, Peers
from tests.helpers.clock import Clock
from tests.helpers.workers import ROOT, TINY, end, start, steps, wait_until, world


class Store:
  """The key-value store of JAX's coordination service."""

  def __init__(self):
    self.values, self.is_away = {}, False

  def key_value_set(self, key, value, allow_overwrite):
    if self.is_away:
      raise RuntimeError("UNAVAILABLE")
    self.values[key] = value

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


def three():
  clock, store = Clock(), Store()
  peers = [Peers(store, i, 3, lambda line: None, clock) for i in range(3)]
  return clock, store, peers


def test_a_process_that_goes_silent_is_named():
  clock, _, (first, second, third) = three()
  for _ in range(10):
    assert [peer.look() for peer in (first, second, third)] == ["", "", ""]
    clock.now += 5
  assert "process 2 of 3 is lost" not in first.look() + second.look()
  for _ in range(3):
    clock.now += 5
    first.look()
    second.look()
  clock.now += 5
  assert "process 2 of 3 is lost" in first.look()


def test_a_process_that_ends_by_its_own_error_is_missed():
  """Told that it had left, the others waited in a collective for as long as that does."""
  clock, store, (first, second, third) = three()
  for peer in (first, second, third):
    peer.look()
    peer._thread.start()
  third.leave(well=False)
  second.leave()
  assert store.values["moe_parity/alive/2"] != LEFT == store.values["moe_parity/alive/1"]
  first._over.set()


def test_a_process_that_ended_well_is_not_missed():
  clock, store, (first, second, third) = three()
  for peer in (first, second, third):
    peer.look()
  store.values["moe_parity/alive/2"] = LEFT
  for _ in range(10):
    clock.now += 5
    assert first.look() == second.look() == ""


@pytest.mark.parametrize("is_away", [False, True])
def test_a_pause_of_the_whole_machine_is_no_loss(is_away):
  """The first process to go on finds all others where they were before the pause."""
  clock, store, peers = three()
  for peer in (*peers, *peers):
    peer.look()
  clock.now += 600
  store.is_away = is_away
  assert [peer.look() for peer in peers] == ["", "", ""]
  store.is_away = False
  for _ in range(10):
    clock.now += 5
    assert [peer.look() for peer in peers] == ["", "", ""]


def test_a_pause_of_the_first_process_alone_loses_no_other():
  """The beats of all others hung in its store meanwhile."""
  clock, store, peers = three()
  for peer in (*peers, *peers):
    peer.look()
  clock.now += 2
  answer = store.key_value_dir_get

  def answer_late(prefix):
    clock.now += 600
    return answer(prefix)

  store.key_value_dir_get = answer_late
  assert peers[1].look() == ""
  store.key_value_dir_get = answer
  for _ in range(10):
    assert [peer.look() for peer in peers] == ["", "", ""]
    clock.now += 5


def test_a_service_that_never_answers_is_silent():
  """A call to a host that is gone takes as long as its transport waits."""
  clock, store, (_, second, _) = three()
  second.look()

  def wait_in_vain(*args):
    clock.now += 16
    raise RuntimeError("DEADLINE_EXCEEDED")

  store.key_value_set = wait_in_vain
  assert "process 0 of 3 is lost" in second.look()


def test_where_the_service_is_gone_the_first_process_is():
  clock, store, (first, second, third) = three()
  second.look()
  store.is_away = True
  for _ in range(3):
    clock.now += 5
    assert second.look() == ""
  clock.now += 1
  assert "process 0 of 3 is lost" in second.look()


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_one_line(tmp_path):
  """At e810754 the other hung for 68 s and aborted with a C++ stack."""
  run = tmp_path / "s/runs/moe_40-s0"
  words = ["study", "--only=moe_40", f"--workdir={tmp_path}/s", *TINY, "--config.mesh.data=2",
           "--config.budget.batch_multiple=4", "--config.budget.dense_tokens=200000"]  # fmt: skip
  both = [start(tmp_path / "cache", *words, *place) for place in world(2)]
  try:
    wait_until(lambda: len(steps(run)) > 3, *both)
    both[1].kill()
    rc, output = end(both[0])
  finally:
    for process in both:
      process.kill()
  assert rc == 75 and "process 1 of 2 is lost" in output and "Traceback" not in output, output
  record = json.loads((tmp_path / "s/leases/runs/moe_40-s0").read_text())
  assert record["state"] == "stopped"


JOINED = """
import os, sys, time
from moe_parity import startup
from moe_parity.study.workers.stop_signals import StopSignals
number = int(sys.argv[1])
startup.start_jax(f"localhost:{sys.argv[2]}", 2, number)
with StopSignals() as stop:
  stop.join_processes()
  print("joined", flush=True)
  time.sleep(2 if number == 0 else 60)
  os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_the_loss_of_the_first_process_is_no_crash(tmp_path):
  """The other aborted: exit code -6, which no engine takes for a wish to start again."""
  port = world(2)[0][0].rpartition(":")[2]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "MOE_PARITY_CACHE": str(tmp_path)}
  both = [
    subprocess.Popen(
      [sys.executable, "-c", JOINED, str(number), port], cwd=ROOT, env=environment, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    for number in range(2)
  ]  # fmt: skip
  try:
    rc, output = end(both[1])
  finally:
    both[0].kill()
  assert rc == 75 and "Traceback" not in output, output
  assert "process 0" in output.strip().splitlines()[-1] and "start all" in output
