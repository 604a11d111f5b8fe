"""The lease of one run folder, for commands that train it outside of a study's worker."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

from moe_parity.errors import UserError
from moe_parity.study.folder import PLAN, leases_folder
from moe_parity.study.reading import COMPARISONS_FOLDER
from moe_parity.study.workers.identity import Process
from moe_parity.study.workers.leases import (
  DONE,
  FAILED,
  STOPPED,
  Lease,
  LeaseLostError,
  Leases,
  process_of,
)

POLL_SECONDS = 1.0


def lease_place(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
  """(location, key) of a run folder's lease: its study's, so that the study's workers see it, or
  one inside the folder where that belongs to no study."""
  folder = folder.resolve()
  for study in folder.parents:
    if folder.parent.name == "runs" and (study / PLAN).exists() and (study / "study.json").exists():
      if study.parent.name != COMPARISONS_FOLDER:
        return leases_folder(study), folder.relative_to(study).as_posix()
  return folder / "lease", "run"


@contextlib.contextmanager
def leased(
  folder: pathlib.Path,
  log: Callable[[str], None],
  worker: str = "",
  opened: Callable[..., Leases] = Leases,
) -> Iterator[Lease]:
  """Holds the lease of a run folder, and records what became of the run.

  A worker that cannot be looked for (another host or container) is waited for: one heartbeat and
  the run is refused, none until it is stale and the run is taken over.

  Args:
    log: takes a line where it waits or takes over.
    worker: this worker's name, the same in all its lives.
  Raises:
    UserError: another process trains it; names who.
  """
  location, key = lease_place(folder)
  leases = opened(location, worker=worker)
  lease = _acquire(leases, key, folder, log)
  if lease.took_over:
    log(f"{folder}: {lease.took_over}; taking its run over")
  state, failure = STOPPED, None
  try:
    yield lease
    state = DONE
  except LeaseLostError:
    raise
  except Exception as error:
    state, failure = FAILED, error
    raise
  finally:
    lease.release(state, failure)


@contextlib.contextmanager
def leased_everywhere(
  folder: pathlib.Path, log: Callable[[str], None], worker: str = ""
) -> Iterator[Lease | None]:
  """`leased` by the first of several processes; what it refuses, all refuse.

  Yields:
    the lease, in the first process.
  """
  from moe_parity.sharding import multihost

  with contextlib.ExitStack() as exit_stack:
    lease, refused = None, None
    if multihost.is_primary():
      try:
        lease = exit_stack.enter_context(leased(folder, log, worker))
      except UserError as error:
        refused = str(error).encode()
    refused = multihost.broadcast_bytes(refused)
    if refused is not None:
      raise UserError(refused.decode())
    yield lease


def _acquire(leases: Leases, key: str, folder: pathlib.Path, log: Callable[[str], None]) -> Lease:
  first = None
  while (lease := leases.acquire(key)) is None:
    record = leases.get(key)
    if first is None:
      first = record
    process = process_of(record)
    if record != first or (process is not None and process.is_here()):
      raise UserError(
        f"{folder} is being trained by {_who(record, process)}; wait for it or stop it, or use"
        " another --workdir"
      )
    if record is first:
      log(f"{folder}: {_who(record, process)} has it; waiting for a sign of life from it")
    time.sleep(POLL_SECONDS)
  return lease


def _who(record: dict, process: Process | None) -> str:
  name = f" {record['worker']}" if record.get("worker") else ""
  where = f"process {process.pid} on {process.host}" if process else "an unknown process"
  return f"worker{name} ({where}, since {record.get('acquired', 'some time')})"
