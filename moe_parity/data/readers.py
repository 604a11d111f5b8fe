"""Files to documents: one reader a format, every bad record named by file and number.

A reader is a generator over one file. What it cannot turn into a document goes to `BadRecords`,
which stops at the first one over its limit; nothing is skipped without being counted.
"""

import bz2
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from moe_parity.data import storage
from moe_parity.data.storage import import_optional, open_binary
from moe_parity.errors import UserError

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
_SUFFIXES = {
  "jsonl": (".jsonl", ".ndjson"),
  "parquet": (".parquet",),
  "arrow": (".arrow",),
  "arrayrecord": (".arrayrecord", ".array_record"),
}
_CHUNK_BYTES = 1 << 20
_KEPT_MESSAGES = 20


@dataclass(frozen=True, slots=True)
class Document:
  """One text, the domain its bits are reported under, and the work it came from."""

  text: str
  domain: str
  source: str


@dataclass
class BadRecords:
  """Counts what could not be read; raises once there is more of it than the caller allowed.

  Args:
    limit: bad records tolerated over all files; 0 stops at the first.
  """

  limit: int = 0
  count: int = 0
  messages: list[str] = field(default_factory=list)

  def report(self, file: str, record: int, reason: str) -> None:
    """Record numbers start at 1. Raises UserError when `limit` is passed."""
    self.count += 1
    message = f"{file}, record {record}: {reason}"
    if len(self.messages) < _KEPT_MESSAGES:
      self.messages.append(message)
    if self.count > self.limit:
      raise UserError(
        f"{message}; bad records allowed: {self.limit}, found so far: {self.count}; mend the file "
        f"or raise max_bad_records"
      )


@dataclass(frozen=True, slots=True)
class Fields:
  """Which keys of a record hold what.

  `domain`, where it is given, is that of every record; otherwise a record names its own, and
  `default_domain`, or the file's name, is for those that do not.
  """

  text_key: str = "text"
  domain_key: str = "domain"
  source_key: str = "source"
  domain: str = ""
  default_domain: str = ""

  def of_plain_text(self) -> "Fields":
    """The same for a record that is {"text": ...} because the file has no fields."""
    return Fields(domain=self.domain, default_domain=self.default_domain)


def stem(path: str) -> str:
  """File name without folder, compression and format: 'a/prose.jsonl.zst' -> 'prose'."""
  return os.path.basename(path.rstrip("/")).split(".")[0]


def document(record: object, file: str, number: int, fields: Fields, bad: BadRecords):
  """Document of one decoded record, or None after reporting what is wrong with it."""
  if not isinstance(record, dict):
    bad.report(file, number, f"an object with a text field is needed, got {type(record).__name__}")
    return None
  text = record.get(fields.text_key)
  if not isinstance(text, str):
    found = "is missing" if text is None else f"is a {type(text).__name__}"
    bad.report(file, number, f"field {fields.text_key!r} {found}; it must be a string")
    return None
  if not text.strip():
    bad.report(file, number, "the text is empty")
    return None
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    bad.report(file, number, f"lone surrogate at character {error.start}: not valid Unicode text")
    return None
  domain = fields.domain or record.get(fields.domain_key) or fields.default_domain or stem(file)
  source = record.get(fields.source_key) or stem(file)
  return Document(text, str(domain), str(source))


def _zstd_chunks(raw) -> Iterator[bytes]:
  zstandard = import_optional("zstandard", "zstandard", "reading .zst files")
  decoder, started = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), False
  while chunk := raw.read(_CHUNK_BYTES):
    while chunk:
      started = True
      try:
        yield decoder.decompress(chunk)
      except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
      chunk = b""
      if decoder.eof:
        chunk, started = decoder.unused_data, False
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
  if started:
    raise EOFError("the last zstd frame has no end")


def _lines(path: str) -> Iterator[bytes]:
  """Lines of a plain or compressed file; EOFError or OSError where an archive breaks off."""
  with open_binary(path) as raw:
    if path.endswith(".zst"):
      rest = b""
      for chunk in _zstd_chunks(raw):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
      if rest:
        yield rest
      return
    opener = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}.get(path.rsplit(".", 1)[-1])
    with opener(raw, "rb") if opener else raw as stream:
      yield from stream


def parse_jsonl(
  lines: Iterator[bytes], path: str, fields: Fields, bad: BadRecords
) -> Iterator[Document]:
  """One JSON object a line; a line is a record, counted from 1."""
  number = 0
  while True:
    number += 1
    try:
      line = next(lines, None)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
      bad.report(path, number, f"the archive is damaged or cut off here ({error})")
      return
    if line is None:
      return
    if not line.strip():
      bad.report(path, number, "the line is empty")
      continue
    try:
      record = json.loads(line)
    except UnicodeDecodeError as error:
      bad.report(path, number, f"not UTF-8 at byte {error.start} of the record")
      continue
    except ValueError as error:
      bad.report(path, number, f"not a JSON record ({error})")
      continue
    if found := document(record, path, number, fields, bad):
      yield found


def read_jsonl(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """Records of a .jsonl file, plain or compressed."""
  return parse_jsonl(_lines(path), path, fields, bad)


def read_text(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """The whole file is one document; bytes are kept as they are, line ends included."""
  try:
    data = b"".join(_lines(path))
    text = data.decode("utf-8")
  except UnicodeDecodeError as error:
    bad.report(path, 1, f"not UTF-8 at byte {error.start}")
    return
  except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
    bad.report(path, 1, f"the archive is damaged or cut off ({error})")
    return
  if found := document({"text": text}, path, 1, fields.of_plain_text(), bad):
    yield found


def format_of(path: str) -> str:
  """'jsonl', 'parquet', 'arrow', 'arrayrecord' or 'text', by the file's name."""
  name = path.lower()
  for suffix in COMPRESSIONS:
    name = name.removesuffix(suffix)
  for kind, suffixes in _SUFFIXES.items():
    if name.endswith(suffixes):
      return kind
  return "text"


def files_of(path: str) -> list[str]:
  """The file itself; the files of a folder or of a pattern (*, ?, [...]) in sorted order.

  A folder that Hugging Face's `save_to_disk` wrote gives its data files in their order.
  """
  if storage.is_file(storage.join(path, "dataset_dict.json")):
    splits = json.loads(storage.read_text(storage.join(path, "dataset_dict.json")))["splits"]
    raise UserError(f"{path} holds several splits; give one of {', '.join(splits)} below it")
  state, info = storage.join(path, "state.json"), storage.join(path, "dataset_info.json")
  if storage.is_file(state) and storage.is_file(info):
    listed = json.loads(storage.read_text(state))["_data_files"]
    return [storage.join(path, entry["filename"]) for entry in listed]
  found = storage.list_files(path)
  if not found and os.path.isdir(path):
    raise UserError(f"{path} is a folder without files; a corpus needs at least one document")
  if not found:
    raise UserError(f"{path} does not exist; give a file, a folder or a pattern, or 'builtin'")
  return found
