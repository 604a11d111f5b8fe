"""What a worker does when its engine tells it to go, with real processes."""

import json
import pathlib
import signal

import pytest

from moe_parity.errors import Stopped
from moe_parity.study.workers.stop_signals import StopSignals
from tests.helpers.workers import TINY, cpu_seconds, end, start, steps, wait_until, world


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


def checkpoints(folder) -> list[int]:
  return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_within_a_step_with_a_checkpoint(number, code, cache, tmp_path):
  """At e810754 SIGTERM killed: no checkpoint, -15."""
  run = tmp_path / "run"
  train = ["train", "--arm=moe_40", f"--workdir={run}", *TINY]
  process = start(cache, *train)
  wait_until(lambda: len(steps(run)) > 3, process)
  before = cpu_seconds(process)
  process.send_signal(number)
  rc, output = end(process)
  assert (rc, output.count("Traceback")) == (code, 0), output
  assert cpu_seconds(process) - before < 10  # by the clock on a machine that does nothing else
  (saved,) = checkpoints(run)
  assert f"stopped with a checkpoint of step {saved} of" in output
  assert steps(run) == list(range(1, saved + 1))
  assert json.loads((run / "lease/run").read_text())["state"] == "stopped"
  if number == signal.SIGTERM:
    assert end(start(cache, *train))[0] == 0
    logged = steps(run)
    assert logged == list(range(1, logged[-1] + 1)) and (run / "result.json").exists()


def test_a_signal_while_a_step_is_compiled_ends_with_75(tmp_path):
  """Threads of libraries aborted the interpreter's way out: SIGABRT, which no engine restarts."""
  run, empty = tmp_path / "run", str(tmp_path / "cache")  # so that the step must be compiled
  words = ["train", "--arm=moe_40", f"--workdir={run}", *TINY]
  process = start(empty, *words, MOE_PARITY_CACHE=empty)
  wait_until((run / "data.json").exists, process)
  process.send_signal(signal.SIGTERM)
  rc, output = end(process)
  assert rc == 75 and "stopped by SIGTERM" in output and not steps(run), output


def test_a_study_that_is_stopped_resumes_its_own_run(cache, tmp_path):
  study = ["study", "--only=moe_40", f"--workdir={tmp_path}/s", *TINY, "--worker=w-1"]
  run = tmp_path / "s/runs/moe_40-s0"
  first = start(cache, *study)
  wait_until(lambda: len(steps(run)) > 3, first)
  first.send_signal(signal.SIGTERM)
  rc, output = end(first)
  assert rc == 75 and "Traceback" not in output, output
  assert json.loads((tmp_path / "s/leases/runs/moe_40-s0").read_text())["state"] == "stopped"
  second = start(cache, *study)
  wait_until(lambda: len(steps(run)) > checkpoints(run)[0] + 3, second)
  second.kill()  # and another host: only the name tells that the lease is its own
  second.wait()
  path = tmp_path / "s/leases/runs/moe_40-s0"
  record = json.loads(path.read_text()) | {"boot": "another", "host": "another"}
  assert record["state"] == "running"
  path.write_text(json.dumps(record))
  rc, output = end(start(cache, *study))
  assert rc == 0 and "former life; taking its run over" in " ".join(output.split()), output
  logged = steps(run)
  assert logged == list(range(1, logged[-1] + 1)) and (run / "result.json").exists()


def test_a_woken_worker_writes_nothing_into_a_run_taken_over(cache, tmp_path):
  """At e810754 it rewrote result, ledger and certificate, or left an old checkpoint."""
  run = tmp_path / "run"
  train = ["train", "--arm=moe_40", f"--workdir={run}", *TINY]
  sleeper = start(cache, *train, "--worker=w")
  wait_until(lambda: len(steps(run)) > 3, sleeper)
  sleeper.send_signal(signal.SIGSTOP)
  assert end(start(cache, *train, "--worker=w"))[0] == 0
  before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*") if p.is_file()}
  sleeper.send_signal(signal.SIGCONT)
  rc, output = end(sleeper)
  assert rc == 2 and "error: run: another worker named 'w' took this run over" in output
  after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*") if p.is_file()}
  changed = {p for p in after if after[p] != before.get(p)} | (before.keys() - after.keys())
  assert not [p for p in changed if "tensorboard" not in p.parts]


def test_two_processes_stop_after_the_same_step(cache, tmp_path):
  """At e810754 SIGTERM did nothing to several processes."""
  run = tmp_path / "run"
  train = ["train", "--arm=moe_40", f"--workdir={run}", *TINY, "--config.mesh.data=2",
           "--config.budget.batch_multiple=4", "--config.budget.dense_tokens=200000"]  # fmt: skip
  both = [start(cache, *train, *place) for place in world(2)]
  try:
    wait_until(lambda: len(steps(run)) > 3, *both)
    both[1].send_signal(signal.SIGTERM)
    ends = [end(process) for process in both]
  finally:
    for process in both:
      process.kill()
  assert [rc for rc, _ in ends] == [75, 75], ends
  (saved,) = checkpoints(run)
  assert all(f"stopped with a checkpoint of step {saved} of" in output for _, output in ends)


def test_a_signal_outside_of_the_loop_stops_at_once():
  with pytest.raises(Stopped) as stopped, StopSignals():
    signal.raise_signal(signal.SIGUSR1)
    raise AssertionError("went on")
  assert stopped.value.code == 75
  with pytest.raises(Stopped) as stopped, StopSignals():
    signal.raise_signal(signal.SIGINT)
  assert stopped.value.code == 130


@pytest.mark.parametrize(
  "number, code", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_within_the_loop_is_asked_for(number, code):
  before = signal.getsignal(number)
  with StopSignals() as stop, stop.stepping():
    assert not stop.should_stop()
    signal.raise_signal(number)
    assert stop.should_stop() and stop.code == code
  assert signal.getsignal(number) is before


SECOND = """
import signal, sys, threading, time
from moe_parity.study.workers.stop_signals import StopSignals
with StopSignals() as stop, stop.stepping():
  stop.release = lambda: print("released", flush=True)
  print("ready", flush=True)
  for _ in range(2):
    signal.raise_signal(signal.SIGTERM)
  time.sleep(900)
"""


def test_a_second_signal_leaves_at_once_its_leases_released():
  import subprocess
  import sys

  root = pathlib.Path(__file__).resolve().parent.parent
  done = subprocess.run(
    [sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=600, cwd=root
  )
  assert done.returncode == 75 and done.stdout == "ready\nreleased\n"
  assert "second signal, SIGTERM" in done.stderr
