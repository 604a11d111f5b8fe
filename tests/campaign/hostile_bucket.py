"""Hostile names on a bucket that holds a study: of objects, in its snapshots, plans and states."""

import json
import os
import pathlib
import random
import shutil
import traceback

import fsspec
from fsspec.implementations.memory import MemoryFile

from moe_parity import files
from moe_parity.errors import Stopped, UserError
from moe_parity.study.workers.bucket_study import BucketStudy
from moe_parity.study.workers.runner import RunActions, run_study
from tests.campaign.hostile import NAMES, Hostile, leaves, put
from tests.campaign.outcomes import NAMED, SURVIVED, TRACEBACK, WRONG, Injection
from tests.helpers import fake_training
from tests.helpers.bucket import Bucket

URL = "gs://mine/studies/a"
STEPS = 10
INSIDE = r"work(/cache(/studies(/[^/]+-[^/]+(/.*)?)?)?)?|work/leases(/.*)?"  # leases, scratch


def install(store: dict) -> None:
  """A bucket in memory behind gs:// in this process, with these objects."""
  Bucket.store, Bucket.pseudo_dirs = dict(store), [""]
  fsspec.register_implementation("gs", Bucket, clobber=True)
  Bucket.clear_instance_cache()


class HostileBucket:
  """Studies whose training is a sleep, on a bucket; one of their runs stopped at a checkpoint."""

  def __init__(self, hostile: Hostile, scratch: pathlib.Path):
    self.hostile, self.scratch = hostile, scratch / "bucket"
    self.scratch.mkdir()
    install({})
    finished = self._study(self.scratch / "whole", fake_training.actions())
    self.expected = finished
    install({})
    try:
      self._study(self.scratch / "stopped", RunActions(_stopped_at_third()))
    except Stopped:
      pass
    self.objects = {name: file.getvalue() for name, file in Bucket.store.items()}

  def _study(self, place: pathlib.Path, actions: RunActions) -> dict:
    """Runs what is left of the study; what every arm scored."""
    cache, os.environ["MOE_PARITY_CACHE"] = os.environ["MOE_PARITY_CACHE"], str(place / "cache")
    try:
      study = BucketStudy(
        fake_training.config(), fake_training.store(), URL, leases=str(place / "leases")
      )
      arms = run_study(study, actions=actions, log=lambda line: None)
      if failed := [arm.error for arm in arms if arm.status == "failed"]:
        raise UserError("; ".join(failed))
      study.publish()
      results = {}
      for arm in json.loads(Bucket.store[_object("study.json")].getvalue())["arms"]:
        content = Bucket.store[_object(f"{arm['folder']}/result.json")].getvalue()
        results[arm["name"]] = json.loads(content)["validation"]["bpc"]
      return results
    finally:
      os.environ["MOE_PARITY_CACHE"] = cache

  def inject(self, rng: random.Random) -> Injection:
    """One hostile name on the bucket, then the study is run to its end."""
    with self.hostile._place() as place:
      name = self.hostile._name(rng, place)
      objects = dict(self.objects)
      what = self._put(objects, rng, name)
      install({})
      for path, content in objects.items():
        Bucket.store[path] = _file(path, content)

      def act():
        try:
          found = self._study(place / "work", fake_training.actions())
        except UserError as error:
          words = [name[:40], name, repr(name)[1:-1], ascii(name)[1:-1], "latest.json", "plan.json",
                   "study.json", "another study", URL]  # fmt: skip
          return (NAMED if any(w and w in str(error) for w in words) else TRACEBACK), str(error)
        except Exception:  # noqa: BLE001 - what the campaign looks for
          return TRACEBACK, traceback.format_exc()[-600:]
        return (SURVIVED, "") if found == self.expected else (WRONG, "other results")

      outcome, note = self.hostile._watched(place, act, INSIDE)
      install({})
      return Injection("hostile names", "on a bucket", f"{what}: {name!r}", outcome, note)

  def _put(self, objects: dict, rng: random.Random, name: str) -> str:
    kind = rng.choice(["an object", "a finished run", "a part", "latest.json", "a JSON file"])
    if kind == "an object":
      objects[_object(name)] = b"{}"
    elif kind == "a finished run":
      objects[_object(f"runs/{name}/result.json")] = b"{}"
      objects[_object(f"runs/{name}/plan.json")] = b"{}"
    elif kind == "a part":
      objects[_object(f"parts/{name}/plan.json")] = b"{}"
    else:
      wanted = "latest.json" if kind == "latest.json" else "plan.json study.json result.json"
      paths = sorted(p for p in objects if p.rsplit("/", 1)[-1] in wanted.split())
      path = rng.choice(paths)
      value = json.loads(objects[path])
      names = [p for p in leaves(value) if NAMES.search(str(p[0]))]
      if "/runs/" in path and kind != "latest.json":  # which the quick certificate reads
        names = [p for p in names if not p[1]]
      where, is_key = rng.choice(sorted(names or leaves(value), key=str))
      put(value, where, is_key, name)
      value = files.sealed(value) if files.SEAL in value else value
      objects[path] = json.dumps(value).encode()
      return f"{path} {'/'.join(map(str, where))}"
    return kind


def _object(name: str) -> str:
  return f"/mine/studies/a/{name}"


def _file(path: str, content: bytes):
  return MemoryFile(Bucket(), path, content)


def _stopped_at_third():
  """Trains two arms, and stops in the third with a checkpoint."""
  whole, count = fake_training.actions(), [0]

  def train(config, arm, store, folder, on_log, log, control):
    count[0] += 1
    if count[0] < 3:
      return whole.train(config, arm, store, folder, on_log, log, control)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("model/d/shard", "model/_METADATA", "ledger/array"):
      path = folder / "checkpoints" / str(STEPS) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(f"{name} " * 5)
    (folder / "plan.json").write_text(json.dumps(arm.to_dict()))
    (folder / "metrics.jsonl").write_text("{}\n")
    raise Stopped(f"stopped with a checkpoint of step {STEPS}")

  return train
