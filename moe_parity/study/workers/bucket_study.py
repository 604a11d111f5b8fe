"""A study on a bucket: a `StudyFolder` in a scratch folder with a `BucketMirror` behind it.

Workers share nothing but the bucket. Each trains in a scratch folder of its own, in the cache, that
goes when the worker ends; those of workers of this host that were killed go when the next begins.
"""

import contextlib
import fcntl
import functools
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Callable

from ml_collections import ConfigDict

from moe_parity.data import storage
from moe_parity.data.token_store import TokenStore
from moe_parity.errors import UserError
from moe_parity.study.comparisons import Comparison
from moe_parity.study.folder import (
  FINETUNING,
  LEASES,
  NOT_THE_STUDY,
  OLD_LEASES,
  PLAN,
  STUDY,
  Arm,
  StudyFolder,
)
from moe_parity.study.reading import COMPARISONS_FOLDER
from moe_parity.study.workers.bucket_mirror import CHECKPOINTS, BucketMirror
from moe_parity.study.workers.runner import TRACE
from moe_parity.training.control import BucketCheckpoints

SCHEME = "gs://"


class BucketStudy(StudyFolder):
  """See `StudyFolder`; `folder` is the scratch folder, `url` the study's."""

  def __init__(
    self,
    config: ConfigDict,
    store: TokenStore,
    url: str,
    *,
    leases: str = "",
    several_processes: bool = False,
    **kwargs,
  ):
    """Args:
      url: gs://bucket/prefix.
      several_processes: of one run; each writes its part of the checkpoints to the bucket.
    Raises:
      UserError: another scheme; the place holds something that is no study, or is out of reach.
    """
    if not url.startswith(SCHEME) or not url.removeprefix(SCHEME).strip("/"):
      raise UserError(f"--workdir={url}: a study is on a disk or under gs://bucket/name")
    self.url = url.rstrip("/")
    there = storage.names(self.url)
    if PLAN not in there and any(name.split("/")[0] not in NOT_THE_STUDY for name in there):
      raise UserError(f"{self.url} is not empty and holds no study; use another --workdir")
    self.several_processes = several_processes
    self._scratch = scratch_folder()
    self.mirror = BucketMirror(self.url, pathlib.Path(self._scratch.name))
    self.mirror.pull()
    is_old = any(name.startswith(f"{OLD_LEASES}/") for name in there)
    leases = leases or f"{self.url}/{OLD_LEASES if is_old else LEASES}"
    super().__init__(config, store, self.mirror.local, leases=leases, **kwargs)

  def derive(self, write: bool = True) -> list[Comparison]:
    self.mirror.pull()
    before = self._plans()
    comparisons = super().derive(write)
    for name, content in self._plans().items():
      if before.get(name) != content:
        self.mirror.put(name)
    return comparisons

  def finished(self, run: str) -> bool:
    return run in self.mirror.pull()

  def has_checkpoint(self, run: str) -> bool:
    return (self.folder / run / CHECKPOINTS).is_dir()

  def fetch(self, run: str) -> None:
    self.mirror.fetch(run, checkpoints=not self.several_processes)

  def bucket_checkpoints(
    self, run: str, check: Callable[[], None], log: Callable[[str], None]
  ) -> BucketCheckpoints | None:
    if not self.several_processes:
      return None
    write, read, step = self.mirror.begin_shards(run)
    publish = functools.partial(self.mirror.upload_now, run, check, log)
    return BucketCheckpoints(write, read, step, publish)

  def fetch_last_checkpoint(self, run: str) -> None:
    self.mirror.fetch_shards(run)

  def fetch_checkpoint(self, run: str) -> None:
    self.mirror.fetch_checkpoints(run)

  def upload_checkpoint(
    self, run: str, check: Callable[[], None], log: Callable[[str], None]
  ) -> None:
    self.mirror.upload_checkpoint(run, check, log)

  def upload_stopped(self, run: str, check: Callable[[], None], log: Callable[[str], None]) -> None:
    self.mirror.upload_now(run, check, log)

  def upload_run(self, run: str, check: Callable[[], None], log: Callable[[str], None]) -> None:
    self.mirror.upload_run(run, check, log)

  def upload_failure(self, run: str) -> None:
    self.mirror.put(f"{run}/{TRACE}")

  def write(self) -> list[Arm]:
    arms = super().write()
    for comparison in self.comparisons:
      self.mirror.put(_named(comparison, STUDY))
    return arms

  def publish(self) -> str:
    names = (f"{self.config.study.method}.json", FINETUNING, "certificate.json", "analysis.json",
             "report")  # fmt: skip
    for comparison in self.comparisons:
      for name in (_named(comparison, name) for name in names):
        if (self.folder / name).exists():
          self.mirror.put(name)
    return f"{self.url}/report/index.html"

  def _plans(self) -> dict[str, bytes]:
    paths = [self.folder / PLAN, *self.folder.glob(f"{COMPARISONS_FOLDER}/*/{PLAN}")]
    return {
      path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths if path.exists()
    }


def _named(comparison: Comparison, name: str) -> str:
  return f"{comparison.folder}/{name}" if comparison.name else name


def scratch_folder() -> tempfile.TemporaryDirectory:
  """A folder of this process that goes with it; those whose processes died go now.

  A living process holds a lock beside its folder, which tells also where processes of several hosts
  or containers share one cache.
  """
  place = storage.cache_folder() / "studies"
  place.mkdir(parents=True, exist_ok=True)
  for path in place.glob("*.lock"):
    with contextlib.suppress(BlockingIOError, FileNotFoundError), open(path) as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(path.with_suffix(""), ignore_errors=True)
      path.unlink()
  folder = tempfile.TemporaryDirectory(prefix=f"{socket.gethostname()}-", dir=place)
  folder.lock = open(f"{folder.name}.lock", "w")  # noqa: SIM115 - held as long as the folder
  fcntl.flock(folder.lock, fcntl.LOCK_EX)
  return folder
