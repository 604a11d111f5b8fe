"""Which files a path means: a file, all files of a folder, or those a pattern matches.

What is given is found or refused. Links are followed; a link that leads nowhere or back into
itself, a folder that cannot be read and anything that is no regular file stop the search. Two
things are left out and counted: names that begin with a dot, and token stores inside the folder.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from moe_parity.data import checked_json, storage
from moe_parity.data.formats import FORMATS
from moe_parity.errors import UserError

_STATED = re.compile(r"(\w+):(?!//)")  # a format before the path, or what is taken for one
_OURS = re.compile(r"[.].*[.](lock|work|part)")  # next to a store while it is made


@dataclass
class Listing:
  """Files in reading order, and what was left out: names with a dot in front, token stores."""

  files: list[str] = field(default_factory=list)
  num_hidden: int = 0
  stores: list[str] = field(default_factory=list)


def list_files(path: str) -> Listing:
  """Files of a path, local or remote, sorted by name.

  A path that exists is taken literally, also with *, ? or [ in it; otherwise these make a pattern,
  in which ** stands for any folders, and a folder it matches gives all its files. A folder that
  Hugging Face's `save_to_disk` wrote gives its data files in their own order.

  Raises:
    UserError: nothing there, or something in the way (see the module).
  """
  if listed := _saved_to_disk(path):
    return Listing(listed)
  try:
    listing = _list_remote(path) if storage.is_remote(path) else _list_local(path)
  except RecursionError:
    raise UserError(f"{path} holds folders nested too deeply; give those that are meant") from None
  if not listing.files:
    raise UserError(_nothing(path, listing))
  return listing


def is_pattern(path: str) -> bool:
  return any(letter in path for letter in "*?[")


def _nothing(path: str, found: Listing) -> str:
  if found.num_hidden or found.stores or os.path.isdir(path):
    hidden = f" but {found.num_hidden} with a dot in front" if found.num_hidden else ""
    stores = f" but token stores ({', '.join(found.stores)})" if found.stores else ""
    return f"{path} is a folder without files{hidden}{stores}; a corpus needs at least one document"
  if (stated := _STATED.match(path)) and stated[1] not in FORMATS:
    kinds = ", ".join(f"{kind}:" for kind in FORMATS)
    return (
      f"{path} does not exist, and {stated[1]}: is no format that is read: a source is"
      f" [domain=][format:]path, with the format one of {kinds} (jsonl: is json:), or none, where"
      f" the files' endings say it; convert other files to .jsonl or .parquet"
    )
  what = "matches no file" if is_pattern(path) else "does not exist"
  return f"{path} {what}; give a file, a folder or a pattern, or 'builtin'"


def _list_local(path: str) -> Listing:
  listing = Listing()
  if os.path.lexists(path):
    _add(path, listing, ())
  elif is_pattern(path):
    root, *parts = ("/", *path.strip("/").split("/")) if path.startswith("/") else (
      "", *path.rstrip("/").split("/"))  # fmt: skip
    seen: set[str] = set()
    for match in dict.fromkeys(_matches(root, parts)):
      # ** gives a folder before those in it: each is read, and what it leaves out counted, once.
      if seen.isdisjoint(map(str, PurePath(match).parents)):
        _add(match, listing, (), is_given=False)
        seen.add(str(PurePath(match)))
    listing.files = sorted(set(listing.files))
  return listing


def _add(
  path: str, found: Listing, ancestors: tuple[tuple[int, int], ...], is_given: bool = True
) -> None:
  """Appends the file, or every file below the folder.

  Args:
    is_given: the folder was named as it is; one that a pattern matches may be a token store.
  """
  try:
    path.encode("utf-8")
  except UnicodeEncodeError:
    raise UserError(f"the name of {path!a} is not UTF-8; rename it") from None
  try:
    state = os.stat(path)
  except FileNotFoundError:
    target = os.readlink(path) if os.path.islink(path) else "nothing"
    raise UserError(
      f"{path} is a link to {target}, which is not there; mend or remove the link"
    ) from None
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); {_MEND}") from None
  if stat.S_ISREG(state.st_mode):
    found.files.append(path)
    return
  if not stat.S_ISDIR(state.st_mode):
    raise UserError(
      f"{path} is no regular file (a pipe, socket or device), and text is read more than once; save"
      f" it as a file"
    )
  here = (state.st_dev, state.st_ino)
  if here in ancestors:
    raise UserError(f"{path} is a link back to a folder that holds it; remove the link")
  if (ancestors or not is_given) and storage.is_token_store(path):
    found.stores.append(path)
    return
  for name in _names(path):
    if name.startswith("."):
      found.num_hidden += not _OURS.fullmatch(name)
    else:
      _add(os.path.join(path, name), found, (*ancestors, here))


_MEND = "change its permissions, or name the files that are meant by a pattern"


def _names(folder: str) -> list[str]:
  try:
    return sorted(os.listdir(folder or "."))
  except OSError as error:
    raise UserError(f"{folder} cannot be read ({error.strerror}); {_MEND}") from None


def _matches(base: str, parts: list[str]) -> Iterator[str]:
  """Paths below `base` that the parts of a pattern match; glob's rules, but nothing is skipped."""
  if not parts:
    yield base
    return
  part, rest = parts[0], parts[1:]
  if part == "**":
    yield from _matches(base, rest)
    for name in _names(base):
      path = os.path.join(base, name)
      if os.path.isdir(path) and not name.startswith("."):
        if _is_in(os.path.realpath(base), os.path.realpath(path)):
          raise UserError(f"{path} is a link back to a folder that holds it; remove the link")
        yield from _matches(path, parts)
  elif is_pattern(part):
    for name in _names(base):
      hidden = name.startswith(".") and not part.startswith(".")
      path = os.path.join(base, name)
      if fnmatch.fnmatchcase(name, part) and not hidden and (not rest or os.path.isdir(path)):
        yield from _matches(path, rest)
  else:
    path = os.path.join(base, part)
    if os.path.lexists(path) and (not rest or os.path.isdir(path)):
      yield from _matches(path, rest)


def _is_in(path: str, folder: str) -> bool:
  """Whether a real path is this folder or lies below it; books2 does not lie in books."""
  return os.path.commonpath([path, folder]) == folder


def _list_remote(path: str) -> Listing:
  listing, names = Listing(), storage.find_remote(path)
  stores = [
    name.removesuffix("/manifest.json")
    for name in names
    if name.endswith("/manifest.json") and name != storage.join(path, "manifest.json")
  ]
  listing.stores = [folder for folder in stores if storage.is_token_store(folder)]
  listing.files = [
    name for name in names if not any(name.startswith(f"{folder}/") for folder in listing.stores)
  ]
  return listing


def _saved_to_disk(path: str) -> list[str]:
  """Data files of a folder of `datasets.save_to_disk`; [] where it is none."""
  splits = storage.join(path, "dataset_dict.json")
  if storage.is_file(splits):
    names = _field(splits, "splits")
    raise UserError(
      f"{path} holds several splits; give one of {', '.join(map(str, names))} below it"
    )
  state = storage.join(path, "state.json")
  if not (storage.is_file(state) and storage.is_file(storage.join(path, "dataset_info.json"))):
    return []
  names = [entry.get("filename") if isinstance(entry, dict) else entry
           for entry in _field(state, "_data_files")]  # fmt: skip
  for name in names:
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\]+", name) or name.startswith("."):
      raise UserError(f"{state} names the data file {name!r}; only plain file names are read")
    if not storage.is_file(storage.join(path, name)):
      raise UserError(f"{storage.join(path, name)} is missing, {state} names it; save it again")
  return [storage.join(path, name) for name in names]


def _field(path: str, name: str) -> list:
  return checked_json.read(path, {name: [object]}, "save the data set again")[name]
