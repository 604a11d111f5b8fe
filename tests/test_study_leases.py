"""Who may train a run: one worker at a time, the dead make room, the sleeping give way."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from moe_parity.errors import UserError
from moe_parity.study.workers.leases import ClaimLostError, Claims


def seize(claims, key, **record):
  """Puts a record as another worker would have left it."""
  now = time.time()
  record = {"state": "running", "host": "elsewhere", "pid": 7, "since": now, "beat": now} | record
  claims._write(key, record, claims._read(key)[1])


@pytest.fixture
def claims(tmp_path):
  return Claims(tmp_path / "claims")


def test_of_many_workers_that_want_a_run_at_once_exactly_one_gets_it(tmp_path):
  workers = [Claims(tmp_path / "claims") for _ in range(8)]
  for run in (f"runs/arm-s{i}" for i in range(12)):
    start, won = threading.Barrier(len(workers)), []

    def want(worker, run=run, start=start, won=won):
      start.wait()
      if claim := worker.take(run):
        won.append(claim)

    threads = [threading.Thread(target=want, args=(worker,)) for worker in workers]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(won) == 1
    won[0].release("done")


def test_a_live_worker_keeps_its_run_and_a_silent_one_loses_it(claims):
  seize(claims, "a", beat=time.time() - 299)
  assert claims.take("a") is None
  seize(claims, "a", beat=time.time() - 301)
  taken = claims.take("a")
  assert "elsewhere:7 was last heard of 301 s ago" in taken.took_over
  taken.release("done")


def test_a_worker_of_this_host_whose_process_is_gone_is_dead_at_once(claims):
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  seize(claims, "a", host=claims.host, pid=gone.pid)
  assert "is gone" in claims.take("a").took_over
  seize(claims, "b", host=claims.host, pid=os.getppid())  # alive
  assert claims.take("b") is None


def test_a_process_number_used_again_after_a_restart_is_not_taken_for_the_old_worker(claims):
  seize(claims, "a", host=claims.host, pid=claims.pid, since=claims.started - 1)
  assert "is gone" in claims.take("a").took_over


def test_a_beat_keeps_a_claim_fresh(tmp_path):
  claims = Claims(tmp_path, stale_seconds=0.6, beat_seconds=0.1)
  other = Claims(tmp_path, stale_seconds=0.6, beat_seconds=0.1)
  mine = claims.take("a")
  time.sleep(1.0)
  assert other.take("a") is None
  mine.release("stopped")
  assert other.take("a").took_over == ""


def test_a_worker_that_slept_too_long_notices_and_leaves_the_record_alone(tmp_path):
  claims = Claims(tmp_path, stale_seconds=0.5, beat_seconds=0.2)
  mine = claims.take("a")
  mine.check()
  seize(claims, "a", host="thief")
  time.sleep(0.5)
  with pytest.raises(ClaimLostError, match="took this run over"):
    mine.check()
  mine.release("done")
  assert claims.look("a")["host"] == "thief"


def test_a_failed_run_is_tried_once_by_every_start_of_a_worker(tmp_path):
  first, other = Claims(tmp_path), Claims(tmp_path)
  first.take("a").release("failed", RuntimeError("out of\nmemory"))
  assert first.look("a")["error"] == "out of memory" and first.look("a")["kind"] == "RuntimeError"
  assert first.take("a") is None and other.take("a") is None
  assert Claims(tmp_path).take("a") is not None


def test_the_same_holds_in_a_store_that_is_no_folder():
  claims = Claims("memory://study/claims")
  mine = claims.take("runs/a")
  assert claims.take("runs/a") is None
  mine.release("done")
  assert json.dumps(claims.look("runs/a")) and claims.look("runs/b") == {}


@pytest.mark.parametrize(
  "place, kwargs, words",
  [
    ("nowhere://x", {}, "cannot be opened"),
    ("memory://x", {"stale_seconds": 30}, "use more than 40"),
  ],
)
def test_a_place_or_a_time_that_cannot_work_is_refused(place, kwargs, words):
  with pytest.raises(UserError, match=words) as caught:
    Claims(place, **kwargs)
  assert "\n" not in str(caught.value)
