"""Checkpoints of a run: train state and data ledger together, written in the background.

Orbax writes a checkpoint under a temporary name and renames it when complete, so a process killed
at any moment leaves only complete checkpoints. One that is damaged later (a missing file, a flipped
byte that its format detects) is skipped for the one before it, with a warning.
"""

import dataclasses
import functools
import logging
import pathlib
import shutil
from typing import Any

import numpy as np

from moe_parity.errors import UserError
from moe_parity.sharding import multihost
from moe_parity.training.state import TrainState

MODEL, TRAINER, LEDGER = "model", "trainer", "ledger"  # parts that can be read by themselves


@dataclasses.dataclass(frozen=True)
class Restored:
  """The state after `step` steps, the ledger's arrays, a warning for each skipped checkpoint."""

  step: int
  state: TrainState
  ledger: dict[str, np.ndarray]
  warnings: tuple[str, ...]


class Checkpoints:
  """The checkpoints of one run folder."""

  def __init__(self, folder: pathlib.Path, keep: int):
    """Keeps the newest `keep`; at least two, so that there is one to fall back on.

    Raises:
      UserError: keep < 2.
    """
    if keep < 2:
      raise UserError(
        f"train.keep_checkpoints={keep} leaves nothing to fall back on when the newest checkpoint"
        " is damaged; use 2 or more"
      )
    self.folder, self._keep = folder.resolve(), keep

  @functools.cached_property
  def _checkpointer(self):
    from orbax.checkpoint import (
      v1 as ocp,  # slow to import: a fresh run needs it only at its first save
    )

    # Orbax narrates every save at INFO, and logs with a traceback a thread what it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp.training.Checkpointer(
      self.folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
      cleanup_tmp_directories=True,
    )

  def _is_open(self) -> bool:
    return "_checkpointer" in vars(self)

  def steps(self) -> list[int]:
    """Steps of the checkpoints, the newest first."""
    if not self._is_open() and not self.folder.exists():
      return []
    return sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)

  def save(self, step: int, state: TrainState, ledger: dict[str, np.ndarray]) -> None:
    """Starts writing; returns once the arrays are copied. Waits for the save before it."""
    self.wait()
    arrays = {name: np.asarray(value) for name, value in ledger.items()}
    self._checkpointer.save_checkpointables_async(step, _parts(state) | {LEDGER: arrays})

  def wait(self) -> None:
    """Returns when the last save is on disk; raises its error if it failed (a full disk)."""
    if self._is_open():
      self._checkpointer.wait()

  def restore(self, abstract_state: TrainState, abstract_ledger: dict[str, Any]) -> Restored | None:
    """The newest checkpoint that can be read whole; None if there is none at all.

    Args:
      abstract_state: a pytree of arrays or `ShapeDtypeStruct`s (with shardings on a mesh).
      abstract_ledger: likewise.
    Raises:
      UserError: there are checkpoints and none can be read.
    """
    steps = self.steps()
    warnings = []
    for step in steps:
      try:
        loaded = self._checkpointer.load_checkpointables(
          step, _parts(abstract_state) | {LEDGER: abstract_ledger}
        )
      except Exception as error:  # noqa: BLE001 - a damaged file surfaces as any of many types
        loaded, why = None, _short(error)
      if not multihost.all_agree(loaded is not None):
        why = "another process failed on it" if loaded is not None else why
        warnings.append(f"checkpoint of step {step} cannot be read ({why})")
        continue
      for number in [s for s in steps if s > step]:  # unreadable: set aside, never deleted
        self._set_aside(number)
      ledger = {name: np.asarray(value) for name, value in loaded[LEDGER].items()}
      state = TrainState(**loaded[MODEL], **loaded[TRAINER])
      return Restored(step, state, ledger, tuple(warnings))
    if steps:
      raise UserError(
        f"{self.folder}: none of the checkpoints {steps} can be read; {warnings[0]}; restore them"
        " from a copy or start again in another --workdir"
      )
    return None

  def _set_aside(self, step: int) -> None:
    for path in self.folder.glob(f"*{step}") if multihost.is_primary() else ():
      if path.name.rpartition("_")[2] == str(step):
        shutil.move(path, path.with_name(f"damaged-{path.name}"))
    multihost.barrier(f"checkpoint {step} set aside")
    self._checkpointer.reload()

  def close(self) -> None:
    if self._is_open():
      self._checkpointer.close()


def _parts(state: TrainState) -> dict[str, dict]:
  return {
    MODEL: {"params": state.params, "buffers": state.buffers},
    TRAINER: {"step": state.step, "optimizer": state.optimizer},
  }


def save_model(folder: pathlib.Path, step: int, params: Any, buffers: Any) -> None:
  """Writes a checkpoint of weights alone: it can be loaded by `load_model`, not trained on."""
  from orbax.checkpoint import v1 as ocp

  with ocp.training.Checkpointer(folder.resolve()) as checkpointer:
    parts = {MODEL: {"params": params, "buffers": buffers}}
    checkpointer.save_checkpointables(step, parts)


def newest_step(folder: pathlib.Path) -> int:
  """Finished steps of the newest checkpoint in a folder of checkpoints.

  Raises:
    UserError: there is none.
  """
  steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
  if not steps:
    raise UserError(f"{folder} holds no checkpoint; train the run first")
  return max(steps)


def load_model(
  folder: pathlib.Path, params: Any, buffers: Any, step: int | None = None
) -> tuple[Any, Any]:
  """(params, buffers) of a checkpoint, without the optimizer's state.

  Args:
    params, buffers: pytrees of `ShapeDtypeStruct`s.
    step: finished steps of the checkpoint; None takes the newest.
  Raises:
    UserError: there is no checkpoint, none of this step, or it cannot be read.
  """
  from orbax.checkpoint import v1 as ocp

  if not folder.exists():  # a Checkpointer would make it
    raise UserError(f"{folder} holds no checkpoint; train the run first")
  with ocp.training.Checkpointer(folder.resolve()) as checkpointer:
    if checkpointer.latest is None:
      raise UserError(f"{folder} holds no checkpoint; train the run first")
    steps = sorted(c.step for c in checkpointer.checkpoints)
    step = steps[-1] if step is None else step
    if step not in steps:
      raise UserError(
        f"{folder} holds no checkpoint of step {step}; there are those of"
        f" {', '.join(map(str, steps))}"
      )
    try:
      wanted = {"params": params, "buffers": buffers}
      model = checkpointer.load_checkpointables(step, {MODEL: wanted})[MODEL]
    except Exception as error:  # noqa: BLE001 - see `restore`
      raise UserError(
        f"{folder}: the checkpoint of step {step} cannot be read ({_short(error)}); train again to"
        " resume from the one before it"
      ) from error
  return model["params"], model["buffers"]


def _short(error: Exception) -> str:
  """The first words of the error that orbax wrapped."""
  while error.__cause__ is not None:
    error = error.__cause__
  return " ".join(str(error).split())[:120] or type(error).__name__
