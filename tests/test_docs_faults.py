"""The page on faults and their tests names tests that are there, and inputs that were run."""

import json
import pathlib

from tests.faults_before.__main__ import ROWS

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECTIONS = json.loads((ROOT / "docs" / "faults_rows.json").read_text())
EVERY = [row for rows in SECTIONS.values() for row in rows]


def test_every_test_on_the_page_is_in_its_file():
  assert len(EVERY) > 40
  for row in EVERY:
    assert row["tests"], row["key"]
    for file, tests in row["tests"].items():
      text = (ROOT / "tests" / file).read_text()
      for name in tests:
        assert f"def {name}(" in text, (file, name)


def test_every_fault_on_the_page_has_an_input_of_its_own():
  assert sorted(row["key"] for row in EVERY) == sorted(ROWS)
  seen = json.loads((ROOT / "results" / "faults_before.json").read_text())["rows"]
  assert seen.keys() == ROWS.keys()
