"""Who may train a run: one worker at a time, the dead make room, the sleeping give way."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from moe_parity.errors import UserError
from moe_parity.study.workers.identity import Process, this_process, worker_name
from moe_parity.study.workers.leases import LeaseLostError, Leases, SameNameError

ELSEWHERE = Process("elsewhere", 7, "another boot", "pid:[1]", "123")


class Clock:
  """Seconds that pass when a test says so."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def leases(tmp_path, clock):
  return Leases(tmp_path / "leases", clock=clock)


def another(tmp_path, process=ELSEWHERE, **kwargs):
  """A worker of another process on the same leases, which beats only where a test says so."""
  return Leases(
    tmp_path / "leases", process=process, heartbeat_seconds=100, stale_seconds=300, **kwargs
  )


def put(leases, key, record):
  """Puts a record in place of the one there is, as a later owner does."""
  leases._write(key, record, leases._read(key)[1])


def test_of_many_workers_that_want_a_run_one_gets_it(tmp_path):
  workers = [Leases(tmp_path / "leases") for _ in range(8)]
  for run in (f"runs/arm-s{i}" for i in range(12)):
    start, won = threading.Barrier(len(workers)), []

    def want(worker, run=run, start=start, won=won):
      start.wait()
      if lease := worker.acquire(run):
        won.append(lease)

    threads = [threading.Thread(target=want, args=(worker,)) for worker in workers]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(won) == 1
    won[0].release("done")


def test_a_silent_worker_loses_its_run_when_stale(tmp_path, leases, clock):
  another(tmp_path).acquire("a")
  assert leases.acquire("a") is None
  clock.now += 300
  assert leases.acquire("a") is None
  clock.now += 1
  assert leases.acquire("a").took_over == "worker elsewhere:7 gave no sign of life for 301 s"


def test_every_heartbeat_starts_the_watch_anew(tmp_path, leases, clock):
  theirs = another(tmp_path).acquire("a")
  for _ in range(5):
    assert leases.acquire("a") is None
    clock.now += 299
    theirs._renew({})
  assert leases.acquire("a") is None


def test_clocks_that_differ_by_hours_change_nothing(tmp_path, leases, clock):
  """What a record of e810754 says of times is never compared with this host's clock."""
  for beat in (0.0, 4e9):
    old = {"state": "running", "host": "elsewhere", "pid": 7, "since": beat, "beat": beat}
    put(leases, f"run of {beat}", old)
    assert leases.acquire(f"run of {beat}") is None
    clock.now += 301
    assert leases.acquire(f"run of {beat}") is not None


def test_a_process_of_this_host_that_is_gone_is_stale_at_once(tmp_path, leases):
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
  fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
  process = dataclasses.replace(this_process(), pid=child.pid, started=fields[19])
  another(tmp_path, process).acquire("a")
  assert leases.acquire("a") is None  # it lives
  child.communicate(b"\n")
  assert "is gone" in leases.acquire("a").took_over


@pytest.mark.parametrize(
  "changed, gone",
  [
    ({"started": "1"}, True),  # a number used again
    ({"pid_namespace": "pid:[7]"}, False),  # another container of this host
    ({"boot": "another"}, False),  # a host of the same name
    ({"started": ""}, False),  # not known
    ({"pid_namespace": "pid:[7]", "started": "1"}, False),  # its number is another's here
    ({"boot": "another", "started": "1"}, False),
  ],
)
def test_equal_host_and_pid_do_not_make_a_process(tmp_path, leases, changed, gone):
  another(tmp_path, dataclasses.replace(this_process(), **changed)).acquire("a")
  assert (leases.acquire("a") is not None) == gone


def test_a_worker_takes_its_former_life_over_at_once(tmp_path):
  another(tmp_path, worker="tpu-3").acquire("a")
  another(tmp_path, worker="tpu-4").acquire("b")
  again = another(tmp_path, worker="tpu-3")
  assert again.acquire("a").took_over == "worker tpu-3 was this worker's former life"
  assert again.acquire("b") is None
  assert another(tmp_path).acquire("a") is None  # workers without a name are nobody's life


def test_two_living_workers_of_one_name_are_told(tmp_path):
  first = another(tmp_path, worker="w")
  mine = first.acquire("a")
  second = another(tmp_path, worker="w")
  second.acquire("a")
  with pytest.raises(SameNameError, match="--worker name of its own"):
    mine.check()
  assert first.acquire("a") is None  # no quarrel: only records from before its start are former


