"""Runs the tests of the worker contract many times in a row, and writes down how each round went.

  python -m tests.rounds --rounds=20 --out=results/contract_rounds.json

These tests start real processes, signal and kill them, so that a race shows in one round of many.
The first round with a failure ends it, with exit code 1; its report and its words stay in
--reports. All rounds share one cache of compiled programs.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

from moe_parity import files

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONTRACT = (
  "test_study_stop_signals.py", "test_study_leases.py", "test_study_peers.py",
  "test_study_agreement.py", "test_study_watchdog.py", "test_study_runner.py",
  "test_training_processes.py", "test_launch_supervise.py",
)  # fmt: skip


def counts(report: pathlib.Path) -> dict[str, int]:
  """How many tests a JUnit report has, and how many of them failed or were skipped."""
  cases = list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))
  states = [{child.tag for child in case} for case in cases]
  failed = sum(bool(state & {"failure", "error"}) for state in states)
  return {"tests": len(cases), "failed": failed, "skipped": sum("skipped" in s for s in states)}


def one_round(names: list[str], reports: pathlib.Path, number: int) -> dict:
  """One round: its counts, its exit code, its time and how busy the machine was."""
  report, log = reports / f"round-{number}.xml", reports / f"round-{number}.log"
  with tempfile.TemporaryDirectory() as folder, log.open("w") as words:
    command = [sys.executable, "-m", "pytest", f"--basetemp={folder}/tests", f"--junitxml={report}"]
    began, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
      [*command, "--durations=15", *(str(ROOT / "tests" / name) for name in names)],
      cwd=ROOT, stdout=words, stderr=words, check=False,
      env=os.environ | {"MOE_PARITY_TEST_CACHE": str(reports / "cache")},
    )  # fmt: skip
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  row = {"round": number, "exit_code": done.returncode}
  row |= counts(report) if report.exists() else {}
  row["seconds"] = round(time.monotonic() - began)
  row["cpu_seconds"] = round(after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime)
  row["load"] = round(os.getloadavg()[1], 1)  # of the last five minutes
  return row


def commit() -> str:
  """The commit of this checkout, "" outside of one."""
  asked = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
  return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def main(words: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m tests.rounds", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE")
  parser.add_argument("--reports", type=pathlib.Path, metavar="FOLDER", help="default: a new one")
  parser.add_argument("names", nargs="*", default=list(CONTRACT), help="files of tests/")
  args = parser.parse_args(words)
  reports = args.reports or pathlib.Path(tempfile.mkdtemp(prefix="rounds-"))
  reports.mkdir(parents=True, exist_ok=True)
  told = {"commit": commit(), "cores": os.cpu_count(), "tests": args.names, "wanted": args.rounds}
  rows = []
  for number in range(1, args.rounds + 1):
    rows.append(row := one_round(args.names, reports, number))
    print(row, flush=True)
    well = sum(row["exit_code"] == 0 for row in rows)
    files.write_json(args.out, told | {"passed_in_a_row": well, "rounds": rows})
    if row["exit_code"]:
      print(f"round {number} failed: {reports}/round-{number}.log", file=sys.stderr)
      return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
