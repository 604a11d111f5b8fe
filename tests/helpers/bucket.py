"""A bucket in memory behind gs://, for tests of paths with a scheme."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
  """What gs:// means while a test runs: objects in memory, no folders but in their names."""

  protocol = ("gs",)
  store: dict = {}
  pseudo_dirs = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol("memory://" + path.removeprefix("gs://").strip("/"))

  def unstrip_protocol(self, name):
    return "gs://" + name.lstrip("/")


def install(monkeypatch) -> Bucket:
  """A bucket that is empty for the length of a test; this process keeps gs:// for it."""
  monkeypatch.setattr(Bucket, "store", {})
  monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
  fsspec.register_implementation("gs", Bucket, clobber=True)
  Bucket.clear_instance_cache()
  return Bucket()
