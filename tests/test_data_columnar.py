import json
import struct

import pytest

from moe_parity.data import corpus
from moe_parity.data.corpus import Source
from moe_parity.errors import UserError
from tests.helpers.small_store import read_source, records, write_jsonl

TEXTS = [r["text"] for r in records(700)]  # over two batches of rows


def parquet(path, listed):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as module

  module.write_table(pyarrow.Table.from_pylist(listed), path, row_group_size=100)
  return path


def arrow(path, listed):
  pyarrow = pytest.importorskip("pyarrow")
  table = pyarrow.Table.from_pylist(listed)
  with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
    writer.write_table(table, max_chunksize=100)
  return path


def arrayrecord(path, listed):
  module = pytest.importorskip("array_record.python.array_record_module")
  writer = module.ArrayRecordWriter(str(path), "group_size:16")
  for record in listed:
    writer.write(record if isinstance(record, bytes) else json.dumps(record).encode())
  writer.close()
  return path


WRITERS = {"parquet": parquet, "arrow": arrow, "arrayrecord": arrayrecord}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_documents_that_were_written(tmp_path, kind):
  path = WRITERS[kind](tmp_path / f"x.{kind}", records(700))
  found, _ = read_source(path)
  assert [d.text for d in found] == TEXTS
  assert [(d.domain, d.source) for d in found] == [(r["domain"], r["source"]) for r in records(700)]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_row_without_text_is_named_by_its_number(tmp_path, kind):
  listed = records(300)
  listed[270] |= {"text": None}
  path = WRITERS[kind](tmp_path / f"x.{kind}", listed)
  with pytest.raises(UserError, match=f"x.{kind}, record 271: field 'text' is null"):
    read_source(path)
  found, bad = read_source(path, limit=1)
  assert len(found) == 299 and bad.count == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_missing_column_is_named(tmp_path, kind):
  path = WRITERS[kind](tmp_path / f"x.{kind}", [{"body": "a"}])
  with pytest.raises(UserError, match="no column 'text' .it has body"):
    read_source(path)
  assert read_source(path, text_key="body")[0][0].text == "a"


def test_a_column_that_is_there_twice_is_refused(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as module

  columns = [pyarrow.array(["one"]), pyarrow.array(["two"])]
  module.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "x.pq")
  with pytest.raises(UserError, match="x.pq has 2 columns 'text', and which is meant is not known"):
    read_source(tmp_path / "x.pq")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_truncated_file_is_refused(tmp_path, kind):
  path = WRITERS[kind](tmp_path / f"x.{kind}", records(700))
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  with pytest.raises(UserError, match=f"x.{kind}, record [0-9]+: .*(readable|damaged)"):
    read_source(path)


def test_arrayrecord_also_holds_plain_text(tmp_path):
  path = arrayrecord(tmp_path / "notes.arrayrecord", ["é\n".encode(), b"two"])
  found, _ = read_source(path, domain="d", text_key="unused")
  assert [(d.text, d.domain, d.source) for d in found] == [
    ("é\n", "d", "notes"),
    ("two", "d", "notes"),
  ]
  bad = arrayrecord(tmp_path / "bad.arrayrecord", [b"one", b"\xff", b"{broken", b"four"])
  found, counted = read_source(bad, limit=2)
  assert [d.text for d in found] == ["one", "four"]
  assert "record 2: not UTF-8" in counted.messages[0] and "record 3" in counted.messages[1]


def tf_example(**features):
  """tf.Example by its wire format: (tag, length, payload) of each message inside the other."""

  def field(number, payload):
    length, size = b"", len(payload)
    while size > 127:
      length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload

  entries = b""
  for name, value in features.items():
    if isinstance(value, bytes):
      feature = field(1, field(1, value))
    elif isinstance(value, float):
      feature = field(2, field(1, struct.pack("<f", value)))
    else:
      feature = field(3, field(1, bytes([value])))
    entries += field(1, field(1, name.encode()) + field(2, feature))
  return field(1, entries)


def test_arrayrecord_holds_tf_examples_as_tfds_writes_them(tmp_path):
  long = "été " * 200
  listed = [
    tf_example(id=7, text=long.encode(), score=0.5, lang=b"fr", image=b"\xff\xd8"),
    tf_example(text=b"two"),
    b"\n two lines that begin like one\n",
    b"\n\x02(\x01",
  ]
  path = arrayrecord(tmp_path / "train.arrayrecord", listed)
  found, _ = read_source(path, domain_key="lang", source_key="id")
  assert [(d.text, d.domain, d.source) for d in found] == [
    (long, "fr", "7"),
    ("two", "train", "train"),
    ("\n two lines that begin like one\n", "train", "train"),
    ("\n\x02(\x01", "train", "train"),  # one with an unknown field and no features
  ]
  bad = arrayrecord(
    tmp_path / "bad.arrayrecord",
    [tf_example(text=b"\xff\xfe"), tf_example(body=b"a"), tf_example(text=3), b"good"],
  )
  found, counted = read_source(bad, limit=3)
  assert [d.text for d in found] == ["good"]
  for number, words in enumerate(("not UTF-8", "'text' is missing", "'text' is a int"), 1):
    assert f"record {number}: " in counted.messages[number - 1]
    assert words in counted.messages[number - 1]


