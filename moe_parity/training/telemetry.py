"""Writes what a run logs while it trains: metrics.jsonl, routing.npz and TensorBoard events.

A run that resumes from a checkpoint first removes the lines of later steps, then writes them again.
"""

import functools
import json
import pathlib

import numpy as np

from moe_parity import files
from moe_parity.training.metrics import METRICS, read_metrics

ROUTING = "routing.npz"


class Telemetry:
  """Writer of one run folder."""

  def __init__(self, folder: pathlib.Path, *, from_step: int, tensorboard: bool = True):
    """Args:
    from_step: finished steps of the checkpoint this run resumes from; 0 for a fresh run.
    """
    self.folder = folder
    self._routing: dict[str, list] = {"steps": [], "num_tokens": [], "loads": []}
    self._truncate_after(from_step)
    self._metrics = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
    self._tensorboard, self._from_step = tensorboard, from_step

  def _truncate_after(self, step: int) -> None:
    path = self.folder / METRICS
    if path.exists():
      lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
      files.write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if (self.folder / ROUTING).exists():
      with np.load(self.folder / ROUTING) as saved:
        is_before = saved["steps"] <= step
        self._routing = {name: list(saved[name][is_before]) for name in self._routing}

  def write(self, line: dict) -> None:
    """Appends one line (`kind` "train" or "validation") and mirrors its numbers to TensorBoard."""
    self._metrics.write(json.dumps(line) + "\n")
    self._metrics.flush()
    if not self._tensorboard:
      return
    for name, value in line.items():
      if name in ("kind", "step"):
        continue
      values = value if isinstance(value, list) else [value]
      for index, number in enumerate(values):
        suffix = f"/layer_{index}" if isinstance(value, list) else ""
        self._board.add_scalar(f"{line['kind']}/{name}{suffix}", number, line["step"])

  @functools.cached_property
  def _board(self):
    from tensorboardX import SummaryWriter  # its 0.07 s come after the first loss

    return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._from_step + 1)

  def write_routing(self, step: int, num_tokens: int, load_LE: np.ndarray) -> None:
    """Remembers expert loads (share of assignments, a row a MoE layer) for `save_routing`."""
    self._routing["steps"].append(step)
    self._routing["num_tokens"].append(num_tokens)
    self._routing["loads"].append(np.asarray(load_LE, np.float32))

  def save_routing(self) -> None:
    """Writes routing.npz; called before each checkpoint, so that none is ahead of it."""
    if self._routing["steps"]:
      arrays = {name: np.asarray(values) for name, values in self._routing.items()}
      files.write_npz(self.folder / ROUTING, **arrays)

  def close(self) -> None:
    self._metrics.close()
    if "_board" in vars(self):
      self._board.close()


class NullTelemetry:
  """Stands for `Telemetry` in all but the first of several processes: writes nothing."""

  def write(self, line: dict) -> None:
    pass

  def write_routing(self, step: int, num_tokens: int, load_LE: np.ndarray) -> None:
    pass

  def save_routing(self) -> None:
    pass

  def close(self) -> None:
    pass
