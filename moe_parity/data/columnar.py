"""Readers of columnar and record files: Parquet, Hugging Face's Arrow files, ArrayRecord.

Their packages are imported when a file needs them; a missing one is named.
"""

import json
from collections.abc import Iterator
from typing import Any

from moe_parity.data import tf_example
from moe_parity.data.readers import BadRecords, Document, Fields, document
from moe_parity.data.storage import import_optional, local_copy, open_binary
from moe_parity.errors import UserError

_ROWS = 256


def read_parquet(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """A row is a record, counted from 1 over all row groups. Only the columns needed are read."""
  pyarrow = import_optional("pyarrow", "pyarrow", "reading Parquet")
  parquet = import_optional("pyarrow.parquet", "pyarrow", "reading Parquet")
  with open_binary(path) as file:
    try:
      table = parquet.ParquetFile(file)
      columns = _columns(path, table.schema_arrow.names, fields)
      batches = table.iter_batches(batch_size=_ROWS, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
      bad.report(path, 1, f"not readable as Parquet ({_line(error)})")
      return
    yield from _rows(path, batches, fields, bad, pyarrow)


def read_arrow(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """An Arrow stream, as in the folders of `datasets.save_to_disk`."""
  pyarrow = import_optional("pyarrow", "pyarrow", "reading Arrow files")
  with open_binary(path) as file:
    try:
      stream = pyarrow.ipc.open_stream(file)
      columns = _columns(path, stream.schema.names, fields)
      batches = (batch.select(columns) for batch in stream)
    except (pyarrow.ArrowException, OSError) as error:
      bad.report(path, 1, f"not readable as an Arrow stream ({_line(error)})")
      return
    yield from _rows(path, batches, fields, bad, pyarrow)


def _columns(path: str, present: list[str], fields: Fields) -> list[str]:
  if fields.text_key not in present:
    raise UserError(
      f"{path} has no column {fields.text_key!r} (it has {', '.join(present)}); set text_key"
    )
  wanted = (fields.text_key, fields.domain_key, fields.source_key)
  return [name for name in dict.fromkeys(wanted) if name in present]


def _rows(
  path: str, batches: Iterator, fields: Fields, bad: BadRecords, pyarrow: Any
) -> Iterator[Document]:
  number = 0
  while True:
    try:
      batch = next(batches, None)
      records = None if batch is None else batch.to_pylist()
    except UnicodeDecodeError as error:
      bad.report(path, number + 1, f"not UTF-8 in this or the next {_ROWS - 1} rows ({error})")
      return
    except (pyarrow.ArrowException, OSError) as error:
      bad.report(path, number + 1, f"the file is damaged or cut off here ({_line(error)})")
      return
    if records is None:
      return
    for record in records:
      number += 1
      if found := document(record, path, number, fields, bad):
        yield found


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
      bad.report(path, 1, f"not readable as ArrayRecord ({_line(error)})")
      return
    if total == 0:  # what the library makes of a file whose end is missing
      bad.report(path, 1, "not readable as ArrayRecord (no records: empty, damaged or cut off)")
    for number in range(1, total + 1):
      try:
        data = reader.read([number - 1])[0]
        record = json.loads(data) if data[:1] == b"{" else tf_example.decode(data, names)
        named = fields
        if record is None:
          record, named = {"text": data.decode("utf-8")}, fields.of_plain_text()
      except UnicodeDecodeError as error:
        bad.report(path, number, f"not UTF-8 at byte {error.start} of the record")
        continue
      except (RuntimeError, ValueError) as error:
        bad.report(path, number, f"the record is damaged ({_line(error)})")
        continue
      if found := document(record, path, number, named, bad):
        yield found


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:200]
