"""`moe-parity test`."""

import argparse
import subprocess
import sys

from moe_parity.commands.common import ROOT

HELP = "run the tests; further arguments go to pytest"
ABOUT = """\
Runs the tests of a checkout; what follows goes to pytest.

  moe-parity test
  moe-parity test tests/test_planning_plan.py
  moe-parity test -m "not slow" -n 2
"""


def arguments(parser) -> None:
  parser.passes_on = True
  parser.add_argument("pytest", nargs=argparse.REMAINDER)


def run(args) -> int:
  # A fresh process: the tests check array shapes by a hook that must come before our imports.
  # Stealing work keeps most files whole on one worker, so what a file's tests share is made once.
  # pytest's options that come before its first path are not among what our parser takes.
  given = [*args.overrides, *args.pytest]
  arguments = given or ["-n", "2", "--dist", "worksteal", str(ROOT / "tests")]
  return subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT)
