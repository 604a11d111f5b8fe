"""From a decoded record to a document, and the account of what could not be one.

A reader (`json_records`, `plain_text`, `columnar`) is a generator over one file. A record that
cannot become a document goes to `BadRecords`, which stops at the first one over its limit. A file
that cannot be read to its end always stops, for how much of it is lost is unknown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from moe_parity.data.formats import file_label
from moe_parity.errors import UserError
from moe_parity.escapes import escape
from moe_parity.fields.kinds import show
from moe_parity.fields.table import DOMAIN_NAME

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

  `num_bytes` adds up what was lost as it is stored, where the format says it. `keys` are the given
  keys that at least one record had. `named_after` is the source that first named a domain by its
  own name.
  """

  limit: int = 0
  count: int = 0
  num_bytes: int = 0
  messages: list[str] = field(default_factory=list)
  keys: set[str] = field(default_factory=set)
  named_after: dict[str, str] = field(default_factory=dict)

  def report(self, file: str, record: int, reason: str, num_bytes: int = 0) -> None:
    """Record numbers start at 1. Raises UserError when `limit` is passed."""
    self.count += 1
    self.num_bytes += num_bytes
    message = f"{file}, record {record}: {reason}"
    if len(self.messages) < _KEPT_MESSAGES:
      self.messages.append(message)
    if self.count > self.limit:
      raise UserError(
        f"{message}; bad records allowed: {self.limit}, found so far: {self.count}; mend the file "
        f"or raise max_bad_records"
      )

  @staticmethod
  def stop(file: str, record: int, reason: str) -> NoReturn:
    """For a file that cannot be read from this record on, whatever the limit. Raises UserError."""
    raise UserError(
      f"{file}, record {record}: {reason}; how much of the file is lost is not known, so"
      f" max_bad_records does not cover it: fetch or write the file again, or leave it out"
    )


@dataclass(frozen=True, slots=True)
class Fields:
  """Which keys of a record hold what.

  A key with dots, `meta.lang`, is looked up as it is written and then level by level. `domain`,
  where it is given, is that of every record; otherwise a record names its own, and
  `default_domain`, or the file's name, is for those that do not. `format` is that of every file, ''
  for what the file's name says. `origin` is the source, which names its domain by its own name:
  two sources of one name are refused; '' is not looked at.
  """

  text_key: str = "text"
  domain_key: str = "domain"
  source_key: str = "source"
  domain: str = ""
  default_domain: str = ""
  format: str = ""
  origin: str = ""

  def of_plain_text(self) -> "Fields":
    """The same for a record that is {"text": ...} because the file has no fields."""
    return Fields(domain=self.domain, default_domain=self.default_domain, origin=self.origin)


def value_of(record: dict, key: str) -> Any:
  """What a record holds under a key; 'a.b' is `record["a.b"]` or else `record["a"]["b"]`.

  None where the record has no such key, or null under it.
  """
  if key in record:
    return record[key]
  start = key.find(".")
  while start != -1:
    inner = record.get(key[:start])
    if isinstance(inner, dict):
      value = value_of(inner, key[start + 1 :])
      if value is not None:
        return value
    start = key.find(".", start + 1)
  return None


def document(
  record: object,
  file: str,
  number: int,
  fields: Fields,
  bad: BadRecords,
  num_bytes: int | Callable[[], int] = 0,
) -> Document | None:
  """Document of one decoded record, or None after reporting what is wrong with it.

  Args:
    num_bytes: what is lost with the record, or a function that counts it.
  """
  try:
    return _document(record, file, fields, bad)
  except _Unusable as problem:
    lost = num_bytes if isinstance(num_bytes, int) else num_bytes()
    bad.report(file, number, str(problem), lost)
    return None


class _Unusable(Exception):
  """Why a record is no document."""


def _document(record: object, file: str, fields: Fields, bad: BadRecords) -> Document:
  if not isinstance(record, dict):
    raise _Unusable(f"an object with a text field is needed, got {type(record).__name__}")
  text = value_of(record, fields.text_key)
  if isinstance(text, bytes):
    text = _decoded(text, fields.text_key)
  if not isinstance(text, str):
    if text is None and fields.text_key not in record:
      raise _Unusable(f"field {fields.text_key!r} is missing{_found(record)}")
    problem = "is null" if text is None else f"is a {type(text).__name__}"
    raise _Unusable(f"field {fields.text_key!r} {problem}; it must be a string")
  bad.keys.add(fields.text_key)
  if not text.strip():
    raise _Unusable("the text is empty")
  _check_unicode(text, "the text")
  domain = _name(record, fields.domain_key, bad.keys)
  source = _name(record, fields.source_key, bad.keys)
  label = file_label(file)
  if problem := DOMAIN_NAME.problem(domain) if domain else "":
    raise _Unusable(f"field {fields.domain_key!r} is {show(domain)}, which {problem}")
  if not (fields.domain or domain):
    domain = fields.default_domain or label
    if problem := DOMAIN_NAME.problem(domain):
      raise UserError(
        f"{show(file)} would name a domain {show(domain)}, which {problem}; give it one: name=PATH"
      )
    _check_name_is_free(domain, fields.origin, bad)
  return Document(text, fields.domain or domain, source or label)


def _found(record: dict) -> str:
  """Which fields a record has, where one of them may be the text."""
  names = [show(key) for key in record]
  if not names:
    return "; the record has no field"
  more = f" and {len(names) - 6} more" if len(names) > 6 else ""
  return f"; the record has {', '.join(names[:6])}{more}: name its text by text_key"


def _check_name_is_free(domain: str, origin: str, bad: BadRecords) -> None:
  """
  Raises:
    UserError: another source has named this domain by its own name.
  """
  first = bad.named_after.setdefault(domain, origin)
  if origin and first != origin:
    raise UserError(
      f"{first} and {origin} would both be the domain {show(domain)}, by their names; say which"
      f" they are: NAME=PATH OTHER=PATH, or {escape(domain)}=PATH for both, which joins them"
    )


def _name(record: dict, key: str, keys: set[str]) -> str:
  """The domain or source a record names, '' where it names none. 0 and false are names."""
  value = value_of(record, key)
  if value is None:
    return ""
  keys.add(key)
  if isinstance(value, bytes):
    value = _decoded(value, key)
  if isinstance(value, bool):
    value = str(value).lower()
  elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
    value = str(value)
  if not isinstance(value, str):
    what = str(value) if isinstance(value, float) else f"a {type(value).__name__}"
    raise _Unusable(f"field {key!r} is {what}; a name must be a string or a number")
  if not value.strip():
    raise _Unusable(f"field {key!r} is empty; leave it out where there is no name")
  _check_unicode(value, f"field {key!r}")
  return value


def _decoded(value: bytes, key: str) -> str:
  try:
    return value.decode("utf-8")
  except UnicodeDecodeError as error:
    raise _Unusable(f"field {key!r} is not UTF-8 at byte {error.start}") from None


def _check_unicode(text: str, what: str) -> None:
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise _Unusable(
      f"{what} has a lone surrogate at character {error.start}: not valid Unicode text"
    ) from None
