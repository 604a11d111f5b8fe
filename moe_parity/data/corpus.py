"""Where text comes from: the built-in corpus, files, folders, several of them at once."""

import dataclasses
import hashlib
import lzma
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_parity.data import columnar, readers, storage
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
  "parquet": columnar.read_parquet,
  "arrow": columnar.read_arrow,
  "arrayrecord": columnar.read_arrayrecord,
}


@dataclass(frozen=True, slots=True)
class Source:
  """One place text comes from.

  Args:
    path: 'builtin', a file, or a folder or pattern whose files are read in sorted order; local or
      with a scheme such as gs://.
    domain: of all its documents; empty leaves it to the records, and for those that name none to
      the name of the folder or file.
    text_key, domain_key, source_key: fields of a record that hold these.
  """

  path: str
  domain: str = ""
  text_key: str = "text"
  domain_key: str = "domain"
  source_key: str = "source"

  def fields(self) -> Fields:
    # A pattern has no name of its own, so that each of its files gives its own.
    default = "" if storage.is_pattern(self.path) else _name(self.path)
    return Fields(self.text_key, self.domain_key, self.source_key, self.domain, default)

  def to_dict(self) -> dict:
    return asdict(self)


def parse_sources(text: str, **keys: str) -> list[Source]:
  """'a.jsonl,code=src/' -> sources in that order; `name=` says what domain all of it is.

  A folder whose own path has an equals sign is written './name=value'. `keys` are fields of
  `Source`, the same for all.
  """
  found = []
  for part in (part.strip() for part in text.split(",")):
    named = re.fullmatch(r"([\w.+-]+)=(.+)", part)
    path, domain = (named[2], named[1]) if named else (part, "")
    if not path:
      raise UserError(
        f"source={text!r} has an empty part; write paths with one comma between two, each with or "
        f"without a domain: prose=books/,code=src/"
      )
    found.append(Source(path, domain, **keys))
  return found


def _name(path: str) -> str:
  return readers.stem(path if storage.is_remote(path) else str(Path(path).resolve()))


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
  return [storage.stat_of(path) for path in readers.files_of(source.path)]


def documents(source: Source, bad: BadRecords, split: str = "train") -> Iterator[Document]:
  """Documents of one source, in a fixed order.

  Args:
    split: 'train' or 'validation'; only the built-in corpus knows the difference, every other
      source is one stream that `prepare` divides.
  Raises:
    UserError: the source is missing, holds no document, or holds more bad records than allowed.
  """
  if source.path == BUILTIN:
    for found in builtin(split):
      yield dataclasses.replace(found, domain=source.domain) if source.domain else found
    return
  num_documents = 0
  for path in readers.files_of(source.path):
    for found in _READERS[readers.format_of(path)](path, source.fields(), bad):
      num_documents += 1
      yield found
  if num_documents == 0:
    raise UserError(f"{source.path} holds no document; a corpus needs at least one")
