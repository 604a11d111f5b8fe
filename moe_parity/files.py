"""Atomic writes: a reader, or a kill at any moment, sees the old file or the new one, whole.

And JSON that is read, with hashes of what was written."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

from moe_parity.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A temporary path next to `path` to write a file to; at the end it becomes `path`.

  The temporary name is unique, because workers of a study write the same files at the same time.
  The content is on disk (fsync) before the name changes. An error leaves `path` as it was.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
  try:
    yield temporary
    sync(temporary)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def sync(path: str | os.PathLike) -> None:
  """Returns when the content of a file, or the names in a folder, are on disk (fsync)."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes `content` to `path` atomically."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def write_json(
  path: str | os.PathLike,
  value: object,
  *,
  indent: int = 2,
  allow_nan: bool = True,
  seal: bool = False,
) -> None:
  """Writes a value as JSON atomically.

  Args:
    allow_nan: writes null for a nan or an infinity, which JSON does not have.
    seal: adds a hash of the object, which `read_json` compares.
  Raises:
    ValueError: with allow_nan=False, the value holds a nan or an infinity.
  """
  if allow_nan:
    value = _with_nulls(value)
  if seal:
    value = sealed(value)
  text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
  write_bytes(path, text.encode())


def _with_nulls(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {name: _with_nulls(item) for name, item in value.items()}
  return [_with_nulls(item) for item in value] if isinstance(value, list | tuple) else value


SEAL = "content_sha256"


def sealed(value: dict) -> dict:
  """A JSON object with a hash of itself, so that a reader notices a flipped bit (`read_json`)."""
  value = {name: item for name, item in value.items() if name != SEAL}
  return value | {SEAL: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}


DEEPEST = 100  # levels of a file that is written here; others read them recursively


def parse_json(text: bytes | str, strict: bool = True) -> Any:
  """The value of a JSON text.

  Args:
    strict: also refuses what no file written here has: over DEEPEST levels, half a surrogate pair.
  Raises:
    ValueError: it is no JSON, or an object has one name twice, of which readers take either.
  """
  try:
    value = json.loads(text, object_pairs_hook=_each_once)
    if strict and _is_deeper(value, DEEPEST):
      raise ValueError("nested too deeply")
    if strict:
      json.dumps(value, ensure_ascii=False).encode()  # finds half surrogate pairs
  except RecursionError:
    raise ValueError("nested too deeply") from None
  return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) < len(pairs):
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise ValueError(f"an object has the name {ascii(twice[:80])} twice")
  return value


def _is_deeper(value: Any, most: int) -> bool:
  level = [value]
  for _ in range(most + 1):
    parts = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
    level = [item for part in parts for item in part]
    if not level:
      return False
  return True


def read_json(path: str | os.PathLike, way_out: str = "restore it from a copy") -> Any:
  """The value of a JSON file, without its seal if it has one.

  Args:
    way_out: how the error ends: what the user can do.
  Raises:
    FileNotFoundError: it is not there.
    UserError: it is no JSON, or not what was sealed (a flipped bit, an edit by hand).
  """
  try:
    value = parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
  except ValueError as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} is not JSON ({reason}); {way_out}") from None
  if not isinstance(value, dict) or SEAL not in value:
    return value
  if sealed(value)[SEAL] != value[SEAL]:
    raise UserError(f"{path} is not what was written (its {SEAL} differs); {way_out}")
  del value[SEAL]
  return value


def write_npz(path: str | os.PathLike, *, compressed: bool = True, **arrays) -> None:
  """Writes arrays as .npz atomically; `path` may have any suffix."""
  import numpy as np  # planning may use this file, and starts without NumPy

  with replacing(path) as temporary, open(temporary, "wb") as file:
    (np.savez_compressed if compressed else np.savez)(file, **arrays)


def sha256_of(path: str | os.PathLike) -> str:
  """sha256 of a file's content, in hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: pathlib.Path) -> str:
  """sha256 over the names and contents of all files below a folder."""
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
  return digest.hexdigest()
