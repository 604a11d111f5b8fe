"""Where text comes from: the built-in corpus, files, folders, several of them at once."""

import hashlib
import lzma
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_parity.data import readers, tables
from moe_parity.data.readers import BadRecords, Document, Fields
from moe_parity.errors import UserError

BUILTIN = "builtin"
_FOLDER = Path(__file__).parent / "builtin"
_FILES = {"train": "classics.train.jsonl.xz", "validation": "classics.val.jsonl.xz"}
BUILTIN_SHA256 = {
  "train": "7c02a79b711ea0e6dac5592f66965b7b8503c4e71f8c0131b6e301cf9b9df10c",
  "validation": "661d6c0cab93a8c04793ca8da7d95efb4a2b469b3d86a5f7630d9436a17ccd41",
}
_READERS = {
  "jsonl": readers.read_jsonl,
  "text": readers.read_text,
  "parquet": tables.read_parquet,
  "arrow": tables.read_arrow,
  "arrayrecord": tables.read_arrayrecord,
}


@dataclass(frozen=True, slots=True)
class Source:
  """One place text comes from.

  Args:
    path: 'builtin', a file, or a folder whose files are read in sorted order.
    domain: for records that name none; empty means the file's name.
    text_key, domain_key, source_key: fields of a record that hold these.
  """

  path: str
  domain: str = ""
  text_key: str = "text"
  domain_key: str = "domain"
  source_key: str = "source"

  def fields(self) -> Fields:
    return Fields(self.text_key, self.domain_key, self.source_key, self.domain)

  def to_dict(self) -> dict:
    return asdict(self)


def builtin(split: str) -> Iterator[Document]:
  """Documents of the corpus inside the package, after checking its sha256."""
  file = _FOLDER / _FILES[split]
  try:
    data = lzma.decompress(file.read_bytes())
  except (lzma.LZMAError, EOFError) as error:
    raise UserError(f"{file} is damaged ({error}); install moe_parity again") from None
  found = hashlib.sha256(data).hexdigest()
  if found != BUILTIN_SHA256[split]:
    raise UserError(
      f"{file} has sha256 {found}, the built-in corpus has {BUILTIN_SHA256[split]}; "
      f"install moe_parity again"
    )
  bad = BadRecords()
  yield from readers.parse_jsonl(iter(data.splitlines()), str(file), Fields(), bad)


def files(source: Source) -> list[dict]:
  """Path, bytes and state of each file of a source, in reading order."""
  if source.path == BUILTIN:
    return [
      {"path": f"{BUILTIN}/{split}", "sha256": sha256} for split, sha256 in BUILTIN_SHA256.items()
    ]
  return [readers.stat_of(path) for path in readers.files_of(source.path)]


def documents(source: Source, bad: BadRecords, split: str = "train") -> Iterator[Document]:
  """Documents of one source, in a fixed order.

  Args:
    split: 'train' or 'validation'; only the built-in corpus knows the difference, every other
      source is one stream that `prepare` divides.
  Raises:
    UserError: the source is missing, holds no document, or holds more bad records than allowed.
  """
  if source.path == BUILTIN:
    yield from builtin(split)
    return
  num_documents = 0
  for path in readers.files_of(source.path):
    for found in _READERS[readers.format_of(path)](path, source.fields(), bad):
      num_documents += 1
      yield found
  if num_documents == 0:
    raise UserError(f"{source.path} holds no document; a corpus needs at least one")
