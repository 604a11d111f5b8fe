"""Writes which tests are slow: what `pytest -m "not slow"` leaves out.

  python -m pytest -n 2 --dist worksteal --junitxml=all.xml tests
  python -m tests.list_slow all.xml 1.0                  # seconds from which a test is slow

A slow fixture of a module is listed by hand, as file::fixture: all tests that use it are slow.
Without that line its time passes from each listed test to the next of the file.
"""

import pathlib
import sys
import xml.etree.ElementTree

LIST = pathlib.Path(__file__).parent / "slow_tests.txt"


def listed() -> set[str]:
  """Tests and fixtures of the list, each file::function."""
  return set(LIST.read_text().split()) if LIST.exists() else set()


def slow_in(report: pathlib.Path, seconds: float) -> set[str]:
  """Tests of a JUnit report of which a case took at least that long."""
  cases = xml.etree.ElementTree.parse(report).getroot().iter("testcase")
  return {
    f"{case.get('classname').removeprefix('tests.')}.py::{case.get('name').split('[')[0]}"
    for case in cases
    if float(case.get("time")) >= seconds
  }


def main(report: str, seconds: str, *options: str) -> None:
  found = slow_in(pathlib.Path(report), float(seconds))
  fixtures = {name for name in listed() if "::test_" not in name}
  kept = listed() if "--add" in options else fixtures
  LIST.write_text("".join(f"{name}\n" for name in sorted(found | kept)))
  print(f"{len(found - kept)} new, {len(found | kept)} in {LIST}")


if __name__ == "__main__":
  main(*sys.argv[1:])
