import gzip
import json
import lzma

import pytest

from moe_parity.data import corpus, storage
from moe_parity.data.scan import HeldOut, scan
from moe_parity.errors import UserError
from tests.helpers.small_store import read_source, write_jsonl

ONE = {"text": "plain text", "domain": "prose", "source": "a"}


def test_the_builtin_corpus_holds_what_its_notice_says():
  train, validation = list(corpus.builtin("train")), list(corpus.builtin("validation"))
  assert (len(train), len(validation)) == (626, 54)
  assert sum(len(d.text.encode()) for d in train) == 12_519_582
  assert sum(len(d.text.encode()) for d in validation) == 1_128_018
  assert {d.domain for d in validation} == {"novels", "bible", "lexicon", "math"}
  assert not {d.source for d in train} & {d.source for d in validation}


def test_a_builtin_corpus_that_was_changed_is_refused(tmp_path, monkeypatch):
  name = "classics.val.jsonl.xz"
  (tmp_path / name).write_bytes(lzma.compress(json.dumps(ONE).encode()))
  monkeypatch.setattr(corpus, "_FOLDER", tmp_path)
  with pytest.raises(UserError, match="sha256"):
    list(corpus.builtin("validation"))


@pytest.mark.parametrize("suffix, compress", [("", bytes), (".gz", gzip.compress),
                                              (".xz", lzma.compress)])  # fmt: skip
def test_jsonl_gives_the_same_documents_plain_and_compressed(tmp_path, suffix, compress):
  texts = ["first\nsecond", "\u2028 日本 \U0001f600", '{"not": "parsed"}']
  lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
  path = tmp_path / f"name.jsonl{suffix}"
  path.write_bytes(compress(lines.encode()))
  found, _ = read_source(path)
  assert [d.text for d in found] == texts
  assert {(d.domain, d.source) for d in found} == {("name", "name")}


def test_a_folder_is_read_in_order_and_text_keeps_its_bytes(tmp_path):
  (tmp_path / "b.txt").write_bytes(b"zwei\r\n\ttab\r")
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x.py").write_text("print()\n")
  (tmp_path / ".hidden").write_text("no")
  write_jsonl(tmp_path / "c.jsonl", [ONE])
  found, _ = read_source(tmp_path, domain="mine")
  assert [d.text for d in found] == ["print()\n", "zwei\r\n\ttab\r", "plain text"]
  assert {d.domain for d in found} == {"mine"}


def test_fields_can_be_named(tmp_path):
  path = write_jsonl(tmp_path / "x.jsonl", [{"content": "t", "lang": "de", "id": 7}])
  found, _ = read_source(path, text_key="content", domain_key="lang", source_key="id")
  assert (found[0].text, found[0].domain, found[0].source) == ("t", "de", "7")


BROKEN = [
  (b'{"text": "a"', "not a JSON record"),
  (b"", "the line is empty"),
  (b'{"text": ""}', "the text is empty"),
  (b'{"text": " \\n"}', "the text is empty"),
  (b'{"body": "a"}', "'text' is missing"),
  (b'{"text": 3}', "is a int"),
  (b'["text"]', "got list"),
  (b'{"text": "\xff"}', "not UTF-8"),
  (b'{"text": "\\ud800"}', "lone surrogate at character 0"),
  (b'{"text": "a", "domain": "en\\ud83d"}', "'domain' has a lone surrogate at character 2"),
  (b'{"text": "a", "text": "b"}', "an object has the name 'text' twice"),
  (b'{"text": "a", "meta": {"x": [{"y": 1, "y": 1}]}}', "an object has the name 'y' twice"),
  (b'{"text": "a", "domain": "x\\ny"}', "'domain' is 'x.+ny', which holds a control character"),
]


@pytest.mark.parametrize("line, words", BROKEN)
def test_a_broken_record_is_named_by_file_and_number(tmp_path, line, words):
  path = tmp_path / "x.jsonl"
  path.write_bytes(json.dumps(ONE).encode() + b"\n" + line + b"\n")
  with pytest.raises(UserError, match=rf"x\.jsonl, record 2: .*{words}"):
    read_source(path)


def test_broken_records_within_the_limit_are_skipped_and_counted(tmp_path):
  path = tmp_path / "x.jsonl"
  lines = [line for line, _ in BROKEN]
  path.write_bytes(b"\n".join([*lines, json.dumps(ONE).encode()]) + b"\n")
  found, bad = read_source(path, limit=len(lines))
  assert len(found) == 1 and bad.count == len(lines)
  with pytest.raises(UserError, match=f"allowed: {len(lines) - 1}"):
    read_source(path, limit=len(lines) - 1)


