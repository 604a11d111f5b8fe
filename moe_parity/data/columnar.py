"""Readers of columnar and record files: Parquet, Hugging Face's Arrow files, ArrayRecord.

A row that is no text costs that row; a file that cannot be read to its end stops. Their packages
are imported when a file needs them; a missing one is named.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from moe_parity.data import tf_example
from moe_parity.data.readers import BadRecords, Document, Fields, document
from moe_parity.data.storage import import_optional, local_copy, open_binary
from moe_parity.errors import UserError
from moe_parity.files import parse_json

_ROWS = 256
_ARROW_FILE = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"  # pyarrow takes a stream without it for whole


def read_parquet(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """A row is a record, counted from 1 over all row groups. Only the columns needed are read."""
  pyarrow = import_optional("pyarrow", "pyarrow", "reading Parquet")
  parquet = import_optional("pyarrow.parquet", "pyarrow", "reading Parquet")
  with open_binary(path) as file:
    try:
      table = parquet.ParquetFile(file, page_checksum_verification=True)
      columns = _columns(path, table.schema_arrow.names, fields)
      batches = table.iter_batches(batch_size=_ROWS, columns=columns)
      yield from _rows(path, batches, fields, bad, pyarrow)
    except (pyarrow.ArrowException, OSError) as error:
      bad.stop(path, 1, f"not readable as Parquet ({_line(error)})")


def read_arrow(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """An Arrow stream, as in the folders of `datasets.save_to_disk`, or an Arrow (Feather 2) file."""
  pyarrow = import_optional("pyarrow", "pyarrow", "reading Arrow files")
  with open_binary(path) as file:
    try:
      if file.read(len(_ARROW_FILE)) == _ARROW_FILE:
        file.seek(0)
        opened = pyarrow.ipc.open_file(file)
        batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
      else:
        file.seek(-len(_STREAM_END), 2)
        if file.read() != _STREAM_END:
          bad.stop(path, 1, "not readable as an Arrow stream (no end mark: damaged or cut off)")
        file.seek(0)
        opened = pyarrow.ipc.open_stream(file)
        batches = iter(opened)
      columns = _columns(path, opened.schema.names, fields)
      selected = (batch.select(columns) for batch in batches)
      yield from _rows(path, selected, fields, bad, pyarrow)
    except (pyarrow.ArrowException, OSError) as error:
      bad.stop(path, 1, f"not readable as Arrow ({_line(error)})")


def _columns(path: str, present: list[str], fields: Fields) -> list[str]:
  """The columns that hold the keys: of a nested key, the column it begins with."""
  columns = {key: _column(present, key) for key in
           (fields.text_key, fields.domain_key, fields.source_key)}  # fmt: skip
  if twice := [name for name in columns.values() if name and present.count(name) > 1]:
    raise UserError(
      f"{path} has {present.count(twice[0])} columns {twice[0]!r}, and which is meant is not known;"
      f" write the file again with one"
    )
  if columns[fields.text_key] is None:
    raise UserError(
      f"{path} has no column {fields.text_key!r} (it has {', '.join(present)}); set text_key"
    )
  return list(dict.fromkeys(name for name in columns.values() if name is not None))


def _column(present: list[str], key: str) -> str | None:
  while key not in present:
    key, dot, _ = key.rpartition(".")
    if not dot:
      return None
  return key


def _rows(
  path: str, batches: Iterator, fields: Fields, bad: BadRecords, pyarrow: Any
) -> Iterator[Document]:
  number = 0
  while True:
    try:
      batch = next(batches, None)
      if batch is None:
        return
      _check(batch, pyarrow)
    except (pyarrow.ArrowException, OSError) as error:
      bad.stop(path, number + 1, f"the file is damaged or cut off here ({_line(error)})")
    for row, record in enumerate(_records(batch)):
      number += 1
      size = partial(_num_bytes, batch, row)
      if isinstance(record, UnicodeDecodeError):
        bad.report(path, number, f"not UTF-8 ({_line(record)})", size())
      elif found := document(record, path, number, fields, bad, size):
        yield found


def _num_bytes(batch: Any, row: int) -> int:
  return batch.slice(row, 1).nbytes


def _check(batch: Any, pyarrow: Any) -> None:
  """Refuses a batch whose offsets point outside of it, and text that is not UTF-8, by its row."""
  try:
    batch.validate(full=True)
  except pyarrow.ArrowInvalid as error:
    if "UTF8" not in str(error):
      raise


def _records(batch: Any) -> list:
  """The rows as dicts, in place of a row with text that is not UTF-8 its error."""
  try:
    return batch.to_pylist()
  except UnicodeDecodeError:
    return [_record(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _record(row: Any) -> dict | UnicodeDecodeError:
  try:
    return row.to_pylist()[0]
  except UnicodeDecodeError as error:
    return error


def read_arrayrecord(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """Records that are JSON objects, tf.Examples (as TFDS writes them), or else UTF-8 text."""
  package = "array_record.python.array_record_module"
  module = import_optional(package, "array_record", "reading ArrayRecord")
  names = (fields.text_key, fields.domain_key, fields.source_key)
  with local_copy(path) as local:
    try:
      reader = module.ArrayRecordReader(local)
      total = reader.num_records()
    except (RuntimeError, ValueError) as error:
      bad.stop(path, 1, f"not readable as ArrayRecord ({_line(error)})")
    if total == 0:  # what the library makes of a file whose end is missing
      bad.stop(path, 1, "not readable as ArrayRecord (no records: empty, damaged or cut off)")
    for number in range(1, total + 1):
      data = b""
      try:
        data = reader.read([number - 1])[0]
        record = (
          parse_json(data, strict=False) if data[:1] == b"{" else tf_example.decode(data, names)
        )
        named = fields
        if record is None:
          record, named = {"text": data.decode("utf-8")}, fields.of_plain_text()
      except UnicodeDecodeError as error:
        bad.report(path, number, f"not UTF-8 at byte {error.start} of the record", len(data))
        continue
      except (RuntimeError, ValueError, IndexError, RecursionError) as error:
        bad.report(path, number, f"the record is damaged ({_line(error)})", len(data))
        continue
      if found := document(record, path, number, named, bad, len(data)):
        yield found


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:200]
