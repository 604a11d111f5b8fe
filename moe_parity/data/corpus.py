"""Where text comes from: the built-in corpus, files, folders, several of them at once."""

import dataclasses
import hashlib
import lzma
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_parity.data import columnar, content_hash, json_records, plain_text, storage
from moe_parity.data.formats import FORMATS, file_label, format_of, shared_name
from moe_parity.data.listing import Listing, is_pattern, list_files
from moe_parity.data.readers import BadRecords, Document, Fields
from moe_parity.errors import UserError
from moe_parity.escapes import escape, split, unescape
from moe_parity.fields.check import check_kind
from moe_parity.fields.table import DOMAIN_NAME

BUILTIN = "builtin"
_FOLDER = Path(__file__).parent / "builtin"
_FILES = {"train": "classics.train.jsonl.xz", "validation": "classics.val.jsonl.xz"}
BUILTIN_SHA256 = {
  "train": "7c02a79b711ea0e6dac5592f66965b7b8503c4e71f8c0131b6e301cf9b9df10c",
  "validation": "661d6c0cab93a8c04793ca8da7d95efb4a2b469b3d86a5f7630d9436a17ccd41",
}
_READERS = {
  "json": json_records.read_json,
  "text": plain_text.read_text,
  "parquet": columnar.read_parquet,
  "arrow": columnar.read_arrow,
  "arrayrecord": columnar.read_arrayrecord,
}


