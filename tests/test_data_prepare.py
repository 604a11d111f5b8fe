import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from moe_parity.data import build, encode
from moe_parity.data import prepare as module
from moe_parity.data.corpus import Source
from moe_parity.data.prepare import prepare
from moe_parity.data.scan import HeldOut
from moe_parity.errors import UserError
from tests.helpers.small_store import records, small_store, texts_of, write_jsonl


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_builtin_corpus_keeps_its_own_held_out_works(tmp_path, monkeypatch):
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  store = prepare()
  assert store.folder.parent == tmp_path / "cache"
  assert store.train.num_tokens == 12_519_582 + 2 * 626
  assert store.validation.num_tokens == 1_128_018 + 2 * 54
  stamp = os.stat(store.folder / "train-00000.bin").st_mtime_ns
  again = prepare()
  assert again.folder == store.folder
  assert os.stat(again.folder / "train-00000.bin").st_mtime_ns == stamp


def test_other_inputs_get_another_folder_of_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  path = write_jsonl(tmp_path / "a.jsonl", records(40))
  folders = {
    prepare(path, held_out="hash:0.3").folder,
    prepare(path, held_out="hash:0.4").folder,
    prepare(path, "bpe:290", held_out="hash:0.3").folder,
    prepare(Source(path, domain="x", domain_key="source"), held_out="hash:0.3").folder,
  }
  write_jsonl(tmp_path / "a.jsonl", records(41))
  folders.add(prepare(path, held_out="hash:0.3").folder)
  assert len(folders) == 5


def test_every_text_is_in_one_split_once(tmp_path):
  all_records = records(80)
  repeated = all_records + all_records[10:30] + all_records[:5]
  path = write_jsonl(tmp_path / "a.jsonl", repeated)
  store = prepare(path, store=str(tmp_path / "s"), held_out="hash:0.25")
  found = texts_of(store.train) + texts_of(store.validation)
  assert sorted(found) == sorted(r["text"] for r in all_records)
  assert 5 < store.validation.num_documents < 40
  assert store.manifest["duplicates"]["num_documents"] == 25
  found = texts_of(store.train)
  assert found == [r["text"] for r in all_records if r["text"] in found]


def test_the_split_of_a_text_does_not_depend_on_others(tmp_path):
  some = prepare(write_jsonl(tmp_path / "a.jsonl", records(60)), store=str(tmp_path / "a"),
                 held_out="hash:0.3")  # fmt: skip
  more = prepare(write_jsonl(tmp_path / "b.jsonl", records(60)[::-1] + records(30, seed=9)),
                 store=str(tmp_path / "b"), held_out="hash:0.3")  # fmt: skip
  assert set(texts_of(some.validation)) <= set(texts_of(more.validation))
  assert not set(texts_of(some.train)) & set(texts_of(more.validation))


def test_named_works_are_held_out_with_their_copies(tmp_path):
  listed = records(30)
  copy = listed[7] | {"source": "a reprint"}
  path = write_jsonl(tmp_path / "a.jsonl", [copy, *listed])
  store = prepare(path, store=str(tmp_path / "s"), held_out="works:work-7, work-1?")
  held_out = {listed[7]["text"]} | {listed[i]["text"] for i in range(10, 20)}
  assert set(texts_of(store.validation)) == held_out
  assert not held_out & set(texts_of(store.train))
  with pytest.raises(UserError, match="'work-77' is no source of the corpus; near it: work-7"):
    prepare(path, store=str(tmp_path / "t"), held_out="works:work-77")


def test_another_source_is_the_held_out_split(tmp_path):
  train, other = records(30), records(12, seed=4)
  path = write_jsonl(tmp_path / "a.jsonl", train + other[:3])
  held = write_jsonl(tmp_path / "b.jsonl", other)
  store = prepare(path, store=str(tmp_path / "s"), held_out=f"source:{held}")
  assert texts_of(store.validation) == [r["text"] for r in other]
  assert texts_of(store.train) == [r["text"] for r in train]
  assert [o["num_documents"] for o in store.manifest["splits"]["validation"]["by_origin"]] == [
    0,
    12,
  ]


