"""Formats by ending and by content; what says neither is refused."""

import bz2
import gzip
import json
import lzma
import random

import pytest
import zstandard

from moe_parity.data import corpus
from moe_parity.data.corpus import Source
from moe_parity.data.formats import FORMATS, file_label, format_of
from moe_parity.data.readers import BadRecords
from moe_parity.errors import UserError
from tests.helpers.small_store import read_source, records, write_jsonl

PACKERS = {
  "": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress,
  ".zst": zstandard.compress,
}  # fmt: skip
RECORDS = records(12)
LINES = "".join(json.dumps(r) + "\n" for r in RECORDS).encode()
LAYOUTS = {
  "lines": LINES,
  "lines without an end": LINES.rstrip(b"\n"),
  "a byte order mark": b"\xef\xbb\xbf" + LINES,
  "an array": json.dumps(RECORDS).encode(),
  "an array over lines": json.dumps(RECORDS, indent=2).encode(),
  "blanks before an array": b"\n  " + json.dumps(RECORDS).encode(),
}


def read(path, limit=0, **fields):
  documents, bad = read_source(path, limit, **fields)
  return [document.text for document in documents], bad


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".ndjson"])
def test_json_lines_are_records_under_every_ending(tmp_path, ending, packed):
  for name in (f"x{ending}{packed}", f"X{ending}{packed}".upper()):
    (tmp_path / name).write_bytes(PACKERS[packed](LINES))
    assert read(tmp_path / name)[0] == [r["text"] for r in RECORDS]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl.gz"])
def test_json_is_read_by_what_it_holds(tmp_path, layout, name):
  pack = PACKERS[".gz" if name.endswith("gz") else ""]
  (tmp_path / name).write_bytes(pack(LAYOUTS[layout]))
  assert read(tmp_path / name)[0] == [r["text"] for r in RECORDS]


def test_one_record_over_many_lines_is_one_document(tmp_path):
  (tmp_path / "x.json").write_text(json.dumps(RECORDS[0], indent=1))
  assert read(tmp_path / "x.json")[0] == [RECORDS[0]["text"]]