def test_a_folder_of_save_to_disk_is_read_in_its_own_order(tmp_path):
  arrow(tmp_path / "data-1.arrow", records(10))
  arrow(tmp_path / "data-0.arrow", records(10, seed=1))
  files = [{"filename": "data-1.arrow"}, {"filename": "data-0.arrow"}]
  (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
  (tmp_path / "dataset_info.json").write_text("{}")
  found, _ = read_source(tmp_path)
  assert [d.text for d in found] == [r["text"] for r in records(10) + records(10, seed=1)]


def test_a_folder_of_several_splits_asks_for_one(tmp_path):
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  with pytest.raises(UserError, match="give one of train, test below it"):
    read_source(tmp_path)


def test_a_path_with_a_scheme_is_read_like_a_local_one(tmp_path):
  write_jsonl(tmp_path / "b.jsonl", records(4))
  (tmp_path / "a.txt").write_text("text")
  found, _ = read_source(f"file://{tmp_path}")
  assert [d.text for d in found] == ["text"] + [r["text"] for r in records(4)]
  assert [f["bytes"] for f in corpus.content_of(Source(f"file://{tmp_path}"))][0] == 4
  with pytest.raises(UserError, match="does not exist"):
    read_source(f"file://{tmp_path}/missing")
  with pytest.raises(UserError, match="cannot be opened"):
    read_source("noscheme://bucket/x.jsonl")


def test_zstd_is_read_frame_by_frame_and_a_cut_is_noticed(tmp_path):
  zstandard = pytest.importorskip("zstandard")
  lines = [json.dumps(r).encode() + b"\n" for r in records(4000)]
  frames = [zstandard.compress(b"".join(lines[i : i + 1500])) for i in (0, 1500, 3000)]
  path = tmp_path / "x.jsonl.zst"
  path.write_bytes(b"".join(frames))
  found, _ = read_source(path)
  assert [d.text for d in found] == [r["text"] for r in records(4000)]
  path.write_bytes(b"".join(frames)[:-20])
  with pytest.raises(UserError, match="record [0-9]+: the archive is damaged or cut off"):
    read_source(path)


def with_bad_rows(kind, path, bad, count=700):
  """A file whose rows `bad` hold bytes that are no UTF-8 in a column of strings."""
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as module

  raw = [b"\xff\xfe" if row in bad else text.encode() for row, text in enumerate(TEXTS[:count])]
  column = pyarrow.array(raw, pyarrow.binary())
  strings = pyarrow.Array.from_buffers(pyarrow.string(), len(column), column.buffers())
  table = pyarrow.table({"text": strings, "domain": ["d"] * len(raw)})
  if kind == "parquet":
    module.write_table(table, path, row_group_size=100)
  elif kind == "stream":
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
      writer.write_table(table, max_chunksize=100)
  else:
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
      writer.write_table(table, max_chunksize=100)
  return path


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_a_bad_row_costs_that_row(tmp_path, kind):
  bad_rows = {0, 30, 31, 256, 699}
  ending = "parquet" if kind == "parquet" else "arrow"
  path = with_bad_rows(kind, tmp_path / f"x.{ending}", bad_rows)
  found, bad = read_source(path, limit=5)
  assert [d.text for d in found] == [t for row, t in enumerate(TEXTS) if row not in bad_rows]
  assert bad.count == 5 and bad.num_bytes > 0
  for row, message in zip(sorted(bad_rows), bad.messages, strict=True):
    assert f"record {row + 1}: not UTF-8" in message
  with pytest.raises(UserError, match="record 700: .*allowed: 4, found so far: 5"):
    read_source(path, limit=4)


@pytest.mark.parametrize("ending", ["arrow", "feather", "ARROW", "ipc"])
def test_arrow_files_are_read_like_streams(tmp_path, ending):
  path = with_bad_rows("file", tmp_path / f"x.{ending}", ())
  assert [d.text for d in read_source(path)[0]] == TEXTS


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, -1, -9])
def test_a_cut_columnar_file_stops_whatever_the_limit(tmp_path, kind, part):
  path = with_bad_rows(kind, tmp_path / f"x.{'parquet' if kind == 'parquet' else 'arrow'}", ())
  data = path.read_bytes()
  path.write_bytes(data[: int(part * len(data))] if part >= 0 else data[:part])
  with pytest.raises(UserError, match="how much of the file is lost is not known"):
    read_source(path, limit=10**6)


def test_a_stream_cut_between_two_batches_stops(tmp_path):
  """pyarrow takes it for whole: a stream needs no end mark there."""
  pyarrow = pytest.importorskip("pyarrow")
  path = with_bad_rows("stream", tmp_path / "x.arrow", ())
  data = path.read_bytes()
  with pyarrow.ipc.open_stream(data) as stream:
    whole = stream.read_all().num_rows
  for cut in range(len(data) - 16, 0, -8):
    path.write_bytes(data[:cut])
    with pytest.raises(UserError, match="cut off"):
      read_source(path, limit=10**6)
    try:
      with pyarrow.ipc.open_stream(data[:cut]) as stream:
        if stream.read_all().num_rows < whole:
          return
    except (pyarrow.ArrowException, OSError):
      continue
  raise AssertionError("no cut that pyarrow accepts")


def test_a_column_store_of_another_format_stops(tmp_path):
  for name in ("x.parquet", "x.arrow", "x.arrayrecord"):
    (tmp_path / name).write_bytes(b'{"text": "a"}\n' * 50)
    with pytest.raises(UserError, match="not readable as"):
      read_source(tmp_path / name, limit=100)


def test_a_page_that_contradicts_its_checksum_stops(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet as module

  path = tmp_path / "x.parquet"
  options = dict(compression="none", use_dictionary=False, write_page_checksum=True)
  module.write_table(pyarrow.table({"text": TEXTS}), path, **options)
  assert len(read_source(path)[0]) == len(TEXTS)
  data = path.read_bytes()
  place = data.index(TEXTS[300].encode())
  path.write_bytes(data[:place] + b"X" + data[place + 1 :])
  with pytest.raises(UserError, match="how much of the file is lost is not known"):
    read_source(path, limit=10**6)
