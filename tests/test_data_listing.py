"""What a path means: everything that is given is found or refused."""

import json
import os
import subprocess
import sys

import pytest

from moe_parity.data.listing import list_files
from moe_parity.data.prepare import prepare
from moe_parity.errors import UserError
from tests.helpers.bucket import install
from tests.helpers.small_store import records, write_jsonl


def touch(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def names(path, root):
  return [os.path.relpath(file, root) for file in list_files(str(path)).files]


def test_linked_folders_and_files_are_read(tmp_path):
  touch(tmp_path / "data" / "a.txt", tmp_path / "other" / "deep" / "b.txt", tmp_path / "c.txt")
  (tmp_path / "data" / "books").symlink_to("../other")
  (tmp_path / "data" / "d.txt").symlink_to(tmp_path / "c.txt")
  assert names(tmp_path / "data", tmp_path / "data") == ["a.txt", "books/deep/b.txt", "d.txt"]
  assert names(tmp_path / "data" / "**" / "*.txt", tmp_path / "data") == [
    "a.txt", "books/deep/b.txt", "d.txt",
  ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/**/*.txt", "/sub/*.txt", "/*/gone.txt"])
def test_a_dangling_link_is_refused(tmp_path, pattern):
  touch(tmp_path / "sub" / "a.txt")
  (tmp_path / "sub" / "gone.txt").symlink_to("/no/such/mount/c.txt")
  with pytest.raises(UserError, match="gone.txt is a link to /no/such/mount/c.txt"):
    list_files(f"{tmp_path}{pattern}")


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.txt"])
@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_back_is_refused(tmp_path, pattern, target):
  touch(tmp_path / "top" / "sub" / "a.txt")
  (tmp_path / "top" / "sub" / "loop").symlink_to(target)
  with pytest.raises(UserError, match="link back to a folder that holds it"):
    list_files(f"{tmp_path}/top{pattern}")


def test_two_links_to_one_folder_are_no_cycle(tmp_path):
  touch(tmp_path / "real" / "a.txt", tmp_path / "data" / "b.txt")
  for name in ("one", "two"):
    (tmp_path / "data" / name).symlink_to(tmp_path / "real")
  assert names(tmp_path / "data", tmp_path / "data") == ["b.txt", "one/a.txt", "two/a.txt"]


def test_a_link_to_a_folder_with_a_shorter_name_is_no_cycle(tmp_path):
  touch(tmp_path / "books" / "a.txt", tmp_path / "books2" / "b.txt")
  (tmp_path / "books2" / "more").symlink_to(tmp_path / "books")
  wanted = ["books/a.txt", "books2/b.txt", "books2/more/a.txt"]
  assert names(tmp_path / "**" / "*.txt", tmp_path) == wanted


@pytest.mark.parametrize("pattern", ["", "/**", "/*", "/[as]*"])
def test_a_pattern_leaves_out_stores_and_counts_what_is_hidden(tmp_path, pattern):
  path = write_jsonl(tmp_path / "a.jsonl", records(20))
  prepare(path, store=str(tmp_path / "top" / "sub" / "store"), held_out="hash:0.3")
  touch(*(tmp_path / "top" / name for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt")))
  touch(*(tmp_path / "top" / name for name in ("sub/.y", "sub/deep/.z")))
  found = list_files(f"{tmp_path}/top{pattern}")
  assert [os.path.relpath(file, tmp_path / "top") for file in found.files] == [
    "a.txt", "sub/b.txt", "sub/deep/c.txt",
  ]  # fmt: skip
  assert found.num_hidden == 2
  assert found.stores == [str(tmp_path / "top" / "sub" / "store")]


def test_a_store_that_a_pattern_matches_is_left_out(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", records(20))
  prepare(path, store=str(tmp_path / "store"), held_out="hash:0.3")
  found = list_files(f"{tmp_path}/*")
  assert found.files == [path] and found.stores == [str(tmp_path / "store")]


def test_folders_that_a_pattern_matches_give_their_files(tmp_path):
  touch(tmp_path / "a.txt", tmp_path / "sub" / "b.txt", tmp_path / "sub" / "more" / "c.txt")
  assert names(tmp_path / "*", tmp_path) == ["a.txt", "sub/b.txt", "sub/more/c.txt"]
  assert names(tmp_path / "s[tu]b", tmp_path) == ["sub/b.txt", "sub/more/c.txt"]
  assert names(tmp_path / "**", tmp_path) == ["a.txt", "sub/b.txt", "sub/more/c.txt"]


def test_a_bucket_pattern_gives_the_files_of_its_folders(monkeypatch):
  bucket = install(monkeypatch)
  for name in ("x/a.txt", "x/sub/b.txt"):
    bucket.pipe_file(f"gs://mine/{name}", b"x")
  assert list_files("gs://mine/x/*").files == ["gs://mine/x/a.txt", "gs://mine/x/sub/b.txt"]


@pytest.mark.parametrize("place", ["data", "data/sub", "data/sub/*", "data/**/*.txt", "data/*/*"])
def test_what_may_not_be_read_is_refused(tmp_path, place):
  """In a process of its own without root's rights, which no permission stops."""
  touch(tmp_path / "data" / "a.txt", tmp_path / "data" / "sub" / "b.txt")
  (tmp_path / "data" / "sub").chmod(0o000)
  code = (
    "import os, sys\n"
    "from moe_parity.data.listing import list_files\n"
    "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    "try: print(list_files(sys.argv[1]).files)\n"
    "except ValueError as error: print(type(error).__name__, error)\n"
  )
  for folder in (tmp_path, *tmp_path.parents):
    if folder.stat().st_uid == os.getuid() and str(folder) != "/":
      folder.chmod(folder.stat().st_mode | 0o005)
  found = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path / place)], capture_output=True, text=True, check=True
  )
  (tmp_path / "data" / "sub").chmod(0o755)
  assert found.stdout.startswith("UserError") and "Permission denied" in found.stdout


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
  from moe_parity.data import storage

  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  touch(tmp_path / "a.txt")
  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(UserError, match="a.txt cannot be read: Permission denied"):
    storage.open_binary(str(tmp_path / "a.txt"))


def test_a_pipe_is_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe.txt")
  for path in (tmp_path, tmp_path / "pipe.txt"):
    with pytest.raises(UserError, match="pipe.txt is no regular file"):
      list_files(str(path))


@pytest.mark.parametrize("name", ["a[1].txt", "b*.txt", "c?.txt", "d#e%20 f,g=h.txt", "*"])
def test_a_name_that_exists_is_no_pattern(tmp_path, name):
  touch(tmp_path / "in" / name, tmp_path / "in" / "a1.txt", tmp_path / "in" / "bb.txt")
  assert names(tmp_path / "in" / name, tmp_path / "in") == [name]


def test_hidden_names_are_left_out_and_counted(tmp_path):
  touch(tmp_path / "a.txt", tmp_path / ".git" / "x", tmp_path / "sub" / ".b.txt")
  (tmp_path / ".gone").symlink_to("/no/such/place")
  found = list_files(str(tmp_path))
  assert (len(found.files), found.num_hidden) == (1, 3)


def test_a_name_that_is_no_text_is_refused(tmp_path):
  open(os.fsencode(tmp_path) + b"/\xff.txt", "w").close()
  with pytest.raises(UserError, match="is not UTF-8"):
    list_files(str(tmp_path))


def test_a_store_inside_its_source_does_not_swallow_itself(tmp_path):
  write_jsonl(tmp_path / "a.jsonl", records(40))
  arguments = dict(held_out="hash:0.2", store=str(tmp_path / "deep" / "st"))
  first = prepare(str(tmp_path), **arguments)
  again = prepare(str(tmp_path), **arguments)
  assert again.fingerprint() == first.fingerprint()
  other = prepare(str(tmp_path), store=str(tmp_path / "other"), held_out="hash:0.2")
  assert other.fingerprint() == first.fingerprint()
  assert other.manifest["origins"][0]["stores"] == [str(tmp_path / "deep" / "st")]


def test_a_manifest_of_something_else_is_no_store(tmp_path):
  write_jsonl(tmp_path / "a.jsonl", records(40))
  write_jsonl(tmp_path / "manifest.json", records(40, seed=1))
  store = prepare(str(tmp_path), store=str(tmp_path / ".s"), held_out="hash:0.2")
  assert store.train.num_documents + store.validation.num_documents == 80


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/passwd", "a/b.arrow", "..", 3, None])
def test_a_saved_data_set_reads_only_its_own_files(tmp_path, name):
  touch(tmp_path / "x.arrow", tmp_path / "set" / "dataset_info.json")
  state = {"_data_files": [{"filename": name}]}
  (tmp_path / "set" / "state.json").write_text(json.dumps(state))
  with pytest.raises(UserError, match="only plain file names"):
    list_files(str(tmp_path / "set"))


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"_data_files": 3}', "[" * 100_000])
def test_a_saved_data_set_that_is_damaged_is_refused(tmp_path, text):
  touch(tmp_path / "dataset_info.json")
  (tmp_path / "state.json").write_text(text)
  with pytest.raises(UserError, match="state.json is damaged"):
    list_files(str(tmp_path))


def test_folders_nested_too_deeply_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for _ in range(1200):
    os.mkdir("d")
    os.chdir("d")
  monkeypatch.chdir(tmp_path)
  try:
    for path in ("d", "d/**/*.txt"):
      with pytest.raises(UserError, match="nested too deeply"):
        list_files(path)
  finally:  # pytest's own removal goes no deeper than Python's recursion
    subprocess.run(["rm", "-r", "d"], check=True)