def test_several_sources_stand_one_after_the_other(tmp_path):
  first = write_jsonl(tmp_path / "a.jsonl", records(20))
  second = write_jsonl(tmp_path / "b.jsonl", records(25, seed=1))
  store = prepare([Source(first), Source(second)], store=str(tmp_path / "s"), held_out="hash:0.2")
  origin = np.load(store.folder / "train.documents.npz")["origin"]
  assert (np.diff(origin) >= 0).all() and set(origin) == {0, 1}
  by_origin = store.manifest["splits"]["train"]["by_origin"]
  assert [o["num_documents"] for o in by_origin] == np.bincount(origin).tolist()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_the_number_of_workers_and_parts_changes_no_byte(tmp_path, monkeypatch, tokenizer):
  path = write_jsonl(tmp_path / "a.jsonl", records(90))
  made = []
  for workers, part_bytes in ((1, 1 << 20), (3, 700), (2, 1)):
    monkeypatch.setattr(encode, "PART_BYTES", part_bytes)
    folder = tmp_path / f"s{workers}"
    prepare(path, tokenizer, str(folder), held_out="hash:0.2", workers=workers)
    made.append(contents(folder))
  assert made[0] == made[1] == made[2]
  assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["s1", "s2", "s3"]


def test_a_killed_prepare_continues_to_the_same_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(encode, "PART_BYTES", 500)
  path = write_jsonl(tmp_path / "a.jsonl", records(120))
  arguments = (path, "bpe:300", str(tmp_path / "s"))
  program = f"""
    import os, signal
    from moe_parity.data import build, encode
    from moe_parity.data.prepare import prepare
    encode.PART_BYTES = 500
    write, written = encode._encode_part, []
    def until_killed(*given):
      write(*given)
      written.append(1)
      if len(written) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    encode._encode_part = until_killed
    prepare(*{arguments!r}, held_out="hash:0.2", workers=1)
  """
  killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)])
  assert killed.returncode == -signal.SIGKILL
  assert not (tmp_path / "s").exists()
  written = []
  encode_part = encode._encode_part
  monkeypatch.setattr(
    encode, "_encode_part", lambda *given: (written.append(given[1]), encode_part(*given))
  )
  resumed = prepare(*arguments, held_out="hash:0.2")
  assert resumed.manifest["splits"]["train"]["num_documents"] > 50
  num_parts = len(written) + 6
  prepare(path, "bpe:300", str(tmp_path / "whole"), held_out="hash:0.2")
  assert contents(tmp_path / "s") == contents(tmp_path / "whole")
  assert len(written) == num_parts - 6 + num_parts


def _prepare_in_process(path, folder, results):
  results.put(str(prepare(path, store=folder, held_out="hash:0.2").folder))


