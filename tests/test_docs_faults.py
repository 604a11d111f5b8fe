"""The page on faults and their tests names tests that are there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "faults_tests.md").read_text()
FILE = re.compile(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)")


def test_every_test_on_the_page_is_in_its_file():
  named = FILE.findall(PAGE)
  assert len(named) > 40
  for file, tests in named:
    text = (ROOT / "tests" / file).read_text()
    for name in re.findall(r"`(\w+)`", tests):
      assert f"def {name}(" in text, (file, name)


def test_every_fault_on_the_page_has_a_test():
  rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "| test |" not in line]
  assert len(rows) > 35 and all(FILE.search(row) for row in rows)
