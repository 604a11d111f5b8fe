"""Which worker has which run: one small record a run, acquired and renewed by compare-and-swap.

Workers know each other only through these records, in a folder or under `gs://`. A record is
replaced only by a writer that saw its present version (tensorstore's `if_equal`: a lock file and a
rename on disks, the object's generation on Cloud Storage), so of two workers that want a run one
gets it. Its worker renews it every `heartbeat_seconds`: a counter in the record goes up.

A running record is stale, and another worker may take the run over, when

- its process has surely ended (same boot, same PID namespace, no such process);
- it bears this worker's name and was there when this worker started: its former life;
- the watching worker saw its counter stand still for `stale_seconds` by its own clock. Clocks of
  different hosts are never compared.

A worker that was only asleep must not write into a run that was taken over. So every acquisition
has a random token, and whoever writes into a run's folder calls `Lease.check` right before: it
reads the record again and raises where the token is another's.

On Cloud Storage the same holds, because a write with a generation condition is atomic there. Disks
must honor `rename` and `flock` between the workers' hosts: local disks and NFS 4 do, a mounted
bucket (gcsfuse) does not, so give such workers a `gs://` location for the leases, or the whole
study (`bucket_study`).
"""

import dataclasses
import json
import pathlib
import secrets
import threading
import time
from collections.abc import Callable

from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.stored.shape import mismatch
from moe_parity.study.workers.identity import Process, this_process

RUNNING, STOPPED, FAILED, DONE = "running", "stopped", "failed", "done"
REMOTE_RECHECK_SECONDS = 1.0  # a token read from a bucket counts for so long
_SHAPE = {
  "state": str, "worker?": str, "host?": str, "token?": str, "heartbeat?": int, "acquired?": str,
  "error?": str, "kind?": str,
}  # fmt: skip
_PROCESS = tuple(field.name for field in dataclasses.fields(Process))


class LeaseLostError(UserError):
  """Another worker took this run over while this one was thought dead."""


class SameNameError(UserError):
  """The worker that took this run over bears this worker's name: two of one name are at work."""


class Leases:
  """The records of one study, as one worker sees them.

  Args:
    location: a folder, or a URL that tensorstore knows (gs://bucket/prefix).
    worker: this worker's name, the same in all its lives; "" if it has none.
    stale_seconds: without a heartbeat, after which a worker counts as dead.
    heartbeat_seconds: between heartbeats; well below stale_seconds.
    clock: seconds, for how long a watched record stood still; tests put one of their own.
    process: the calling process; tests put others.
  """

  def __init__(
    self,
    location: str | pathlib.Path,
    *,
    worker: str = "",
    stale_seconds: int | float = 300,
    heartbeat_seconds: int | float = 20,
    clock: Callable[[], float] = time.monotonic,
    process: Process | None = None,
  ):
    import tensorstore

    if not stale_seconds > 0:
      raise UserError(f"leases: stale_seconds={stale_seconds:g} is not above 0; 300 is usual")
    if not 0 < 2 * heartbeat_seconds < stale_seconds:
      raise UserError(
        f"leases: stale_seconds={stale_seconds:g} leaves no room for a heartbeat every"
        f" {heartbeat_seconds:g} s; use more than {2 * heartbeat_seconds:g}"
      )
    self.url = str(location)
    if "://" not in self.url:
      self.url = f"file://{_quoted(pathlib.Path(self.url).resolve())}"
    try:
      self._store = tensorstore.KvStore.open(self.url.rstrip("/") + "/").result()
    except ValueError as error:
      raise UserError(f"leases: {self.url} cannot be opened ({_line(error)})") from None
    self.worker, self.process = worker, process or this_process()
    self.stale_seconds, self.heartbeat_seconds, self.clock = (
      stale_seconds, heartbeat_seconds, clock)  # fmt: skip
    self.recheck_seconds = 0.0 if self.url.startswith("file://") else REMOTE_RECHECK_SECONDS
    self.held: set[Lease] = set()
    self._seen: dict[str, tuple[str, float]] = {}  # key -> version, when it was first seen
    try:
      records = [self.get(key) for key in self._keys()]
    except ValueError as error:  # tensorstore has no other
      raise UserError(
        f"leases: {self.url} cannot be read ({_line(error)}); choose a folder that can be written"
      ) from None
    self._former_lives = {r.get("token") for r in records if worker and r.get("worker") == worker}
    self._failed_before = {_version(r) for r in records if r.get("state") == FAILED}

  def get(self, key: str) -> dict:
    """The record of a run: state, worker, host, pid, heartbeat, error, kind; {} if it has none."""
    record = self._read(key)[0]
    self._watch(key, record)
    return record

  def why_stale(self, key: str, record: dict) -> str:
    """Why the worker behind a running record counts as dead; "" while it may be alive."""
    who = f"worker {record.get('worker') or '{}:{}'.format(record.get('host'), record.get('pid'))}"
    if record.get("token") in self._former_lives:
      return f"{who} was this worker's former life"
    process = process_of(record)
    if process is not None and process.is_gone():
      return f"{who} is gone"
    silent = self._watch(key, record)
    if silent <= self.stale_seconds:
      return ""
    return f"{who} gave no sign of life for {silent:.0f} s"

  def acquire(self, key: str) -> "Lease | None":
    """This worker's lease on a run, or None where it is not to be had.

    Not to be had: a live worker has it, or it failed after this worker started (so that a failing
    arm is tried once by every start of a worker, not for ever).
    """
    record, generation = self._read(key)
    took_over = ""
    if record.get("state") == RUNNING:
      took_over = self.why_stale(key, record)
      if not took_over:
        return None
    if record.get("state") == FAILED and _version(record) not in self._failed_before:
      return None
    mine = {
      "state": RUNNING,
      "token": secrets.token_hex(16),
      "worker": self.worker,
      **dataclasses.asdict(self.process),
      "heartbeat": 0,
      "acquired": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),  # for people
    }
    written = self._write(key, mine, generation)
    return Lease(self, key, mine, written, took_over) if written else None

  def release_all(self, state: str) -> None:
    """Releases every lease that this worker still holds."""
    for lease in list(self.held):
      lease.release(state)

  def _keys(self) -> list[str]:
    return [key.decode() for key in self._store.list().result() if not key.endswith(b".__lock")]

  def _watch(self, key: str, record: dict) -> float:
    """Seconds that a record has stood still since this worker first saw it so."""
    version, now = _version(record), self.clock()
    if self._seen.get(key, ("", 0.0))[0] != version:
      self._seen[key] = version, now
    return now - self._seen[key][1]

  def _read(self, key: str) -> tuple[dict, bytes]:
    found = self._store.read(key).result()
    return _parsed(found.value), found.stamp.generation

  def _write(self, key: str, record: dict, generation: bytes) -> bytes:
    """The new generation, b"" if the record was not of `generation` any more."""
    data = json.dumps(record).encode()
    return self._store.write(key, data, if_equal=generation).result().generation