@pytest.mark.parametrize("name", [
  "x.csv", "x.tsv", "x.html", "x.CSV.gz", "x.pdf", "x.tar.gz", "x.jsonl.zip", "x", "part-00000",
  "x.jsonl.lz4", ".../x.dat",
])  # fmt: skip
def test_an_ending_that_says_no_format_is_refused(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(gzip.compress(LINES) if name.endswith(".gz") else LINES)
  with pytest.raises(UserError, match="says no format.*state the format.*text:"):
    read(path)
  if not name.endswith((".zip", ".lz4")):
    assert read(path, format="json")[0] == [r["text"] for r in RECORDS]
    assert read(path, format="text")[0] == [LINES.decode()]


def test_one_unknown_file_refuses_its_folder_before_reading(tmp_path):
  (tmp_path / "a.jsonl").write_text("broken")
  (tmp_path / "b.csv").write_text("a,b\n")
  with pytest.raises(UserError, match="b.csv has the ending"):
    read(tmp_path)


def test_records_under_the_name_of_text_are_refused(tmp_path):
  (tmp_path / "x.txt").write_bytes(LINES)
  with pytest.raises(UserError, match="first line is a JSON record"):
    read(tmp_path / "x.txt")
  assert read(tmp_path / "x.txt", format="json")[0] == [r["text"] for r in RECORDS]
  assert read(tmp_path / "x.txt", format="text")[0] == [LINES.decode()]


@pytest.mark.parametrize("packed", [ending for ending in PACKERS if ending])
def test_an_archive_without_its_ending_is_known_by_content(tmp_path, packed):
  (tmp_path / "x.jsonl").write_bytes(PACKERS[packed](LINES))
  assert read(tmp_path / "x.jsonl")[0] == [r["text"] for r in RECORDS]


@pytest.mark.parametrize("packed", [ending for ending in PACKERS if ending])
def test_text_under_the_ending_of_an_archive_stops(tmp_path, packed):
  (tmp_path / f"x.jsonl{packed}").write_bytes(LINES)
  with pytest.raises(UserError, match="damaged.*max_bad_records does not cover it"):
    read(tmp_path / f"x.jsonl{packed}", limit=1000)


def big(count=4000):
  rng = random.Random(1)
  lines = [json.dumps({"text": f"{i} {rng.random()}"}).encode() + b"\n" for i in range(count)]
  return b"".join(lines[: count // 2]), b"".join(lines[count // 2 :])


@pytest.mark.parametrize("packed", [ending for ending in PACKERS if ending])
def test_members_of_an_archive_are_read_to_their_ends(tmp_path, packed):
  pack, (one, two) = PACKERS[packed], big()
  path = tmp_path / f"x.jsonl{packed}"
  padding = b"" if packed == ".zst" else b"\0" * 512
  path.write_bytes(pack(one) + pack(two) + padding)
  assert len(read(path)[0]) == 4000


@pytest.mark.parametrize("packed", [ending for ending in PACKERS if ending])
@pytest.mark.parametrize(
  "damage", ["cut", "cut in the second", "flipped", "garbage", "second head"]
)
def test_damage_in_an_archive_stops_whatever_the_limit(tmp_path, packed, damage):
  pack, (one, two) = PACKERS[packed], big()
  if packed == ".zst":  # its checksum is an option of the writer
    pack = zstandard.ZstdCompressor(write_checksum=True).compress
  first, second = pack(one), pack(two)
  data = {
    "cut": first[: len(first) // 2],
    "cut in the second": first + second[:-30],
    "flipped": first[: len(first) // 2] + b"\x55\xaa" + first[len(first) // 2 + 2 :] + second,
    "garbage": first + second + b"more",
    "second head": first + b"\x01" + second[1:],
  }[damage]
  (tmp_path / f"x.jsonl{packed}").write_bytes(data)
  with pytest.raises(UserError, match="damaged or cut off.*does not cover"):
    read(tmp_path / f"x.jsonl{packed}", limit=10_000)


@pytest.mark.parametrize("data", [
  b"", LINES[:-30], json.dumps(RECORDS).encode()[:-9], b"[3, ", LINES.decode().encode("utf-16"),
])  # fmt: skip
def test_a_json_file_that_breaks_off_stops_whatever_the_limit(tmp_path, data):
  (tmp_path / "x.json").write_bytes(data)
  with pytest.raises(UserError, match="how much of the file is lost is not known"):
    read(tmp_path / "x.json", limit=1000)


def test_lost_rows_and_bytes_are_counted(tmp_path):
  lost = [b'{"text": 3}\n', b"\n", b'{"text": "\xff"}\n', b"[" * 100_000 + b"\n"]
  (tmp_path / "x.jsonl").write_bytes(LINES + b"".join(lost) + LINES)
  found, bad = read(tmp_path / "x.jsonl", limit=4)
  assert (len(found), bad.count, bad.num_bytes) == (24, 4, sum(map(len, lost)))
  (tmp_path / "y.json").write_text(json.dumps([{"text": 3}, *RECORDS]))
  assert read(tmp_path / "y.json", limit=1)[1].num_bytes == len('{"text": 3}')
  (tmp_path / "z.txt").write_bytes(b"\xff" * 777)
  with pytest.raises(UserError, match="holds no document"):
    read(tmp_path / "z.txt", limit=1)


def test_all_bytes_of_a_long_bad_record_are_counted(tmp_path):
  text = '{\n"tex": "' + "x" * 600_000 + '"\n}'
  (tmp_path / "f").mkdir()
  (tmp_path / "f" / "a.json").write_text(text)
  write_jsonl(tmp_path / "f" / "b.jsonl", [{"text": "a"}])
  found, bad = read(tmp_path / "f", limit=1)
  assert (len(found), bad.count, bad.num_bytes) == (1, 1, len(text))


@pytest.mark.parametrize("path, label", [
  ("a/c4.en.jsonl.gz", "c4.en"), ("c4.de.00003-of-01024.json.gz", "c4.de"), ("x.JSONL.GZ", "x"),
  ("notes", "notes"), ("v1.2", "v1.2"), ("a.b/c-00000-of-00002.parquet", "c"), ("x.csv", "x.csv"),
  (".jsonl", ".jsonl"), ("c4-train.3.json", "c4-train.3"),
])  # fmt: skip
def test_a_label_keeps_the_dots_of_its_name(path, label):
  assert file_label(path) == label


def test_names_that_differ_after_a_dot_are_two_domains(tmp_path):
  for name in ("c4.en", "c4.de"):
    (tmp_path / f"{name}.jsonl").write_bytes(json.dumps({"text": name}).encode())
    (tmp_path / f"v.{name}").mkdir()
    (tmp_path / f"v.{name}" / "x.jsonl").write_bytes(json.dumps({"text": name}).encode())
  one, two = (next(iter(corpus.documents(Source(str(tmp_path / f"{name}.jsonl")), BadRecords())))
              for name in ("c4.en", "c4.de"))  # fmt: skip
  assert (one.domain, two.domain, one.source) == ("c4.en", "c4.de", "c4.en")
  folder = next(iter(corpus.documents(Source(str(tmp_path / "v.c4.en")), BadRecords())))
  assert (folder.domain, folder.source) == ("v.c4.en", "x")


def test_a_linked_source_has_the_name_it_is_given_by(tmp_path):
  (tmp_path / "blob").write_bytes(LINES)
  (tmp_path / "c4.en.jsonl").symlink_to(tmp_path / "blob")
  found = next(iter(corpus.documents(Source(str(tmp_path / "c4.en.jsonl")), BadRecords())))
  assert found.source == "work-0"
  assert Source(str(tmp_path / "c4.en.jsonl")).fields().default_domain == "c4.en"


def test_every_stated_format_has_a_reader():
  assert set(FORMATS) == set(corpus._READERS)
  assert [format_of("x.PARQUET"), format_of("x.py"), format_of("x", "json")] == [
    "parquet", "text", "json",
  ]  # fmt: skip