_STATED_DOMAIN = re.compile(r"((?:[\w.+-]|\\.)+)=(.+)", re.DOTALL)
_STATED_FORMAT = re.compile(rf"({'|'.join(FORMATS)}|jsonl):(?!//)(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
  """One place text comes from.

  Args:
    path: 'builtin', a file, or a folder or pattern whose files are read in sorted order; local or
      with a scheme such as gs://.
    domain: of all its documents; empty leaves it to the records, and for those that name none to
      the name of the folder or file.
    text_key, domain_key, source_key: fields of a record that hold these; 'meta.lang' is nested.
    format: one of `formats.FORMATS` for every file, empty for what each file's name says.
  """

  path: str
  domain: str = ""
  text_key: str = "text"
  domain_key: str = "domain"
  source_key: str = "source"
  format: str = ""

  def fields(self) -> Fields:
    # A pattern has no name of its own, so that each of its files gives its own.
    default = "" if is_pattern(self.path) and not os.path.lexists(self.path) else _name(self.path)
    return Fields(
      self.text_key, self.domain_key, self.source_key, self.domain, default, self.format,
      shared_name(self.path),
    )  # fmt: skip

  def to_dict(self) -> dict:
    return asdict(self)


def parse_sources(text: str, **keys: str) -> list[Source]:
  r"""'a.jsonl,code=text:src/' -> sources in that order: `[domain=][format:]path`, comma between.

  A backslash keeps a comma, equals sign, colon or blank as part of a name: `a\,b.jsonl`,
  `lr\=3.jsonl`; `format_source` writes it. `keys` are fields of `Source`, the same for all.

  Raises:
    UserError: an empty part, or a path that is not there where the text as a whole is one.
  """
  sources = [_parse_source(part, text, keys) for part in split(text, ",")]
  if os.path.lexists(text) and not all(is_there(source.path) for source in sources):
    way = format_source(Source(text))
    raise UserError(
      f"source={text!r} means {' and '.join(repr(source.path) for source in sources)}, which is not"
      f" there; the file of that very name is written {way}"
    )
  return sources


def _parse_source(part: str, text: str, keys: dict[str, str]) -> Source:
  domain, stated = "", ""
  if named := _STATED_DOMAIN.fullmatch(part):
    domain, part = unescape(named[1]), named[2]
    check_kind("a domain's name", domain, DOMAIN_NAME)
  if named := _STATED_FORMAT.fullmatch(part):
    stated, part = named[1].removesuffix("l"), named[2]
  if not part:
    raise UserError(
      f"source={text!r} has an empty part; write paths with one comma between two, each with or "
      f"without a domain: prose=books/,code=text:src/"
    )
  return Source(unescape(part, pattern=True), domain, format=stated, **keys)


def format_source(source: Source) -> str:
  """What `parse_sources` reads as this source, its keys apart."""
  path = "".join(f"\\{c}" if c in "\\,=" or c.isspace() else c for c in source.path)
  if not source.format and _STATED_FORMAT.fullmatch(path):
    path = path.replace(":", "\\:", 1)
  domain = f"{escape(source.domain)}=" if source.domain else ""
  return f"{domain}{source.format}{':' if source.format else ''}{path}"


def is_there(path: str) -> bool:
  return path == BUILTIN or storage.is_remote(path) or is_pattern(path) or os.path.lexists(path)


def _name(path: str) -> str:
  """What a source is called: a folder's name as it is, a file's without its endings."""
  if storage.is_remote(path):
    return file_label(path)
  path = os.path.abspath(path)
  return os.path.basename(path) if os.path.isdir(path) else file_label(path)


def builtin(split: str) -> Iterator[Document]:
  """Documents of the corpus inside the package, after checking its sha256."""
  file = _FOLDER / _FILES[split]
  try:
    data = lzma.decompress(file.read_bytes())
  except (lzma.LZMAError, EOFError) as error:
    raise UserError(f"{file} is damaged ({error}); install moe_parity again") from None
  digest = hashlib.sha256(data).hexdigest()
  if digest != BUILTIN_SHA256[split]:
    raise UserError(
      f"{file} has sha256 {digest}, the built-in corpus has {BUILTIN_SHA256[split]}; "
      f"install moe_parity again"
    )
  bad = BadRecords()
  lines = iter(data.splitlines(keepends=True))
  yield from json_records.parse_json_lines(lines, str(file), Fields(), bad)


def check_keys(sources: Sequence[Source], found: set[str]) -> None:
  """Refuses a given key that no record of the corpus had.

  Args:
    found: `BadRecords.keys` after reading all sources.
  Raises:
    UserError: naming the key; the default keys may be absent.
  """
  for option in ("text_key", "domain_key", "source_key"):
    default = Source.__dataclass_fields__[option].default
    for key in dict.fromkeys(getattr(source, option) for source in sources):
      if key not in found and key != default:
        raise UserError(
          f"{option}={key!r}: no record of the corpus has it; give a field that records have (one"
          f" inside another as outer.inner), or leave the option out"
        )


def content_of(source: Source) -> list[dict]:
  """Path, bytes and sha256 of each file of a source, in reading order."""
  if source.path == BUILTIN:
    return [
      {"path": f"{BUILTIN}/{split}", "sha256": sha256} for split, sha256 in BUILTIN_SHA256.items()
    ]
  return content_hash.content_of(list_files(source.path).files)


def listing(source: Source) -> Listing:
  """The files of a source and what was left out; nothing for the built-in corpus."""
  return Listing() if source.path == BUILTIN else list_files(source.path)


def documents(source: Source, bad: BadRecords, split: str = "train") -> Iterator[Document]:
  """Documents of one source, in a fixed order.

  Args:
    split: 'train' or 'validation'; only the built-in corpus knows the difference, every other
      source is one stream that `prepare` divides.
  Raises:
    UserError: the source is missing, holds no document, holds more bad records than allowed, or a
      file that cannot be read to its end or whose format is not known.
  """
  if source.path == BUILTIN:
    for document in builtin(split):
      yield dataclasses.replace(document, domain=source.domain) if source.domain else document
    return
  num_documents = 0
  paths = list_files(source.path).files
  formats = [format_of(path, source.format) for path in paths]  # all are known before any is read
  for path, kind in zip(paths, formats, strict=True):
    for document in _READERS[kind](path, source.fields(), bad):
      num_documents += 1
      yield document
  if num_documents == 0:
    why = f" ({bad.count} bad records, the first: {bad.messages[0]})" if bad.count else ""
    raise UserError(f"{source.path} holds no document{why}; a corpus needs at least one")
