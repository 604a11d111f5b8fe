"""What a file is, by the ending of its name: its format, its compression, what it is called.

An ending that is not listed is refused: text read in the wrong format trains without an error. The
caller then states the format, `text:notes.csv` in a source.
"""

import os
import re

from moe_parity.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2", ".zst": "zstd"}
_RECORDS = {
  "json": (".jsonl", ".ndjson", ".json"),
  "parquet": (".parquet", ".pq"),
  "arrow": (".arrow", ".feather", ".ipc"),
  "arrayrecord": (".arrayrecord", ".array_record"),
}
# Prose and source code: a file is one document, byte for byte.
_TEXT = """
  txt text md markdown rst tex org adoc
  py pyi c h cc cpp cxx hpp hh cu java kt scala js jsx ts tsx mjs go rs rb php pl lua jl r m swift
  cs fs hs ml mli lisp el clj ex exs erl sh bash zsh sql proto cmake make mk toml yaml yml ini cfg
""".split()  # fmt: skip
FORMATS = ("text", *_RECORDS)
_FORMAT_OF = {ending: kind for kind, endings in _RECORDS.items() for ending in endings} | {
  f".{ending}": "text" for ending in _TEXT
}
_SHARD = re.compile(r"[._-]\d+-of-\d+$")


def format_of(path: str, stated: str = "") -> str:
  """One of FORMATS: the one stated, else by the name's ending, in upper or lower case.

  Raises:
    UserError: the ending is none that is known.
  """
  if stated:
    return stated
  name, _ = _uncompressed(os.path.basename(path))
  ending = os.path.splitext(name)[1].lower()
  if ending in _FORMAT_OF:
    return _FORMAT_OF[ending]
  what = f"has the ending {ending!r}" if ending else "has no ending"
  raise UserError(
    f"{path} {what}, which says no format that is read here; convert it to .jsonl or .parquet, name"
    f" the files that are meant by a pattern, or state the format of the source: one of"
    f" {', '.join(f'{kind}:' for kind in FORMATS)} before its path, such as text:{path}"
  )


def compression_of(path: str) -> str:
  """'gzip', 'xz', 'bzip2', 'zstd' or '' by the name's ending."""
  return _uncompressed(path)[1]


def file_label(path: str) -> str:
  """A file's name without folder, compression, format and shard number.

  'a/c4.en.00000-of-00512.json.gz' -> 'c4.en'; other dots belong to the name.
  """
  name, _ = _uncompressed(os.path.basename(path.rstrip("/")))
  base, ending = os.path.splitext(name)
  if ending.lower() in _FORMAT_OF and base:
    name = base
  return _SHARD.sub("", name) or name


def shared_name(path: str) -> str:
  """The path of a source, the same for all shards of one file in one folder."""
  folder, name = os.path.split(path if "://" in path else os.path.normpath(path))
  base, archive = os.path.splitext(name)
  if archive.lower() not in COMPRESSIONS:
    base, archive = name, ""
  base, ending = os.path.splitext(base)
  return os.path.join(folder, f"{_SHARD.sub('', base)}{ending}{archive}")


def _uncompressed(name: str) -> tuple[str, str]:
  base, ending = os.path.splitext(name)
  kind = COMPRESSIONS.get(ending.lower(), "")
  return (base, kind) if kind else (name, "")
