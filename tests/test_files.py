"""Atomic writes: by writers at the same time, by one that fails, and what stays behind."""

import json
import pathlib
import threading

import numpy as np
import pytest

from moe_parity import files

PACKAGE = pathlib.Path(files.__file__).parent


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
  """Two workers of a study that end together write the same page."""
  page, errors = tmp_path / "index.html", []
  contents = [letter * 20_000 for letter in (b"a", b"b")]
  files.write_bytes(page, contents[0])

  def write(content):
    try:
      for _ in range(100):
        files.write_bytes(page, content)
    except OSError as error:
      errors.append(error)

  writers = [threading.Thread(target=write, args=(content,)) for content in contents]
  for writer in writers:
    writer.start()
  while any(writer.is_alive() for writer in writers):
    assert page.read_bytes() in contents  # a reader never sees a part
  for writer in writers:
    writer.join()
  assert errors == [] and page.read_bytes() in contents
  assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / "analysis.json"
  files.write_json(path, {"bpc": 1.5})
  with pytest.raises(ValueError):
    files.write_json(path, {"bpc": float("nan")}, allow_nan=False)
  with pytest.raises(RuntimeError), files.replacing(path) as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert json.loads(path.read_text()) == {"bpc": 1.5}
  assert [path.name for path in tmp_path.iterdir()] == ["analysis.json"]


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_back_from_a_file_of_any_name(tmp_path, compressed):
  files.write_npz(tmp_path / "scan", compressed=compressed, tokens=np.arange(5), lost=np.array(2))
  with np.load(tmp_path / "scan") as saved:
    assert saved["tokens"].tolist() == [0, 1, 2, 3, 4] and saved["lost"] == 2


def test_no_other_module_replaces_a_file():
  """A temporary name of one's own invention is how writers came to race."""
  for path in PACKAGE.rglob("*.py"):
    if path.name != "files.py":
      assert "os.replace(" not in path.read_text(), f"{path}: use files.replacing"
