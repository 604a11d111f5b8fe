"""Large buffers stay mapped."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
if sys.argv[1] == "keep":
  from moe_parity.startup import keep_large_buffers
  assert keep_large_buffers()
def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def in_a_thread():
  np.ones(12_000_000)
  before = faults()
  for _ in range(5):
    np.ones(12_000_000)
  print(faults() - before)
threading.Thread(target=in_a_thread).start()
"""


def page_faults(argument):
  command = [sys.executable, "-c", PROGRAM, argument]
  return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_large_buffer_made_again_costs_no_page_faults():
  assert page_faults("keep") < page_faults("leave") / 20
