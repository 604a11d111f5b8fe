"""Where a store is made: what is in its place is followed, or refused before text is read."""

import os

import pytest

from moe_parity.data import build
from moe_parity.data.prepare import prepare
from moe_parity.errors import UserError
from tests.helpers.small_store import records, write_jsonl
from tests.test_data_prepare import contents


def test_a_file_in_place_of_a_store_is_named(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", records(40))
  (tmp_path / "file").write_text("x")
  with pytest.raises(UserError, match="is a file; a store is a folder"):
    prepare(path, store=str(tmp_path / "file"), held_out="hash:0.3")
  with pytest.raises(UserError, match="cannot be made"):
    prepare(path, store=str(tmp_path / "file" / "st"), held_out="hash:0.3")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_place_of_a_store_is_followed(tmp_path, there):
  path = write_jsonl(tmp_path / "a.jsonl", records(40))
  target = tmp_path / "disk" / "mine"
  (target if there else target.parent).mkdir(parents=True)
  (tmp_path / "link").symlink_to(target)
  made = prepare(path, store=str(tmp_path / "link"), held_out="hash:0.3")
  assert contents(target) == contents(tmp_path / "link") and (target / "manifest.json").is_file()
  again = prepare(path, store=str(tmp_path / "link"), held_out="hash:0.3")
  assert again.fingerprint() == made.fingerprint() and again.location == str(tmp_path / "link")


@pytest.mark.parametrize(
  ("store", "why"), [(".", "that this was started in"), ("../disk", "where a disk is mounted")]
)
def test_a_folder_that_cannot_be_replaced_is_refused_first(tmp_path, monkeypatch, store, why):
  path = write_jsonl(tmp_path / "a.jsonl", records(40))
  for name in ("disk", "mine"):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path / "mine")
  monkeypatch.setattr(os.path, "ismount", lambda place: str(place) == str(tmp_path / "disk"))
  monkeypatch.setattr(build, "scan", lambda *args: pytest.fail("text was read"))
  with pytest.raises(UserError, match=f"{why}.* such as .*/(mine|disk)/store"):
    prepare(path, store=store, held_out="hash:0.3")
