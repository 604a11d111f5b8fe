"""Checkpoints of a run: train state, data ledger and logs of one step, written in the background.

Orbax writes the arrays under a temporary name. When they are complete, a copy of the logs and a
hash of every file are added, the lease is checked once more, and the folder gets its name, its
step. So a process killed at any moment leaves only whole checkpoints, and one that lost its run
leaves none. One that is damaged later (a lost file, a flipped bit) is passed over for the one
before it, with a warning that names step and file.
"""

import dataclasses
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.sharding import multihost
from moe_parity.training import checkpoint_hashes
from moe_parity.training.checkpoint_writer import (
  LEDGER,
  MODEL,
  CheckpointWriter,
  from_items,
  orbax,
  state_items,
)
from moe_parity.training.state import TrainState

LOGS = "logs"  # the run's logs as they were at the checkpoint's step
UNFINISHED = "unfinished-"


@dataclasses.dataclass(frozen=True)
class Restored:
  """The state after `step` steps, the ledger's arrays, the logs by name ({} in checkpoints before
  December 2026), a warning for each skipped checkpoint."""

  step: int
  state: TrainState
  ledger: dict[str, np.ndarray]
  warnings: tuple[str, ...]
  logs: dict[str, bytes] = dataclasses.field(default_factory=dict)


class Checkpoints(CheckpointWriter):
  """The checkpoints of one run folder."""

  def __init__(
    self,
    folder: pathlib.Path,
    keep: int,
    *,
    run: str = "",
    check_owner: Callable[[], None] = lambda: None,
  ):
    """Keeps the newest `keep`; at least two, so that there is one to fall back on.

    Args:
      run: identifies the run (`checkpoint_hashes.run_identity`); others' checkpoints are refused.
      check_owner: called before a checkpoint gets its name; raises where another has the run now.
    Raises:
      UserError: keep < 2.
    """
    if keep < 2:
      raise UserError(
        f"train.keep_checkpoints={keep} leaves nothing to fall back on when the newest checkpoint"
        " is damaged; use 2 or more"
      )
    super().__init__()
    self.folder, self._keep, self._run = folder.resolve(), keep, run
    self._check_owner = check_owner

  def steps(self) -> list[int]:
    """Steps of the checkpoints, the newest first."""
    return steps_of(self.folder)

  def _new_path(self, step: int) -> pathlib.Path:
    token = multihost.broadcast_bytes(secrets.token_hex(4).encode()).decode()
    return self.folder / f"{UNFINISHED}{step}-{token}"  # one name in all processes

  def _finish(self, saving: Any, path: Any, step: int, logs: dict[str, bytes]) -> None:
    try:
      saving.result()
      if multihost.is_primary():
        for name, content in logs.items():
          (path / LOGS).mkdir(exist_ok=True)
          files.write_bytes(path / LOGS / name, content)
        commit(path, step, self._run, self._check_owner)
        for old in self.steps()[self._keep :]:
          self._remove(old)
    except Exception:
      self._check_owner()  # a run that was taken over: its new owner removed what is unfinished
      raise

  def _remove(self, step: int) -> None:
    """Takes its name first: a checkpoint half removed does not pass for one."""
    path = self.folder / f"{UNFINISHED}removal-{step}-{secrets.token_hex(4)}"
    os.rename(self.folder / str(step), path)
    shutil.rmtree(path, ignore_errors=True)

  def restore(self, abstract_state: TrainState, abstract_ledger: dict[str, Any]) -> Restored | None:
    """The newest checkpoint that is what was written; None if there is none at all.

    Args:
      abstract_state: a pytree of arrays or `ShapeDtypeStruct`s (with shardings on a mesh).
      abstract_ledger: likewise.
    Raises:
      UserError: there are checkpoints and none can be read.
    """
    steps = self._steps_alike()
    if multihost.is_primary():
      self._remove_unfinished()
    warnings = []
    for step in steps:
      path = self.folder / str(step)
      why, loaded = _shared_problem(path, self._run), None
      if not why:
        try:
          parts = state_items(abstract_state) | {LEDGER: abstract_ledger}
          loaded = orbax().load_checkpointables(path, parts)
        except Exception as error:  # noqa: BLE001 - a damaged file surfaces as any of many types
          why = _short(error)
        why = multihost.first_message(why)
      if why:
        warnings.append(f"checkpoint of step {step} is damaged ({why})")
        continue
      for number in [s for s in steps if s > step]:  # set aside, never deleted
        self._set_aside(number)
      if not checkpoint_hashes.is_hashed(path):
        warnings.append(f"checkpoint of step {step} has no hashes to check it by")
      state, ledger = from_items(loaded)
      logs = {p.name: p.read_bytes() for p in (path / LOGS).glob("*") if p.is_file()}
      return Restored(step, state, ledger, tuple(warnings), logs)
    if steps:
      raise UserError(
        f"{self.folder}: none of the checkpoints {steps} can be read; {warnings[0]}; restore them"
        " from a copy or start again in another --workdir"
      )
    return None

  def _steps_alike(self) -> list[int]:
    """The first process's list: another may see a shared folder a moment later."""
    listed = multihost.broadcast_bytes(" ".join(map(str, self.steps())).encode()).decode()
    return [int(step) for step in listed.split()]

  def _remove_unfinished(self) -> None:
    """What a killed process left, under our temporary name or orbax's."""
    if self.folder.exists():
      for path in self.folder.iterdir():
        if path.name.startswith(UNFINISHED) or "orbax-checkpoint-tmp" in path.name:
          shutil.rmtree(path, ignore_errors=True)

  def _set_aside(self, step: int) -> None:
    if multihost.is_primary():
      path = self.folder / f"damaged-{step}"
      if path.exists():
        path = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
      os.rename(self.folder / str(step), path)
    multihost.barrier(f"checkpoint {step} set aside")