def test_a_worker_that_slept_finds_its_run_taken_before_writing(tmp_path, leases, clock):
  mine = leases.acquire("a")
  mine.check()
  sees, theirs = Clock(), None
  thief = another(tmp_path, clock=sees)
  sees.now += 301
  assert (theirs := thief.acquire("a")) and theirs.took_over
  with pytest.raises(LeaseLostError, match="took this run over"):
    mine.check()
  mine.release("done")
  assert leases.get("a")["host"] == "elsewhere" and leases.get("a")["state"] == "running"


def test_a_heartbeat_does_not_win_a_lost_run_back(tmp_path, leases):
  mine = leases.acquire("a")
  put(leases, "a", {"state": "running", "token": "another's"})
  mine._renew({})
  assert leases.get("a")["token"] == "another's"
  with pytest.raises(LeaseLostError):
    mine.check()


def test_a_renewal_whose_answer_was_lost_costs_nothing(leases):
  mine = leases.acquire("a")
  put(leases, "a", mine._record | {"heartbeat": 1})  # written, but the worker did not hear so
  mine._renew({})
  mine.check()
  assert leases.get("a")["heartbeat"] == 2


def test_an_unreadable_lease_counts_until_it_may_be_stale(leases, clock, monkeypatch):
  mine = leases.acquire("a")

  def away(key):
    raise OSError("storage is away")

  monkeypatch.setattr(leases, "_read", away)
  clock.now += 200
  mine.check()
  clock.now += 61
  with pytest.raises(LeaseLostError, match="could not be read for 261 s"):
    mine.check()
  mine.release("stopped")


def test_a_damaged_record_is_somebodys_until_it_is_stale(leases, clock, tmp_path):
  path = tmp_path / "leases" / "runs" / "a"
  path.parent.mkdir(parents=True)
  for text in ("{", "[]", '{"state": 3}', "\udcff".encode("utf-8", "surrogateescape")):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert leases.acquire("runs/a") is None
  clock.now += 301
  assert leases.acquire("runs/a") is not None


def test_a_failed_run_is_tried_once_by_every_start(tmp_path):
  first, other = Leases(tmp_path), Leases(tmp_path)
  first.acquire("a").release("failed", RuntimeError("out of\nmemory"))
  assert first.get("a")["error"] == "out of memory" and first.get("a")["kind"] == "RuntimeError"
  assert first.acquire("a") is None and other.acquire("a") is None
  assert Leases(tmp_path).acquire("a") is not None


def test_all_leases_are_released_at_once(leases):
  for key in "ab":
    leases.acquire(key)
  leases.release_all("stopped")
  assert not leases.held and {leases.get(key)["state"] for key in "ab"} == {"stopped"}


def test_a_store_that_is_no_folder_does_as_well():
  leases = Leases("memory://study/leases")
  mine = leases.acquire("runs/a")
  assert leases.acquire("runs/a") is None
  mine.release("done")
  assert json.dumps(leases.get("runs/a")) and leases.get("runs/b") == {}


@pytest.mark.parametrize("name", ["a b", "50%20", "x#y", "what?", "ä"])
def test_a_folder_of_any_name_holds_leases(tmp_path, name):
  Leases(tmp_path / name).acquire("runs/a").release("done")
  assert (tmp_path / name / "runs" / "a").is_file()


@pytest.mark.parametrize(
  "location, kwargs, words",
  [
    ("nowhere://x", {}, "cannot be opened"),
    ("memory://x", {"stale_seconds": 30}, "use more than 40"),
  ],
)
def test_a_location_or_a_time_that_cannot_work_is_refused(location, kwargs, words):
  with pytest.raises(UserError, match=words) as caught:
    Leases(location, **kwargs)
  assert "\n" not in str(caught.value)


def test_engines_name_their_workers():
  assert worker_name({}) == ""
  assert worker_name({"SLURM_ARRAY_JOB_ID": "81"}) == ""
  assert worker_name({"SLURM_ARRAY_JOB_ID": "81", "SLURM_ARRAY_TASK_ID": "3"}) == "81-3"
  assert worker_name({"JOBSET_NAME": "study-2", "JOB_INDEX": "0"}) == "study-2-0"
  assert worker_name({"SKYPILOT_TASK_ID": "sky-1_task-0"}) == "sky-1_task-0"
  assert worker_name({"TPU_NAME": "slice-1"}) == "slice-1"


def test_this_process_is_not_gone():
  me = this_process()
  assert me.pid == os.getpid() and me.boot and me.pid_namespace and me.started
  assert not me.is_gone()
