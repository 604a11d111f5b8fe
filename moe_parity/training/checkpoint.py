"""Checkpoints of a run: state, data position and ledger together, written in the background.

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a process
killed at any moment leaves only whole checkpoints. One that is damaged afterwards (a lost file, a
flipped byte that its format notices) is passed over for the one before it, with a warning.
"""

import dataclasses
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from moe_parity.errors import UserError

STATE = "state"
LEDGER = "ledger"


@dataclasses.dataclass(frozen=True)
class Restored:
  """`step` finished steps, the state after them, the ledger's arrays, and what was passed over."""

  step: int
  state: Any
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
    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save at INFO
    self._ocp = ocp
    self.folder = folder.resolve()
    self._checkpointer = ocp.training.Checkpointer(
      self.folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any, ledger: dict[str, np.ndarray]) -> None:
    """Starts writing; returns once the arrays are copied. Waits for the save before it."""
    self.wait()
    self._checkpointer.save_checkpointables_async(
      step, {STATE: state, LEDGER: {name: np.asarray(value) for name, value in ledger.items()}}
    )

  def wait(self) -> None:
    """Returns when the last save is on disk; raises what went wrong with it (a full disk)."""
    self._checkpointer.wait()

  def restore(self, abstract_state: Any, abstract_ledger: dict[str, Any]) -> Restored | None:
    """The newest checkpoint that can be read whole; None if there is none at all.

    Args:
      abstract_state: a pytree of arrays or `ShapeDtypeStruct`s (with shardings on a mesh).
      abstract_ledger: likewise.
    Raises:
      UserError: there are checkpoints and none can be read.
    """
    steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
    warnings = []
    for step in steps:
      try:
        loaded = self._checkpointer.load_checkpointables(
          step, {STATE: abstract_state, LEDGER: abstract_ledger}
        )
      except Exception as error:  # noqa: BLE001 - a damaged file surfaces as any of many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        warnings.append(f"checkpoint of step {step} cannot be read ({reason})")
        continue
      for number in [s for s in steps if s > step]:  # unreadable: set aside, never deleted
        self._set_aside(number)
      ledger = {name: np.asarray(value) for name, value in loaded[LEDGER].items()}
      return Restored(step, loaded[STATE], ledger, tuple(warnings))
    if steps:
      raise UserError(
        f"{self.folder}: none of the checkpoints {steps} can be read; {warnings[0]}; restore them"
        " from a copy or start again in another --workdir"
      )
    return None

  def _set_aside(self, step: int) -> None:
    for path in self.folder.glob(f"*{step}"):
      if path.name.rpartition("_")[2] == str(step):
        shutil.move(path, path.with_name(f"damaged-{path.name}"))
    self._checkpointer.reload()

  def close(self) -> None:
    self._checkpointer.close()


def abstract(tree: Any) -> Any:
  """Shapes, dtypes and shardings of a pytree of arrays."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
  )