class Lease:
  """A run that this worker has; renewed by a thread until `release`.

  Attributes:
    took_over: why the worker before counted as dead; "" if there was none.
  """

  def __init__(self, leases: Leases, key: str, record: dict, generation: bytes, took_over: str):
    self._leases, self.key, self.took_over = leases, key, took_over
    self._record, self._generation = record, generation
    self._lost_to, self._verified = None, leases.clock()
    self._over, self._lock = threading.Event(), threading.RLock()
    leases.held.add(self)
    self._thread = threading.Thread(target=self._beat, daemon=True, name=f"lease of {key}")
    self._thread.start()

  def check(self) -> None:
    """Call right before each write into the run's folder: reads the record again.

    Raises:
      LeaseLostError: another worker has the run now, or may have it, as the record could not be
        read for almost `stale_seconds`.
      SameNameError: another worker has it who bears this worker's name.
    """
    leases = self._leases
    if self._lost_to is None and leases.clock() - self._verified < leases.recheck_seconds:
      return
    if self._lost_to is None:
      try:
        record = leases._read(self.key)[0]
      except (OSError, ValueError) as error:
        silent = leases.clock() - self._verified
        if silent < leases.stale_seconds - 2 * leases.heartbeat_seconds:
          return
        raise LeaseLostError(
          f"{self.key}: its lease at {leases.url} could not be read for {silent:.0f} s"
          f" ({_line(error)}); another worker may have it, this one leaves it"
        ) from None
      self._compare(record)
    if self._lost_to is None:
      return
    if self._lost_to.get("worker") and self._lost_to["worker"] == leases.worker:
      raise SameNameError(
        f"{self.key}: another worker named {leases.worker!r} took this run over; give each worker a"
        " --worker name of its own"
      )
    raise LeaseLostError(f"{self.key}: another worker took this run over; this one leaves it")

  def release(self, state: str, error: Exception | None = None) -> None:
    """Ends the lease, recording what became of the run."""
    self._over.set()
    if self._thread is not threading.current_thread():
      self._thread.join(self._leases.heartbeat_seconds)
    if self in self._leases.held and self._lost_to is None:
      named = {"error": _line(error), "kind": type(error).__name__} if error else {}
      try:
        self._renew({"state": state, **named})
      except (OSError, ValueError):
        pass  # storage is away: the record grows stale instead
    self._leases.held.discard(self)

  def _beat(self) -> None:
    while not self._over.wait(self._leases.heartbeat_seconds) and self._lost_to is None:
      try:
        self._renew({})
      except (OSError, ValueError):
        continue  # storage that is away for a while: the next heartbeat tries again

  def _renew(self, changes: dict) -> None:
    with self._lock:
      for _ in range(2):
        record = self._record | {"heartbeat": self._record["heartbeat"] + 1} | changes
        written = self._leases._write(self.key, record, self._generation)
        if written:
          self._record, self._generation = record, written
          self._verified = self._leases.clock()
          return
        # Another's, or our own write whose answer was lost on its way.
        record, generation = self._leases._read(self.key)
        self._compare(record)
        if self._lost_to is not None:
          return
        self._record, self._generation = record, generation

  def _compare(self, record: dict) -> None:
    if record.get("token") == self._record["token"]:
      self._verified = self._leases.clock()
    else:
      self._lost_to = record


def process_of(record: dict) -> Process | None:
  """The process that a record names; None where it names none, as one that is damaged."""
  types = {"pid": int}
  for name in _PROCESS:
    if not isinstance(record.get(name), types.get(name, str)):
      return None
  return Process(**{name: record[name] for name in _PROCESS})


def _parsed(value: bytes) -> dict:
  """A record; one that is damaged may still be somebody's, so it counts as running."""
  if not value:
    return {}
  try:
    record = files.parse_json(value)
    if not mismatch(record, _SHAPE):
      return record
  except ValueError:
    pass
  return {"state": RUNNING, "damaged": value.hex()}


def _version(record: dict) -> str:
  """Changes with every acquisition, heartbeat and release of a run."""
  return json.dumps(record, sort_keys=True)


def _quoted(path: pathlib.Path) -> str:
  """A path as the file URL that means it."""
  return path.as_uri().removeprefix("file://")


def _line(error: BaseException) -> str:
  return " ".join(str(error).split()) or type(error).__name__