def test_two_processes_make_one_store(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", records(200))
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  arguments = (path, str(tmp_path / "s"), results)
  workers = [context.Process(target=_prepare_in_process, args=arguments) for _ in range(2)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join(60)
  assert [worker.exitcode for worker in workers] == [0, 0]
  assert results.get() == results.get() == str(tmp_path / "s")


def test_only_one_process_at_a_time_makes_a_store(tmp_path, monkeypatch):
  make, attempts = module.build, []

  def make_while_another_tries(*given):
    with open(tmp_path / ".s.lock", "w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        attempts.append("waits")
    make(*given)

  monkeypatch.setattr(module, "build", make_while_another_tries)
  path = write_jsonl(tmp_path / "a.jsonl", records(30))
  prepare(path, store=str(tmp_path / "s"), held_out="hash:0.2")
  assert attempts == ["waits"]


def test_a_finished_store_is_a_source_with_its_own_tokenizer(tmp_path):
  store = small_store(tmp_path)
  folder = str(store.folder)
  assert prepare(folder).train.fingerprint == store.train.fingerprint
  assert prepare(folder, "store").train.fingerprint == store.train.fingerprint
  with pytest.raises(UserError, match="made with tokenizer bytes, not bpe:300"):
    prepare(folder, "bpe:300")


def test_a_folder_with_another_corpus_is_not_overwritten(tmp_path):
  small_store(tmp_path)
  other = write_jsonl(tmp_path / "other.jsonl", records(30, seed=3))
  with pytest.raises(UserError, match="made from other inputs .*sources"):
    prepare(other, store=str(tmp_path / "store"), held_out="hash:0.2")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
  with pytest.raises(UserError, match="no finished token store"):
    prepare(other, store=str(tmp_path / "mine"), held_out="hash:0.2")
  assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"


def test_bad_records_are_counted_in_the_manifest(tmp_path):
  path = tmp_path / "a.jsonl"
  good = "".join(json.dumps(r) + "\n" for r in records(30))
  path.write_text(good + '{"text": ""}\nbroken\n')
  with pytest.raises(UserError, match="a.jsonl, record 31: the text is empty"):
    prepare(str(path), store=str(tmp_path / "s"), held_out="hash:0.2", max_bad_records=0)
  store = prepare(str(path), store=str(tmp_path / "s"), held_out="hash:0.2", max_bad_records=2)
  assert store.manifest["bad_records"]["count"] == 2
  assert "record 32: not a JSON record" in store.manifest["bad_records"]["messages"][1]


def test_a_resumed_build_holds_its_limit_of_bad_records(tmp_path, monkeypatch):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in records(30)) + "broken\n")
  arguments = (str(path), "bytes", str(tmp_path / "s"))

  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(build, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
      prepare(*arguments, held_out="hash:0.2", max_bad_records=1)
  monkeypatch.setattr(build, "scan", stop)  # the scan is kept
  with pytest.raises(UserError, match="record 31: not a JSON .*allowed: 0, found: 1"):
    prepare(*arguments, held_out="hash:0.2")
  store = prepare(*arguments, held_out="hash:0.2", max_bad_records=1)
  assert store.manifest["bad_records"]["count"] == 1


def test_a_corpus_that_changes_under_the_reader_is_noticed(tmp_path, monkeypatch):
  path = write_jsonl(tmp_path / "a.jsonl", records(30))
  scan = build.scan

  def scan_then_change(*given):
    table = scan(*given)
    write_jsonl(tmp_path / "a.jsonl", records(30, seed=2))
    return table

  monkeypatch.setattr(build, "scan", scan_then_change)
  with pytest.raises(UserError, match="changed while it was being prepared"):
    prepare(path, store=str(tmp_path / "s"), held_out="hash:0.2")


def test_progress_reaches_the_end_of_each_stage(tmp_path):
  calls = []
  store = small_store(tmp_path, tokenizer="bpe:300", progress=lambda *call: calls.append(call))
  total = sum(store.manifest["splits"][name]["num_bytes"] for name in ("train", "validation"))
  ends = {stage: (done, whole) for stage, done, whole in calls}
  assert ends["read"] == ends["tokenize"] == (total, total)
  assert ends["train tokenizer"][0] == ends["train tokenizer"][1]


@pytest.mark.parametrize("rule", [
  "hash:0", "hash:1.5", "hash:x", "works:", "works:a,,b", "source: ", "nonsense",
])  # fmt: skip
def test_a_held_out_rule_that_says_nothing_is_refused(rule):
  with pytest.raises(UserError, match="data.held_out=.*; give hash:"):
    HeldOut.parse(rule, [Source("x")])


def test_an_empty_split_is_refused(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", records(3))
  with pytest.raises(UserError, match="the validation split is empty"):
    prepare(path, store=str(tmp_path / "s"), held_out="hash:0.000001")


@pytest.mark.parametrize("tokenizer", ["bpe:many", "nothing.json"])
def test_an_unknown_tokenizer_is_refused(tmp_path, tokenizer):
  path = write_jsonl(tmp_path / "a.jsonl", records(30))
  with pytest.raises(UserError, match="bpe:<vocab"):
    prepare(path, tokenizer, str(tmp_path / "s"), held_out="hash:0.2")


def test_a_store_is_named_by_content_not_by_dates(tmp_path, monkeypatch):
  """Text of equal length under the old date is other text; the same text under a new one is not."""
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  path = tmp_path / "a.jsonl"
  write_jsonl(path, records(40))
  stamp = os.stat(path)
  first = prepare(str(path), held_out="hash:0.3")
  os.utime(path, ns=(1, 1))
  assert prepare(str(path), held_out="hash:0.3").folder == first.folder
  text = path.read_text("utf-8").replace("a", "b")
  assert len(text.encode()) == stamp.st_size
  path.write_text(text, "utf-8")
  os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
  second = prepare(str(path), held_out="hash:0.3")
  assert second.folder != first.folder and second.fingerprint() != first.fingerprint()


def test_a_named_store_notices_text_of_equal_size_and_date(tmp_path):
  path = tmp_path / "a.jsonl"
  write_jsonl(path, records(40))
  stamp = os.stat(path)
  arguments = dict(store=str(tmp_path / "s"), held_out="hash:0.3")
  prepare(str(path), **arguments)
  path.write_text(path.read_text("utf-8").replace("a", "b"), "utf-8")
  os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
  with pytest.raises(UserError, match="made from other inputs .files"):
    prepare(str(path), **arguments)


def test_hashes_of_files_are_remembered_until_they_change(tmp_path, monkeypatch):
  from moe_parity.data import content_hash, storage

  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(content_hash, "_SETTLED_NS", -1)
  path = tmp_path / "a.txt"
  path.write_text("one")
  first = content_hash.content_of([str(path)])
  assert first[0]["sha256"] == storage.sha256_of(path)
  hashed = []
  real = storage.sha256_of_file
  monkeypatch.setattr(storage, "sha256_of_file", lambda file: hashed.append(1) or real(file))
  assert content_hash.content_of([str(path)]) == first and not hashed
  path.write_text("two")
  assert content_hash.content_of([str(path)]) != first and hashed
  (tmp_path / "cache" / "file_hashes.json").write_text("[" * 100_000)
  assert content_hash.content_of([str(path)])[0]["sha256"] == storage.sha256_of(path)


def test_a_file_changed_a_moment_ago_is_hashed_again(tmp_path, monkeypatch):
  from moe_parity.data import content_hash

  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  (tmp_path / "a.txt").write_text("one")
  content_hash.content_of([str(tmp_path / "a.txt")])
  assert not (tmp_path / "cache" / "file_hashes.json").exists()


def test_text_that_changes_while_it_is_prepared_is_noticed(tmp_path, monkeypatch):
  from moe_parity.data import build

  path = tmp_path / "a.jsonl"
  write_jsonl(path, records(40))
  real = build.join

  def change(*given):
    write_jsonl(path, records(41))
    return real(*given)

  monkeypatch.setattr(build, "join", change)
  with pytest.raises(UserError, match="changed while it was being prepared"):
    prepare(str(path), store=str(tmp_path / "s"), held_out="hash:0.3")


NO_NUMBER = "is not bpe: and a whole number; give bytes . bpe:<vocabulary, 273 to 65536>"


@pytest.mark.parametrize("spec, words", [
  ("bpe:abc", NO_NUMBER), ("bpe:", NO_NUMBER), ("bpe:1e4", NO_NUMBER), ("bpe:-5", NO_NUMBER),
  ("bpe:٣٠٠٠", NO_NUMBER), ("bpe:272", "is not between bpe:273 and bpe:65536"),
  ("bpe:70000", "is not between"), ("BPE:400", "does not exist"), (".", "is a folder"),
])  # fmt: skip
def test_a_tokenizer_is_checked_before_any_text_is_read(tmp_path, monkeypatch, spec, words):
  from moe_parity.data import build

  def refuse(*_):
    raise AssertionError("text was read")

  monkeypatch.setattr(build, "scan", refuse)
  path = write_jsonl(tmp_path / "a.jsonl", records(40))
  with pytest.raises(UserError, match=words):
    prepare(path, spec, str(tmp_path / "s"))
