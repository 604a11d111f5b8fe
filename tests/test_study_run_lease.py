"""A run folder is trained by one process at a time, outside of a study too."""

import pytest

from moe_parity.errors import UserError
from moe_parity.study.workers.run_lease import leased


def test_a_second_process_at_one_run_folder_is_refused(tmp_path):
  told = []
  with leased(tmp_path / "run", told.append) as first:
    with (
      pytest.raises(UserError, match="is being trained by worker .*; wait for it") as error,
      leased(tmp_path / "run", told.append),
    ):
      pytest.fail("two processes hold one run folder")
    assert "\n" not in str(error.value)
    first.check()  # the first still holds it
  with leased(tmp_path / "run", told.append) as next_one:
    next_one.check()
  assert told == []


def test_run_folders_are_held_one_by_one(tmp_path):
  with leased(tmp_path / "a", print) as one, leased(tmp_path / "b", print) as other:
    one.check()
    other.check()
