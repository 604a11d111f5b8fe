"""Workers that no engine watches: started again on 75 and after crashes, and on nothing else."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from moe_parity.launch.exit_codes import combined, meaning
from moe_parity.launch.supervise import Policy, Supervisor, Worker, decide
from tests.helpers.workers import end, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOON = Policy(quick_seconds=60, most_quick=3, first_wait=0.01, longest_wait=0.01)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130 - 128])
def test_a_worker_that_is_done_or_failed_is_not_started_again(code):
  decision = decide(code, 3600, 0, Policy())
  assert not decision.again and decision.code == code


@pytest.mark.parametrize("code", [75, -9, -6, 137, 134, 143])
def test_a_worker_that_asks_or_crashed_is_started_again(code):
  assert decide(code, 3600, 0, Policy()).again


def test_lives_too_short_to_train_wait_longer_and_then_end():
  waits, quick = [], 0
  for _ in range(4):
    decision = decide(75, 1, quick, Policy())
    quick = decision.quick
    waits.append(decision.wait)
  assert waits == [5, 10, 20, 40]
  last = decide(75, 1, quick, Policy())
  assert not last.again and last.code == 1 and "5 times in a row" in last.why


def test_after_a_life_that_trained_short_ones_are_forgotten():
  decision = decide(75, 61, 4, Policy())
  assert decision.again and decision.quick == 0 and decision.wait == 5


def test_several_exit_codes_are_the_one_to_read_about_first():
  assert combined([0, 75, 1, 2]) == 2
  assert combined([0, 75, 1]) == 1
  assert combined([0, 75]) == 75
  assert combined([0, 0]) == 0
  assert combined([0, -9]) == 1
  assert combined([]) == 0


def test_exit_codes_say_what_they_mean():
  assert (
    "start it again" in meaning(75) and "signal 9" in meaning(-9) and "signal 9" in meaning(137)
  )
  assert "no worker should have" in meaning(77)


def test_a_command_that_crashes_on_and_on_is_given_up(tmp_path):
  said = []
  worker = Worker("w", [sys.executable, "-SEc", "import os; os.abort()"], {}, tmp_path / "log")
  assert Supervisor([worker], SOON, said.append).run() == 1
  assert len(said) == 3 and "signal 6" in said[0]


@pytest.mark.parametrize(("program", "log"), [("/no/such", "log"), (sys.executable, "file/log")])
def test_a_worker_that_cannot_be_started_is_no_complete_study(tmp_path, program, log):
  said = []
  (tmp_path / "file").write_text("")
  lost = Worker("w", [program, "-SEc", "0"], {}, tmp_path / log)
  done = Worker("v", [sys.executable, "-SEc", "0"], {}, tmp_path / "v.log")
  assert Supervisor([lost, done], SOON, said.append).run() == 2
  assert any("w cannot be started: /" in line and "start again" in line for line in said)
  assert (tmp_path / "v.log").exists()  # the others go on


def start(tmp_path, code, *options):
  """The supervisor as a process of its own, and a worker that notes its life in a file."""
  worker = f"import os, signal, sys, time\nfile = {str(tmp_path / 'life')!r}\n{code}"
  return subprocess.Popen(
    [*(sys.executable, "-m", "moe_parity.launch", "supervise", f"--log={tmp_path}/log")]
    + [*options, "--", sys.executable, "-SEc", worker],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def has_said(file, text):
  return file.exists() and text in file.read_text()


SAVES = """
def stop(number, frame):
  open(file, "a").write("saved\\n")
  time.sleep(0.8)  # a second signal would be noted too
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
open(file, "a").write("started\\n")
time.sleep(900)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_worker_once_and_none_starts_again(tmp_path, number):
  process = start(tmp_path, SAVES)
  wait_until(lambda: has_said(tmp_path / "life", "started"), process)
  process.send_signal(number)
  assert end(process)[0] == 75
  assert (tmp_path / "life").read_text() == "started\nsaved\n"


def start_with_hangup(handler, *words):
  """A supervisor that finds SIGHUP handled so, whatever started the tests."""
  before = signal.signal(signal.SIGHUP, handler)
  try:
    return start(*words)
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_leaves_no_worker_behind(tmp_path):
  process = start_with_hangup(signal.SIG_DFL, tmp_path, SAVES)
  wait_until(lambda: has_said(tmp_path / "life", "started"), process)
  os.killpg(process.pid, signal.SIGHUP)
  assert end(process)[0] == 75
  assert (tmp_path / "life").read_text() == "started\nsaved\n"


@pytest.mark.skipif(
  sys.platform != "linux", reason="Linux alone tells a process of its parent's end"
)
def test_a_killed_supervisor_leaves_no_worker_behind(tmp_path):
  process = start(tmp_path, "open(file + '.pid', 'w').write(str(os.getpid()))\n" + SAVES)
  wait_until(lambda: has_said(tmp_path / "life", "started"), process)
  worker = int((tmp_path / "life.pid").read_text())
  process.kill()
  process.wait()
  try:
    wait_until(lambda: has_said(tmp_path / "life", "saved"))
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ignores_no_more_signals_than_from_a_shell(tmp_path):
  """What is ignored is inherited, and Python, which starts the worker, ignores SIGPIPE."""
  worker = Worker("w", ["grep", "SigIgn", "/proc/self/status"], {}, tmp_path / "log")
  assert Supervisor([worker], SOON).run() == 0
  direct = subprocess.run(worker.argv, capture_output=True, text=True).stdout
  assert (tmp_path / "log").read_text() == direct != ""


def test_a_supervisor_under_nohup_outlives_its_terminal(tmp_path):
  process = start_with_hangup(signal.SIG_IGN, tmp_path, SAVES)
  wait_until(lambda: has_said(tmp_path / "life", "started"), process)
  os.killpg(process.pid, signal.SIGHUP)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(1)
  process.terminate()
  assert end(process)[0] == 75
  assert (tmp_path / "life").read_text() == "started\nsaved\n"


def test_a_signal_while_waiting_ends_the_wait(tmp_path):
  life = "open(file, 'a').write('started\\n'); sys.exit(75)"
  process = start(tmp_path, life, "--first-wait=3600")
  assert "started again in 3600 s" in process.stdout.readline()
  process.terminate()
  assert end(process)[0] == 75
  assert (tmp_path / "life").read_text() == "started\n"


def test_ctrl_c_at_a_terminal_reaches_the_worker_once(tmp_path):
  process = start(tmp_path, SAVES)
  wait_until(lambda: has_said(tmp_path / "life", "started"), process)
  os.killpg(process.pid, signal.SIGINT)  # a terminal signals all of its foreground group
  assert end(process)[0] == 75
  assert (tmp_path / "life").read_text() == "started\nsaved\n"
