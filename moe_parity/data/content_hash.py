"""sha256 of local files, remembered while a file is untouched, so that a corpus is hashed once.

A file counts as untouched while device, inode, size, modification and change time are the same. The
change time is the kernel's own: `touch -r` and `cp -p` cannot set it back. Hashes are remembered in
the cache folder; losing that file costs time only.
"""

import contextlib
import os
import time
from pathlib import Path

from moe_parity import files
from moe_parity.data import storage

_SETTLED_NS = 2_000_000_000  # a file changed this recently may change again within one clock tick
_MOST = 100_000


def content_of(paths: list[str]) -> list[dict]:
  """{"path", "bytes", "sha256"} of each local file; of a remote one "modified" for the hash.

  Raises:
    UserError: a file cannot be read.
  """
  memo = _Memo(storage.cache_folder() / "file_hashes.json")
  hashes = [
    storage.stat_of(path) if storage.is_remote(path) else memo.content(path) for path in paths
  ]
  memo.save()
  return hashes


class _Memo:
  def __init__(self, path: Path):
    self._path, self._new = path, {}
    try:
      loaded = files.parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
      loaded = {}
    self._known = loaded if isinstance(loaded, dict) else {}

  def content(self, path: str) -> dict:
    with storage.open_binary(path) as file:
      state = os.fstat(file.fileno())
      times = (state.st_mtime_ns, state.st_ctime_ns)
      name = "-".join(map(str, (state.st_dev, state.st_ino, state.st_size, *times)))
      sha256 = self._known.get(name)
      if not isinstance(sha256, str) or len(sha256) != 64:
        sha256 = storage.sha256_of_file(file)
        if time.time_ns() - max(times) > _SETTLED_NS:
          self._new[name] = sha256
    return {"path": path, "bytes": state.st_size, "sha256": sha256}

  def save(self) -> None:
    if not self._new:
      return
    entries = list((self._known | self._new).items())[-_MOST:]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
      self._path.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(self._path, dict(entries))
