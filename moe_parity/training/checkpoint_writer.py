"""Writes checkpoints in the background, one at a time: what those on disk and on a bucket share."""

import abc
import concurrent.futures
import contextlib
import functools
import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_parity.training import checkpoint_hashes
from moe_parity.training.state import TrainState

MODEL, TRAINER, LEDGER = "model", "trainer", "ledger"  # parts that can be read by themselves


class CheckpointWriter(abc.ABC):
  """Writes one checkpoint at a time while training continues.

  A subclass says where (`_new_path`) and what makes a checkpoint valid once its arrays are written
  (`_finish`, in the background).
  """

  def __init__(self):
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._commit: concurrent.futures.Future | None = None

  def save(
    self,
    step: int,
    state: TrainState,
    ledger: dict[str, np.ndarray],
    logs: Mapping[str, bytes] | None = None,
  ) -> None:
    """Starts writing; returns once the arrays are copied. Waits for the save before it."""
    self.wait()
    path = self._new_path(step)
    saving = orbax().save_checkpointables_async(
      path, to_items(state, ledger), custom_metadata=checkpoint_hashes.MARK
    )
    self._commit = self._pool.submit(self._finish, saving, path, step, dict(logs or {}))

  def wait(self) -> None:
    """Returns when the last save is finished; raises its error if it failed (a full disk)."""
    commit, self._commit = self._commit, None
    if commit is not None:
      commit.result()

  def close(self) -> None:
    """Waits for the last save. Its error, if any, was `wait`'s to raise, at a run's end or stop."""
    with contextlib.suppress(Exception):
      self.wait()
    self._pool.shutdown()

  @abc.abstractmethod
  def _new_path(self, step: int) -> Any:
    """Where the arrays of a step are written until they are complete."""

  @abc.abstractmethod
  def _finish(self, saving: Any, path: Any, step: int, logs: dict[str, bytes]) -> None:
    """Waits for the arrays, then makes `path` the checkpoint of `step`."""


def state_items(state: TrainState) -> dict[str, dict]:
  return {
    MODEL: {"params": state.params, "buffers": state.buffers},
    TRAINER: {"step": state.step, "optimizer": state.optimizer},
  }


def to_items(state: TrainState, ledger: Mapping[str, Any]) -> dict[str, dict]:
  """What a checkpoint holds, by item."""
  return state_items(state) | {LEDGER: {name: np.asarray(value) for name, value in ledger.items()}}


def from_items(loaded: Mapping[str, dict]) -> tuple[TrainState, dict[str, np.ndarray]]:
  ledger = {name: np.asarray(value) for name, value in loaded[LEDGER].items()}
  return TrainState(**loaded[MODEL], **loaded[TRAINER]), ledger


@functools.cache
def _ignore_late_callbacks() -> None:
  """After a save that failed, as on a full disk, tensorstore's threads call into orbax's event
  loop, which is closed by then. `wait` has raised the error; each call would print a traceback.
  """
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
      before(unraisable)

  sys.unraisablehook = hook


def orbax():
  """Slow to import: a fresh run needs it only at its first save."""
  from orbax.checkpoint import v1 as ocp

  # Orbax narrates every save at INFO; it and the threads it starts log with a traceback what is
  # raised as well.
  for name in ("absl", "asyncio", "concurrent.futures"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  _ignore_late_callbacks()
  return ocp
