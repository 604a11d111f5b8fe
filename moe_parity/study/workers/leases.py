"""Which worker has which run: one small record a run, taken and kept by compare-and-swap.

Workers know each other only through these records, in a folder or under `gs://`. A record is
replaced only by a writer that saw its present version (tensorstore's `if_equal`: a lock file and a
rename on disks, the object's generation on Cloud Storage), so of two workers that want a run one
gets it. A running worker renews its record every `beat_seconds`. It counts as dead when it is a
process of this host that is gone, or when its last beat is older than `stale_seconds` by this
host's clock; then another worker may take its run over, and says so. A worker that was only asleep
finds its record changed, and stops before it writes a result.

On Cloud Storage the same holds, because a write with a generation condition is atomic there. Disks
must honor `rename` and `flock` between the workers' hosts: local disks and NFS 4 do, a mounted
bucket (gcsfuse) does not, so give such workers a `gs://` place for the claims, or the whole study
(`remote_study`).
"""

import json
import os
import pathlib
import socket
import threading
import time

from moe_parity.errors import UserError

RUNNING, STOPPED, FAILED, DONE = "running", "stopped", "failed", "done"


class ClaimLostError(UserError):
  """Another worker took this run over while this one was thought dead."""


class Claims:
  """The records of one study, as one worker sees them.

  Args:
    place: a folder, or a URL that tensorstore knows (gs://bucket/prefix).
    stale_seconds: age of the last beat after which a worker counts as dead.
    beat_seconds: between beats; well below stale_seconds.
  """

  def __init__(
    self,
    place: str | pathlib.Path,
    *,
    stale_seconds: int | float = 300,
    beat_seconds: int | float = 20,
  ):
    import tensorstore

    if not 0 < 2 * beat_seconds < stale_seconds:
      raise UserError(
        f"claims: stale_seconds={stale_seconds:g} leaves no room for a beat every"
        f" {beat_seconds:g} s; use more than {2 * beat_seconds:g}"
      )
    url = str(place)
    if "://" not in url:
      url = f"file://{pathlib.Path(url).resolve()}"
    try:
      self._store = tensorstore.KvStore.open(url.rstrip("/") + "/").result()
    except ValueError as error:
      raise UserError(f"claims: {url} cannot be opened ({_line(error)})") from None
    self.stale_seconds, self.beat_seconds = stale_seconds, beat_seconds
    self.host, self.pid, self.started = socket.gethostname(), os.getpid(), time.time()

  def look(self, key: str) -> dict:
    """The record of a run: state, host, pid, since, beat, error, kind; {} if it has none."""
    return self._read(key)[0]

  def dead(self, record: dict) -> str:
    """Why the worker behind a running record counts as dead; "" while it may be alive."""
    who = f"worker {record['host']}:{record['pid']}"
    reused = record["pid"] == self.pid and record["since"] < self.started  # containers start alike
    if record["host"] == self.host and (reused or not alive(record["pid"])):
      return f"{who} is gone"
    age = time.time() - record["beat"]
    return f"{who} was last heard of {age:.0f} s ago" if age > self.stale_seconds else ""

  def take(self, key: str) -> "Claim | None":
    """This worker's claim on a run, or None where it is not to be had.

    Not to be had: a live worker has it, or it failed after this worker started (so that a failing
    arm is tried once by every start of a worker, not for ever).
    """
    record, generation = self._read(key)
    took_over = ""
    if record.get("state") == RUNNING:
      took_over = self.dead(record)
      if not took_over:
        return None
    if record.get("state") == FAILED and record["beat"] >= self.started:
      return None
    now = time.time()
    mine = {"state": RUNNING, "host": self.host, "pid": self.pid, "since": now, "beat": now}
    written = self._write(key, mine, generation)
    return Claim(self, key, mine, written, took_over) if written else None

  def _read(self, key: str) -> tuple[dict, bytes]:
    found = self._store.read(key).result()
    return (json.loads(found.value) if found.value else {}), found.stamp.generation

  def _write(self, key: str, record: dict, generation: bytes) -> bytes:
    """The new generation, b"" if the record was not of `generation` any more."""
    data = json.dumps(record).encode()
    return self._store.write(key, data, if_equal=generation).result().generation


class Claim:
  """A run that this worker has; renewed by a thread until `release`.

  Attributes:
    took_over: why the worker before counted as dead; "" if there was none.
  """

  def __init__(self, claims: Claims, key: str, record: dict, generation: bytes, took_over: str):
    self._claims, self._key = claims, key
    self._record, self._generation, self.took_over = record, generation, took_over
    self._lost, self._over = False, threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """
    Raises:
      ClaimLostError: another worker has the run now.
    """
    if self._lost:
      raise ClaimLostError(f"{self._key}: another worker took this run over; this one leaves it")

  def release(self, state: str, error: Exception | None = None) -> None:
    """Ends the claim, recording what became of the run."""
    self._over.set()
    self._thread.join()
    if not self._lost:
      told = {"error": _line(error), "kind": type(error).__name__} if error else {}
      self._renew({"state": state, **told})

  def _keep(self) -> None:
    while not self._over.wait(self._claims.beat_seconds) and not self._lost:
      try:
        self._renew({})
      except (OSError, ValueError):
        continue  # storage that is away for a while: the next beat tries again, or grows stale

  def _renew(self, changes: dict) -> None:
    self._record |= {"beat": time.time()} | changes
    written = self._claims._write(self._key, self._record, self._generation)
    self._generation, self._lost = written, not written


def alive(pid: int) -> bool:
  """Whether a process of this host runs."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def _line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__
