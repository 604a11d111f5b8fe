"""A study folder on a bucket: runs are trained in a local scratch folder and mirrored.

Under gs://bucket/study lie the files of an ordinary study folder, so that a copy of it is one. A
run in training has instead

    latest.json                names, bytes and hashes of one snapshot's files
    snapshots/<step>-<id>/     config, plan, metrics, routing and the checkpoint of that step

A snapshot counts once latest.json names it, which is one object, replaced whole and written last;
so a snapshot half written by a worker that died is never picked up, and the one before it stays
until then. A finished run's files lie under their own names, result.json written last.

Where several processes train the run, they share no disk: every process writes its shards to the
bucket itself (`training.sharded_checkpoints`), latest.json names their folder too, and the snapshot
holds the small files

    shards/<id>/<step>/        checkpoints of one life of a worker

Either kind of checkpoint can be resumed by one process or by several.

Workers exclude each other by leases. One that was thought dead and was only asleep finds out before
it writes latest.json; were it to sleep between the two, the run would resume from its older
checkpoint, which is work done twice and no other result.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import secrets
import shutil
from collections.abc import Callable

from moe_parity import files
from moe_parity.data import checked_json, storage
from moe_parity.errors import UserError
from moe_parity.study.reading import COMPARISONS_FOLDER
from moe_parity.training import run_folder
from moe_parity.training.checkpoint import LOGS, UNFINISHED, commit
from moe_parity.training.checkpoint_hashes import HASHES, run_identity
from moe_parity.training.sharded_checkpoints import IS_WHOLE, whole_steps

LATEST, SNAPSHOTS, CHECKPOINTS, SHARDS = "latest.json", "snapshots", "checkpoints", "shards"
WITH_CHECKPOINT = ("config.json", "plan.json", "metrics.jsonl", "routing.npz",
                   "chat_template.json", "before.json")  # fmt: skip
NOT_KEPT = ("tensorboard", "failed.txt")  # drawn from metrics.jsonl; what went wrong is over
RETRIES = 3
_LATEST = {"step": int, "snapshot": str, "files": {str: [object]}, "shards?": str}


class BucketMirror:
  """One study folder on a bucket and this worker's local copy of it.

  Args:
    url: gs://bucket/prefix of the study.
    local: the scratch folder, this worker's alone.
  """

  def __init__(self, url: str, local: pathlib.Path):
    self.url, self.local = url.rstrip("/"), local
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future | None = None
    self._uploaded_step: dict[str, int] = {}  # run -> step of its newest snapshot there
    self._shards: dict[str, str] = {}  # run -> folder of this life's shards, below the run's
    self._resumed: dict[str, str] = {}  # run -> folder of the checkpoint that it resumed from

  def pull(self) -> set[str]:
    """Fetches plans, and the small files of every run that has finished since.

    Returns:
      the runs that are finished there, relative to the study folder.
    """
    there = storage.names(self.url)
    for name in there:
      path = pathlib.PurePosixPath(name)
      at_root = len(path.parts) == 1 or (
        path.parts[0] == COMPARISONS_FOLDER and len(path.parts) == 3
      )
      if at_root and (
        path.name == "plan.json" or (path.name == "study.json" and not self._has(name))
      ):
        self._get(name)
    end = f"/{run_folder.RESULT}"
    done = {name.removesuffix(end) for name in there if name.endswith(end)}
    for run in sorted(done):
      if not self._has(f"{run}{end}"):
        small = [n for n in there if n.startswith(f"{run}/") and not _is_checkpoint(n, run)]
        for name in sorted(small, key=lambda name: name.endswith(end)):
          self._get(name)
    return done

  def fetch(self, run: str, checkpoints: bool = True) -> None:
    """Makes the local run folder what the newest snapshot holds, or empty where there is none.

    Args:
      checkpoints: whether shards come too; they stay on the bucket where several processes resume.
    Raises:
      UserError: the snapshot is not what latest.json says.
    """
    folder = self.local / run
    for attempt in range(RETRIES):
      shutil.rmtree(folder, ignore_errors=True)
      try:
        latest = storage.read_bytes(f"{self.url}/{run}/{LATEST}")
      except FileNotFoundError:
        for known in (self._uploaded_step, self._resumed):
          known.pop(run, None)
        return
      way_out = "remove it there to train this run from its beginning"
      latest = checked_json.parse(latest, _LATEST, f"{self.url}/{run}/{LATEST}", way_out)
      try:
        self._fetch_snapshot(run, latest)
      except (FileNotFoundError, _ChangedError) as error:
        if attempt == RETRIES - 1:  # else replaced while it was read: latest.json names a newer one
          raise UserError(
            f"{self.url}/{run}: its snapshot of step {latest['step']} is damaged ({error}); remove"
            f" {LATEST} there to train this run from its beginning"
          ) from None
        continue
      self._uploaded_step[run] = latest["step"]
      self._resumed[run] = latest.get("shards") or ""
      if checkpoints and self._resumed[run]:
        self._fetch_shards(run, self._resumed[run], latest["step"])
      return

  def begin_shards(self, run: str) -> tuple[str, str, int]:
    """A folder for the checkpoints of this life, after `fetch`.

    Returns:
      its URL; that of the folder to resume from and the step there, "" and 0 for a fresh run.
    """
    self._shards[run] = f"{SHARDS}/{secrets.token_hex(4)}"
    write, step = f"{self.url}/{run}/{self._shards[run]}", self._uploaded_step.get(run, 0)
    if not step:
      return write, "", 0
    if not self._resumed[run]:  # a life of one process kept it with the small files
      self._copy_as_shards(run, step)
      self._resumed[run] = self._shards[run]
    return write, f"{self.url}/{run}/{self._resumed[run]}", step

  def fetch_shards(self, run: str) -> None:
    """Copies the newest checkpoint of several processes into the local run folder."""
    if run not in self._shards:
      return
    if step := self._newest(run):
      self._fetch_shards(run, self._shards[run], step)
    else:  # it resumed after its last step
      self._fetch_shards(run, self._resumed[run], self._uploaded_step[run])

  def fetch_checkpoints(self, run: str) -> None:
    """Brings the checkpoints of a finished run here."""
    for name in storage.names(f"{self.url}/{run}/{CHECKPOINTS}"):
      path = f"{run}/{CHECKPOINTS}/{name}"
      if not self._has(path):
        (self.local / path).parent.mkdir(parents=True, exist_ok=True)
        self._get(path)

  def upload_checkpoint(
    self, run: str, check: Callable[[], None], log: Callable[[str], None]
  ) -> None:
    """Starts copying the newest whole checkpoint, if it is newer than what is there and nothing is
    being copied. A copy that fails is logged, and the next checkpoint tries again.

    Args:
      check: raises where another worker has the run.
    """
    if self._writing is not None:
      if not self._writing.done():
        return
      self._collect(run, log)
    if run not in self._shards:  # those are noted when they are whole, by `upload_now`
      self._start_upload(run, check)

  def _start_upload(self, run: str, check: Callable[[], None]) -> None:
    step = self._newest(run)
    if step > self._uploaded_step.get(run, 0):
      self._writing = self._pool.submit(self._write_snapshot, run, step, check)

  def upload_now(self, run: str, check: Callable[[], None], log: Callable[[str], None]) -> None:
    """As `upload_checkpoint`, and returns when the newest whole checkpoint is there."""
    for start in (lambda *_: None, self._start_upload):
      start(run, check)
      if self._writing is not None:
        concurrent.futures.wait([self._writing])
        self._collect(run, log)

  def upload_run(self, run: str, check: Callable[[], None], log: Callable[[str], None]) -> None:
    """Copies a finished run: all its files with the newest checkpoint, result.json last."""
    if self._writing is not None:
      concurrent.futures.wait([self._writing])
      self._collect(run, log)
    folder, step = self.local / run, newest_step(self.local / run)
    check()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
      name = path.relative_to(folder)
      old = name.parts[0] == CHECKPOINTS and name.parts[1:2] != (str(step),)
      if name.parts[0] not in NOT_KEPT and str(name) != run_folder.RESULT and not old:
        storage.put_file(path, f"{self.url}/{run}/{name.as_posix()}")
    check()
    storage.put_file(folder / run_folder.RESULT, f"{self.url}/{run}/{run_folder.RESULT}")
    storage.remove_below(f"{self.url}/{run}/{LATEST}")
    storage.remove_below(f"{self.url}/{run}/{SNAPSHOTS}")
    storage.remove_below(f"{self.url}/{run}/{SHARDS}")
    self._shards.pop(run, None)

  def put(self, name: str) -> None:
    """Copies one file of the study folder, or all files below one of its folders."""
    path = self.local / name
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in found:
      storage.put_file(file, f"{self.url}/{file.relative_to(self.local).as_posix()}")

  def _has(self, name: str) -> bool:
    return (self.local / name).exists()

  def _get(self, name: str) -> None:
    target = self.local / name
    with files.replacing(target) as temporary:
      storage.get_file(f"{self.url}/{name}", temporary)

  def _collect(self, run: str, log: Callable[[str], None]) -> None:
    error, self._writing = self._writing.exception(), None
    if error is not None:
      log(f"{run}: a checkpoint could not be copied to {self.url} ({error}); the next one may")

  def _newest(self, run: str) -> int:
    """Step of the newest whole checkpoint of this life; 0 if there is none."""
    if run in self._shards:
      return max(whole_steps(f"{self.url}/{run}/{self._shards[run]}"), default=0)
    return newest_step(self.local / run)

  def _write_snapshot(self, run: str, step: int, check: Callable[[], None]) -> None:
    folder, name = self.local / run, f"{SNAPSHOTS}/{step}-{secrets.token_hex(4)}"
    there = f"{self.url}/{run}"
    kinds = (SNAPSHOTS, SHARDS)
    before = {"/".join(n.split("/")[:2]) for n in storage.names(there) if n.split("/")[0] in kinds}
    files, shards = {}, self._shards.get(run, "")
    for part in WITH_CHECKPOINT:  # read whole first: training goes on writing them
      if (folder / part).exists():
        content = (folder / part).read_bytes()
        files[part] = [len(content), hashlib.sha256(content).hexdigest()]
        storage.write_bytes(f"{there}/{name}/{part}", content)
    for path in sorted(p for p in (folder / CHECKPOINTS / str(step)).rglob("*") if p.is_file()):
      part = path.relative_to(folder).as_posix()
      files[part] = [path.stat().st_size, storage.sha256_of(path)]
      storage.put_file(path, f"{there}/{name}/{part}")
    check()
    latest = {"step": step, "snapshot": name, "files": files}
    latest |= {"shards": shards} if shards else {}
    storage.write_bytes(f"{there}/{LATEST}", json.dumps(latest).encode())
    self._uploaded_step[run] = step
    for old in before - {shards}:
      storage.remove_below(f"{there}/{old}")

  def _fetch_shards(self, run: str, shards: str, step: int) -> None:
    """Raises UserError where that checkpoint is not there."""
    there, folder = f"{self.url}/{run}/{shards}/{step}", self.local / run
    names = storage.names(there)
    if IS_WHOLE not in names:
      raise UserError(
        f"{there} is not there or not whole; remove {LATEST} of {self.url}/{run} to train this run"
        " from its beginning"
      )
    unfinished = folder / CHECKPOINTS / f"{UNFINISHED}{step}"
    for name in names:
      if name.rsplit("/", 1)[-1] not in (IS_WHOLE, HASHES):
        storage.get_file(f"{there}/{name}", storage.inside(unfinished, name, there))
    plan = folder / run_folder.PLAN
    commit(unfinished, step, run_identity(run_folder.read_json(plan)) if plan.exists() else "")

  def _copy_as_shards(self, run: str, step: int) -> None:
    folder = self.local / run / CHECKPOINTS / str(step)
    there = f"{self.url}/{run}/{self._shards[run]}/{step}"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
      storage.put_file(path, f"{there}/{path.relative_to(folder).as_posix()}")
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != LOGS)
    for part in [*(f"{part}/" for part in parts), ""]:  # the whole last
      storage.write_bytes(f"{there}/{part}{IS_WHOLE}", b"copied from a disk")

  def _fetch_snapshot(self, run: str, latest: dict) -> None:
    folder = self.local / run
    for name, (size, sha256) in latest["files"].items():
      path = storage.inside(folder, name, f"{self.url}/{run}/{LATEST}")
      storage.get_file(f"{self.url}/{run}/{latest['snapshot']}/{name}", path)
      if path.stat().st_size != size or storage.sha256_of(path) != sha256:
        raise _ChangedError(f"{name} is not what was written")


class _ChangedError(Exception):
  """An object that is not the one latest.json names."""


def newest_step(folder: pathlib.Path) -> int:
  """Step of the newest whole checkpoint of a run folder; 0 if there is none."""
  checkpoints = folder / CHECKPOINTS
  found = checkpoints.iterdir() if checkpoints.is_dir() else ()
  return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def _is_checkpoint(name: str, run: str) -> bool:
  return name.removeprefix(f"{run}/").split("/")[0] in (CHECKPOINTS, SNAPSHOTS, SHARDS)
