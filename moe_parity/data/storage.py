"""Where bytes lie: local paths, and gs:// or any other scheme that fsspec knows, by the same calls.

A path with a scheme is remote. Its library (gcsfs for gs://) is imported when it is used; a missing
one is named.
"""

import contextlib
import fcntl
import hashlib
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_parity.errors import UserError

TOKEN_STORE = "moe_parity token store"  # the format a store's manifest states
MANIFEST = "manifest.json"
# Libraries that log a traceback of what they raise as well.
_TRACEBACKS = ("gcsfs", "google.auth", "s3fs", "adlfs")
MAX_NAME_BYTES = 255  # of one part of a path, on the file systems in use


def import_optional(module: str, package: str, what: str) -> Any:
  """Imports `module`, or raises UserError naming the package that brings it."""
  try:
    return importlib.import_module(module)
  except ImportError:
    raise UserError(
      f"{what} needs the package {package}, which is not installed; pip install {package}"
    ) from None


def is_remote(path: str | Path) -> bool:
  return "://" in str(path)


def filesystem(path: str) -> tuple[Any, str]:
  """(file system, path in it) of a remote path.

  Raises:
    UserError: the scheme is unknown, or its library (gcsfs for gs://) is not installed.
  """
  fsspec = import_optional("fsspec", "fsspec", path)
  for name in _TRACEBACKS:
    logging.getLogger(name).setLevel(logging.CRITICAL)
  try:
    return fsspec.core.url_to_fs(path)
  except (ImportError, ValueError) as error:
    raise UserError(
      f"{path} cannot be opened: {error}; give a path of this machine, or a scheme that fsspec"
      " knows and whose library is installed (gs:// needs gcsfs)"
    ) from None


@contextlib.contextmanager
def _reaching(path: str) -> Iterator[tuple[Any, str]]:
  """`filesystem`, and one line in place of what its library raises; a missing file stays that."""
  files, root = filesystem(path)
  try:
    yield files, root
  except (FileNotFoundError, UserError):
    raise
  except Exception as error:  # each library has classes of its own for access and for the network
    what = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(
      f"{path} cannot be reached ({what}); check the address, the network and your credentials"
    ) from error


def open_binary(path: str) -> Any:
  """A file to read bytes from, local or remote.

  Raises:
    FileNotFoundError, NotADirectoryError: it is not there.
    UserError: it may not be read, or is a folder.
  """
  if not is_remote(path):
    try:
      return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
      raise
    except OSError as error:
      raise UserError(f"{path} cannot be read: {error.strerror}; mend its permissions") from None
  with _reaching(path) as (files, root):
    return files.open(root, "rb")


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
  """The path of a local file, for libraries that open nothing else; a remote one is copied."""
  if not is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, path.rsplit("/", 1)[-1])
    with _reaching(path) as (files, root):
      files.get_file(root, local)
    yield local


def is_file(path: str | Path) -> bool:
  if not is_remote(path):
    return os.path.isfile(path)  # False too where the folder may not be read
  with _reaching(str(path)) as (files, root):
    return files.isfile(root)


def read_text(path: str | Path) -> str:
  """The whole of a small UTF-8 file."""
  return read_bytes_of(path).decode("utf-8")


def read_bytes_of(path: str | Path) -> bytes:
  """The whole of a small file, local or remote."""
  with open_binary(str(path)) as file:
    return file.read()


def join(folder: str | Path, name: str) -> str:
  return f"{str(folder).rstrip('/')}/{name}"


def is_token_store(location: str | Path) -> bool:
  """Whether a folder has the manifest of a token store; `open_store` checks that it is whole."""
  path = join(location, MANIFEST)
  if not is_file(path):
    return False
  with open_binary(path) as file:
    data = file.read()
  return TOKEN_STORE.encode() in data or is_file(join(location, "tokenizer.json"))


def find_remote(path: str) -> list[str]:
  """The remote file itself, the files below a folder, or those a pattern names; sorted.

  A folder that a pattern matches gives all its files. Empty where nothing is.
  """
  with _reaching(path) as (files, root):
    if files.isfile(root):
      return [path]
    try:
      names = set(files.find(root))
    except FileNotFoundError:  # gcsfs, where there is no such bucket
      names = set()
    if not names and any(letter in root for letter in "*?["):
      for name in files.glob(root):
        names.update([name] if files.isfile(name) else files.find(name))
    return [files.unstrip_protocol(name) for name in sorted(names)]