@pytest.mark.parametrize("suffix, compress", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_truncated_archive_is_reported_where_it_breaks_off(tmp_path, suffix, compress):
  lines = "".join(json.dumps({"text": f"{i * 7919 % 10007} {i}"}) + "\n" for i in range(5000))
  data = compress(lines.encode())
  path = tmp_path / f"x.jsonl{suffix}"
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match="record [1-9][0-9]+: the archive is damaged or cut off"):
    read_source(path)
  with pytest.raises(UserError, match="max_bad_records does not cover it"):
    read_source(path, limit=10_000)


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path):
  (tmp_path / "x.txt").write_bytes(b"abc\xe9def")
  with pytest.raises(UserError, match="not UTF-8 at byte 3"):
    read_source(tmp_path / "x.txt")


def test_an_empty_corpus_is_refused(tmp_path):
  (tmp_path / "x.jsonl").write_bytes(b"")
  with pytest.raises(UserError, match="empty .0 bytes"):
    read_source(tmp_path / "x.jsonl")
  (tmp_path / "x.jsonl").write_bytes(b"\n")
  with pytest.raises(UserError, match="the line is empty"):
    read_source(tmp_path / "x.jsonl")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="without files"):
    read_source(tmp_path / "empty")
  with pytest.raises(UserError, match="does not exist"):
    read_source(tmp_path / "missing.jsonl")


def test_a_missing_package_is_named():
  with pytest.raises(UserError, match="pip install made-up-package"):
    storage.import_optional("made_up_module", "made-up-package", "reading made-up files")


def domains_of(rule, *texts):
  """Domains of sources that are given as on the command line."""
  sources = [source for text in texts for source in corpus.parse_sources(text)]
  return scan(sources, HeldOut.parse(rule, sources)).domains


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("a/x.txt", "b/x.txt"),
    ("a/x", "b/x"),
    ("a/x.txt", "a/x.md"),
    ("a/*.txt", "b/*.txt"),
    ("a/x-1-of-2.txt", "b/x-2-of-2.txt"),
  ],
)
def test_two_sources_of_one_name_are_no_domain_in_silence(tmp_path, monkeypatch, one, other):
  monkeypatch.chdir(tmp_path)
  for name in (one, other):
    file = tmp_path / name.replace("*", "x")
    file = file if file.suffix else file / "file.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"text of {name}")
  words = (
    "and .* would both be the domain 'x', by their names; say .*: NAME=PATH OTHER=PATH, or x=P"
  )
  with pytest.raises(UserError, match=words):
    domains_of("hash:0.5", one, other)
  assert domains_of(f"source:{one}", f"y={other}") == ("y", "x")
  assert domains_of(f"source:{one}", f"x={other}") == ("x",)


def test_shards_and_records_with_a_domain_may_share_a_name(tmp_path):
  for n in range(8):
    write_jsonl(tmp_path / f"c4.en.{n:05}-of-00008.jsonl", [{"text": f"shard {n}"}])
    (tmp_path / str(n)).mkdir()
    write_jsonl(tmp_path / f"{n}/train.jsonl", [{"text": f"of {n}", "domain": f"d{n % 2}"}])
  shards = map(str, sorted(tmp_path.glob("c4*")))
  assert domains_of("hash:0.5", *shards) == ("c4.en",)
  named = map(str, sorted(tmp_path.glob("*/train.jsonl")))
  assert domains_of("hash:0.5", *named) == ("d0", "d1")
  # What is held out may be called as what is trained on.
  write_jsonl(tmp_path / "7/c4.en.jsonl", [{"text": "held out"}])
  held_out = f"source:{tmp_path}/7/c4.en.jsonl"
  assert domains_of(held_out, f"{tmp_path}/c4.en.00000-of-00008.jsonl") == ("c4.en",)


@pytest.mark.parametrize("given", ["csv:books", "prose=csv:books", "TXT:books/*"])
def test_a_format_that_is_not_read_is_said_with_those_that_are(given):
  (source,) = corpus.parse_sources(given)
  words = r"is no format that is read: a source is \[domain=\]\[format:\]path, .* one of text:, js"
  with pytest.raises(UserError, match=words):
    read_source(source.path)
