"""`python -m tests.rounds`: the first round that fails ends it, and the file says so."""

import json

import pytest

from tests import rounds

FAILS_AT_THE_SECOND = """
import pathlib

def test_a(tmp_path):
  runs = pathlib.Path({file!r})
  runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
  assert len(runs.read_text()) != 2

def test_b():
  pass
"""


@pytest.mark.slow
def test_the_first_round_that_fails_ends_it(tmp_path, capsys):
  test, out = tmp_path / "test_it.py", tmp_path / "rounds.json"
  test.write_text(FAILS_AT_THE_SECOND.format(file=str(tmp_path / "runs")))
  words = ["--rounds=3", f"--out={out}", f"--reports={tmp_path / 'reports'}", str(test)]
  assert rounds.main(words) == 1
  assert "round 2 failed" in capsys.readouterr().err
  told = json.loads(out.read_text())
  assert (told["wanted"], told["passed_in_a_row"], len(told["rounds"])) == (3, 1, 2)
  assert [(row["tests"], row["failed"]) for row in told["rounds"]] == [(2, 0), (2, 1)]
  assert "test_a" in (tmp_path / "reports/round-2.log").read_text()


def test_the_contract_is_files_that_are_there():
  assert all((rounds.ROOT / "tests" / name).is_file() for name in rounds.CONTRACT)
