"""One place that makes what the faults of a campaign need, and injects one of any kind."""

import contextlib
import pathlib
import random
import shutil
import tempfile

from tests.campaign import full_disk, runs
from tests.campaign.damage import FileDamage
from tests.campaign.full_disk import FullDisk
from tests.campaign.hostile import Hostile
from tests.campaign.hostile_bucket import HostileBucket
from tests.campaign.kills import Kills
from tests.campaign.names import HostileNames
from tests.campaign.outcomes import Injection

OF_PROCESSES = ("kills", "workers", "pairs")  # these wait most of their time


class Injector:
  """Entered, it has a finished study to damage, and a small disk where one is asked for.

  Args:
    folder: for the study, which stays, the cache and all copies.
    options: what will be injected.
    recover: the share of finished runs whose damage is mended after it was named.
  """

  def __init__(self, folder: pathlib.Path, options: set[str], recover: float):
    self.folder, self.options, self.recover = folder, options, recover
    self.cache = folder / "cache"

  def __enter__(self):
    with contextlib.ExitStack() as stack:
      may_mount = "disk" in self.options and full_disk.own_mounts()  # before there are threads
      stack.enter_context(runs.quick_programs())
      study = self.folder / "study"
      if not (study / "analysis.json").exists():
        shutil.rmtree(study, ignore_errors=True)
        runs.make_study(study)
      scratch = pathlib.Path(tempfile.mkdtemp(prefix="scratch_", dir=self.folder))
      stack.callback(shutil.rmtree, scratch, ignore_errors=True)
      self.files = FileDamage(study, scratch / "copies")
      self.disk = FullDisk(self.files, scratch / "disks") if may_mount else None
      self.names = HostileNames(study, self.files.unfinished, self.files, scratch)
      self.hostile = Hostile(self.files, self.cache, scratch)
      self.bucket = HostileBucket(self.hostile, scratch) if "buckets" in self.options else None
      if self.options & set(OF_PROCESSES):
        own = self.folder / "cache_of_processes"  # the other one is damaged meanwhile
        if not own.exists():
          shutil.copytree(self.cache, own)
        self.kills = Kills(self.files.expected, own, scratch)
        stack.callback(self.kills.forks.close)
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error):
    self._stack.close()

  def inject(self, option: str, rng: random.Random, index: int) -> list[Injection]:
    """One fault, or the several of one run; [] where this machine does not permit it."""
    if option == "workers":
      return self.kills.workers(rng, 4 if index % 2 else 2)
    if option == "kills":
      return self.kills.one_worker(rng)
    if option == "pairs":
      return self.kills.two_processes(rng)
    if option == "disk":
      return self.disk.inject(rng) if self.disk else []
    if option == "names":
      return [self.names.inject(rng)]
    if option == "stores":
      return [self.hostile.store(rng)]
    if option == "studies":
      return [self.hostile.study(rng)]
    if option == "buckets":
      return [self.bucket.inject(rng)]
    if option == "store":
      return [self.files.store(self.cache, rng)]
    if option == "resumed":
      return [self.files.resumed(rng)]
    return [self.files.finished(rng, rng.random() < self.recover)]
