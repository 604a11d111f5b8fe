"""What an abort of a process that is not the first one ends with."""

import signal
import socket
import subprocess
import sys

import pytest

from moe_parity.launch.supervise import Policy, decide
from tests.helpers.workers import ROOT

ABORTS = """
import ctypes, os, sys, threading
from moe_parity.study.workers.aborts import leave_on_abort
leave_on_abort("localhost:" + sys.argv[1])
if sys.argv[2] == "thread":  # as XLA's do
  threading.Thread(target=ctypes.CDLL(None).abort).start()
else:
  os.abort()
"""


def aborted(port, how):
  done = subprocess.run(
    [sys.executable, "-c", ABORTS, str(port), how],
    cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  return done.returncode, done.stderr


@pytest.mark.parametrize("how", ["main", "thread"])
def test_an_abort_of_its_own_asks_for_no_new_start(how):
  """It ended with 75 too, and whoever starts again on 75 did so for ever."""
  with socket.create_server(("localhost", 0)) as first:
    code, said = aborted(first.getsockname()[1], how)
  assert code == -signal.SIGABRT
  assert said == "\naborted by an error of this process: process 0 is there\n"


def test_an_abort_after_the_loss_of_the_first_asks_for_one():
  with socket.create_server(("localhost", 0)) as first:
    port = first.getsockname()[1]
  code, said = aborted(port, "main")
  assert code == 75 and "process 0" in said and said.count("\n") == 2


def test_a_worker_that_crashes_again_and_again_is_given_up():
  """Each life was longer than a minute, so it was started for ever."""
  quick = 0
  for _ in range(Policy().most_quick - 1):
    decision = decide(-signal.SIGABRT, 3600, quick, Policy())
    assert decision.again
    quick = decision.quick
  last = decide(-signal.SIGABRT, 3600, quick, Policy())
  assert not last.again and last.code == 1 and "crashed" in last.why
  assert decide(75, 3600, quick, Policy()).quick == 0