def steps_of(folder: pathlib.Path) -> list[int]:
  """Steps of the whole checkpoints in a folder, the newest first."""
  entries = folder.iterdir() if folder.is_dir() else ()
  return sorted((int(path.name) for path in entries if path.name.isdigit()), reverse=True)


def newest_step(folder: pathlib.Path) -> int:
  """Finished steps of the newest checkpoint in a folder of checkpoints.

  Raises:
    UserError: there is none.
  """
  if not (steps := steps_of(folder)):
    raise UserError(f"{folder} holds no checkpoint; train the run first")
  return steps[0]


def commit(
  path: pathlib.Path, step: int, run: str = "", check_owner: Callable[[], None] = lambda: None
) -> None:
  """Hashes the complete checkpoint at `path` and gives it its name."""
  checkpoint_hashes.write_hashes(path, step, run)
  check_owner()
  os.rename(path, path.with_name(str(step)))
  files.sync(path.parent)


def save_model(folder: pathlib.Path, step: int, params: Any, buffers: Any) -> None:
  """Writes a checkpoint of weights alone: it can be loaded by `load_model`, not trained on."""
  path = folder.resolve() / f"{UNFINISHED}{step}"
  parts = {MODEL: {"params": params, "buffers": buffers}}
  orbax().save_checkpointables(path, parts, custom_metadata=checkpoint_hashes.MARK)
  commit(path, step)


def load_model(
  folder: pathlib.Path, params: Any, buffers: Any, step: int | None = None, run: str = ""
) -> tuple[Any, Any]:
  """(params, buffers) of a checkpoint, without the optimizer's state.

  Args:
    params, buffers: pytrees of `ShapeDtypeStruct`s.
    step: finished steps of the checkpoint; None takes the newest.
    run: that it must be of; "" for any.
  Raises:
    UserError: there is no checkpoint, none of this step, or it is not what was written.
  """
  newest, steps = newest_step(folder), sorted(steps_of(folder))
  step = newest if step is None else step
  if step not in steps:
    raise UserError(
      f"{folder} holds no checkpoint of step {step}; there are those of"
      f" {', '.join(map(str, steps))}"
    )
  path = folder.resolve() / str(step)
  why = _shared_problem(path, run)
  if not why:
    try:
      wanted = {"params": params, "buffers": buffers}
      model = orbax().load_checkpointables(path, {MODEL: wanted})[MODEL]
      return model["params"], model["buffers"]
    except Exception as error:  # noqa: BLE001 - see `restore`
      why = _short(error)
  raise UserError(
    f"{folder}: the checkpoint of step {step} is damaged ({why}); restore it from a copy, or remove"
    " it and result.json and train again to resume from the one before it"
  )


def _shared_problem(path: pathlib.Path, run: str) -> str:
  """`checkpoint_hashes.problem`, the files shared by all processes; one answer in each."""
  part, num_parts = jax.process_index(), jax.process_count()
  return multihost.first_message(
    checkpoint_hashes.problem(path, run, part=part, num_parts=num_parts)
  )


def _short(error: Exception) -> str:
  """The first words of the error that orbax wrapped."""
  while error.__cause__ is not None:
    error = error.__cause__
  return " ".join(str(error).split())[:120] or type(error).__name__