def stat_of(path: str) -> dict:
  """Path, bytes and what changes when the file does: a cheap stand-in for its hash."""
  if is_remote(path):
    with _reaching(path) as (files, root):
      return {"path": path, "bytes": files.size(root), "modified": files.ukey(root)}
  stat = os.stat(path)
  return {"path": path, "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def sha256_of(path: str | Path) -> str:
  """Hex sha256 of a file, local or remote."""
  with open_binary(str(path)) as file:
    return sha256_of_file(file)


def sha256_of_file(file: Any) -> str:
  """Hex sha256 of an open file, from where it stands to its end."""
  return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
  """Where stores without a name live: $MOE_PARITY_CACHE, or moe_parity in the user's cache."""
  base = os.environ.get("MOE_PARITY_CACHE")
  if base:
    return Path(base)
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_parity"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """One process at a time makes this folder; the others wait and then find it finished."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = open(folder.parent / f".{folder.name}.lock", "w")  # noqa: SIM115 - closed below
  except OSError as error:
    raise UserError(
      f"{folder} cannot be made ({error.strerror}: {error.filename}); choose a folder that can be"
      f" written"
    ) from None
  with file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def upload(folder: Path, target: str, last: str, progress: Callable[[int], None]) -> None:
  """Copies a flat local folder to a remote one; the file `last` comes last and means: complete.

  Args:
    progress: called with the bytes copied so far.
  """
  done = 0
  with _reaching(target) as (files, root):
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
      files.put_file(str(path), join(root, path.name))
      done += path.stat().st_size
      progress(done)


def download(source: str, names: list[str], folder: Path) -> None:
  """Copies files of a remote folder into a new local one.

  Raises:
    UserError: one is missing, or its name leads out of the folder.
  """
  targets = {name: inside(folder, name, source) for name in names}
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  with _reaching(source) as (files, root):
    for name, target in targets.items():
      try:
        files.get_file(join(root, name), str(target))
      except FileNotFoundError:
        raise UserError(f"{join(source, name)} is missing; prepare the store again") from None


def inside(folder: Path, name: str, whose: str = "") -> Path:
  """The path in `folder` of a name that others chose, checked before anything is written there.

  Args:
    whose: what the error names as the origin of the name.
  Raises:
    UserError: the name is absolute, has a part that is empty, '.' or '..', or a link on its way
      leads out of the folder; or a part is longer than a file system takes.
  """
  if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in name.split("/")):
    raise UserError(
      f"{whose or folder} names the file {name[:80]!r}..., which is longer than the"
      f" {MAX_NAME_BYTES} bytes of a file's name; do not use files of this origin"
    )
  bad = any(part in ("", ".", "..") for part in name.split("/")) or any(c in name for c in "\\\0")
  root = os.path.realpath(folder)
  if not bad and os.path.commonpath([root, os.path.realpath(folder / name)]) == root:
    return folder / name
  raise UserError(
    f"{whose or folder} names the file {name!r}, which lies outside of its folder; nothing was"
    f" written: do not use files of this origin"
  )


def is_file_inside(folder: Path, name: str) -> bool:
  """Whether a name that others chose is that of a file in `folder`: False where it leads out of it,
  or can be no name."""
  try:
    return inside(folder, name).is_file()
  except (UserError, OSError, ValueError):  # too long, or not encodable
    return False


def names(folder: str) -> dict[str, int]:
  """Bytes of every object below a remote folder, by its name relative to it; {} for none.

  Raises:
    UserError: a name would lead out of a local folder it is copied to.
  """
  with _reaching(folder) as (files, root):
    files.invalidate_cache()  # others write there too
    try:
      entries = files.find(root, detail=True)
    except FileNotFoundError:
      return {}
    root = files._strip_protocol(root).rstrip("/") + "/"
    sizes = {name.removeprefix(root): entry["size"] for name, entry in sorted(entries.items())}
  for name in sizes:
    inside(Path(os.sep) / "any", name, folder)
  return sizes


def read_bytes(path: str) -> bytes:
  """A remote object.

  Raises:
    FileNotFoundError: there is none.
  """
  with _reaching(path) as (files, root):
    return files.cat_file(root)


def write_bytes(path: str, content: bytes) -> None:
  """Makes or replaces a remote object; on a bucket readers see the old one or the new."""
  with _reaching(path) as (files, root):
    files.pipe_file(root, content)


def get_file(path: str, local: Path) -> None:
  """Copies a remote object to a local file, of which the folder is made.

  Raises:
    FileNotFoundError: there is none.
  """
  local.parent.mkdir(parents=True, exist_ok=True)
  with _reaching(path) as (files, root):
    files.get_file(root, str(local))


def put_file(local: Path, path: str) -> None:
  """Copies a local file to a remote object; on a bucket it is there whole or not at all."""
  with _reaching(path) as (files, root):
    files.put_file(str(local), root)


def remove_below(folder: str) -> None:
  """Removes every object below a remote folder; nothing where there is none."""
  with _reaching(folder) as (files, root), contextlib.suppress(FileNotFoundError):
    files.rm(root, recursive=True)
