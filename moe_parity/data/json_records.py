"""JSON files, by content: a record a line, an array of records, or one record over many lines."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from moe_parity.data.compressed import DamagedFileError, chunks, lines
from moe_parity.data.readers import BadRecords, Document, Fields, document
from moe_parity.files import parse_json

LONGEST_ARRAY = 1 << 30  # bytes of an array, which is read whole
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such a file begins


def read_json(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """Documents of a .json, .jsonl or .ndjson file, plain or compressed.

  A file that begins with [ is one array; one whose first line is { alone is one record; any other
  has a record a line. A bad line costs itself. An array, or a last line, that breaks off stops.
  """
  pieces = chunks(path)
  try:
    first = b""
    while not first.lstrip(_BLANK).removeprefix(_BOM).lstrip(_BLANK):
      more = next(pieces, None)
      if more is None:
        break
      first += more
  except DamagedFileError as error:
    bad.stop(path, 1, f"the archive is damaged or cut off here ({error})")
  if first.startswith(_UTF_16):
    bad.stop(path, 1, "it is UTF-16, and JSON is read as UTF-8: convert it")
  pieces = itertools.chain([first], pieces)
  start = first.removeprefix(_BOM).lstrip(_BLANK)
  if start.startswith(b"["):
    yield from _array(pieces, path, fields, bad)
  elif start.split(b"\n", 1)[0].strip() == b"{":
    sizes: list[int] = []
    record = _whole(_counted(pieces, sizes), path, bad)
    if found := document(record, path, 1, fields, bad, sum(sizes)):
      yield found
  else:
    yield from parse_json_lines(lines(pieces), path, fields, bad)


def parse_json_lines(
  found: Iterator[bytes], path: str, fields: Fields, bad: BadRecords
) -> Iterator[Document]:
  r"""One JSON object a line; a line is a record, counted from 1.

  Args:
    found: lines with their b"\n". One without it that is no JSON is where the file was cut off.
  """
  for number in itertools.count(1):
    try:
      line = next(found, None)
    except DamagedFileError as error:
      bad.stop(path, number, f"the archive is damaged or cut off here ({error})")
    if line is None:
      return
    if not line.strip():
      bad.report(path, number, "the line is empty", len(line))
      continue
    try:
      record = parse_json(line.removeprefix(_BOM) if number == 1 else line, strict=False)
    except ValueError as error:
      if not line.endswith(b"\n"):
        bad.stop(path, number, f"{_reason(error)}, and the file ends in it: it is cut off")
      bad.report(path, number, _reason(error), len(line))
      continue
    if made := document(record, path, number, fields, bad, len(line)):
      yield made


def _reason(error: Exception) -> str:
  if isinstance(error, UnicodeDecodeError):
    return f"not UTF-8 at byte {error.start} of the record"
  return f"not a JSON record ({error})"


def _array(
  pieces: Iterator[bytes], path: str, fields: Fields, bad: BadRecords
) -> Iterator[Document]:
  for number, record in enumerate(_whole(pieces, path, bad), 1):
    size = partial(_num_bytes, record)
    if found := document(record, path, number, fields, bad, size):
      yield found


def _num_bytes(record: object) -> int:
  with contextlib.suppress(RecursionError):
    return len(json.dumps(record))
  return 0


def _counted(pieces: Iterator[bytes], sizes: list[int]) -> Iterator[bytes]:
  """The same pieces; the bytes of each are appended to `sizes`."""
  for piece in pieces:
    sizes.append(len(piece))
    yield piece


def _whole(pieces: Iterator[bytes], path: str, bad: BadRecords) -> Any:
  """The one JSON value of a file."""
  parts, num_bytes = [], 0
  try:
    for piece in pieces:
      num_bytes += len(piece)
      if num_bytes > LONGEST_ARRAY:
        bad.stop(path, 1, f"one JSON value of over {LONGEST_ARRAY:,} bytes; write a record a line")
      parts.append(piece)
    return parse_json(b"".join(parts).removeprefix(_BOM), strict=False)
  except DamagedFileError as error:
    bad.stop(path, 1, f"the archive is damaged or cut off ({error})")
  except ValueError as error:
    bad.stop(path, 1, f"{_reason(error)}, in a file that is one JSON value")
