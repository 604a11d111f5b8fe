"""Studies and runs on this machine, or a copy of the small files of one on a bucket."""

import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable

from moe_parity.data import storage
from moe_parity.errors import UserError

LARGE = ("checkpoints", "snapshots", "tensorboard", "claims")  # folders that reading does not need


class Place:
  """A folder to read.

  Attributes:
    folder: on this machine; for a place on a bucket a temporary copy that goes with this object.
    shown: the place as it was given.
  """

  def __init__(self, location: str | pathlib.Path):
    """
    Raises:
      UserError: it is not there, or out of reach.
    """
    self.shown = str(location)
    self._url = self.shown.rstrip("/") if storage.is_remote(self.shown) else ""
    if not self._url:
      self.folder = pathlib.Path(location)
      if not self.folder.is_dir():
        raise UserError(f"{self.shown} is no folder; give the folder of a study or of a run")
      return
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix="moe_parity-"))
    weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
    self._present: set[str] = set()
    self._fetch(lambda name: not set(name.split("/")) & set(LARGE))
    if not self._present:
      raise UserError(f"{self.shown} holds nothing; give the place of a study or of a run")

  def fetch_checkpoints(self, run: pathlib.Path) -> None:
    """Copies the checkpoints of a run (a folder of this place's) where they are elsewhere."""
    if self._url:
      inside = run.relative_to(self.folder)
      wanted = "checkpoints/" if inside == pathlib.Path() else f"{inside.as_posix()}/checkpoints/"
      self._fetch(lambda name: name.startswith(wanted))

  def _fetch(self, is_wanted: Callable[[str], bool]) -> None:
    for name in storage.names(self._url):
      if is_wanted(name) and name not in self._present:
        path = storage.inside(self.folder, name, self._url)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(f"{self._url}/{name}", path)
        self._present.add(name)
