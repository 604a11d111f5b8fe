"""Writes what a run logs while it trains: metrics.jsonl, routing.npz and TensorBoard events.

Each checkpoint holds a copy of the first two as they were at its step. A run that resumes from it
continues from them: lines of later steps are removed and written again, lost or damaged ones are
restored and named. TensorBoard's events are drawn anew from the lines.
"""

import collections
import gzip
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from moe_parity import files
from moe_parity.training.events import Events
from moe_parity.training.metrics import METRICS, parse_metrics

ROUTING = "routing.npz"
COPY = f"{METRICS}.gz"  # of the metrics, in a checkpoint


class Telemetry:
  """Writer of one run folder."""

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    from_step: int,
    logs: Mapping[str, bytes] | None = None,
    warn: Callable[[str], None] = lambda line: None,
  ):
    """Args:
    from_step: finished steps of the checkpoint this run resumes from; 0 for a fresh run.
    logs: what `snapshot` returned then; {} where a checkpoint of an earlier version has none.
    warn: called with a line about what was lost or damaged.
    """
    self.folder, self._from_step = folder, from_step
    lines = self._lines_before(dict(logs or {}), warn)
    self.seconds_before = max((line.get("seconds", 0.0) for line in lines), default=0.0)
    self._routing = self._routing_before(dict(logs or {}), warn)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    files.write_bytes(folder / METRICS, text.encode())
    self._metrics = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
    self._events = Events(folder)
    for line in lines:
      self._events.write(line)

  def _lines_before(self, logs: dict[str, bytes], warn) -> list[dict]:
    """The lines up to `from_step`: the checkpoint's, else those of metrics.jsonl that are whole."""
    path = self.folder / METRICS
    content = path.read_bytes() if path.exists() else b""
    lines, num_broken = parse_metrics(content, self._from_step)
    if not self._from_step:
      return []
    if COPY not in logs:
      if num_broken or not lines:
        warn(f"{METRICS}: {num_broken or 'all'} lines before step {self._from_step} are lost")
      return lines
    kept, _ = parse_metrics(gzip.decompress(logs[COPY]), self._from_step)
    if lines != kept:
      same = sum((_counted(kept) & _counted(lines)).values())
      warn(
        f"{METRICS} lacked or had changed {len(kept) - same} of its {len(kept)} lines up to step"
        f" {self._from_step}; restored from the checkpoint"
        if same < len(kept)
        else f"{METRICS} had {len(lines) - same} strange lines before step {self._from_step};"
        " removed"
      )
    return kept

  def _routing_before(self, logs: dict[str, bytes], warn) -> dict[str, list]:
    empty: dict[str, list] = {"steps": [], "num_tokens": [], "loads": []}
    path = self.folder / ROUTING
    content = path.read_bytes() if path.exists() else b""
    if not self._from_step:
      path.unlink(missing_ok=True)
      return empty
    saved_routing = logs.get(ROUTING)
    if saved_routing is None and (COPY in logs or not content):
      return empty  # a dense run
    if saved_routing is not None and content != saved_routing:
      # A file of a later step begins as the copy does.
      routing = _read_routing(content)
      expected = _read_routing(saved_routing)
      size = len(expected["steps"])
      if routing is None or any(
        not np.array_equal(routing[name][:size], expected[name]) for name in expected
      ):
        warn(f"{ROUTING} was lost or damaged; restored from the checkpoint")
      files.write_bytes(path, saved_routing)
    saved = _read_routing(content if saved_routing is None else saved_routing)
    if saved is None:
      warn(f"{ROUTING} is damaged; expert loads before step {self._from_step} are lost")
      return empty
    is_before = saved["steps"] <= self._from_step
    return {name: list(saved[name][is_before]) for name in empty}

  def write(self, line: dict) -> None:
    """Appends one line (`kind` "train" or "validation") and mirrors its numbers to TensorBoard."""
    self._metrics.write(json.dumps(line) + "\n")
    self._metrics.flush()
    self._events.write(line)

  def write_routing(self, step: int, num_tokens: int, load_LE: np.ndarray) -> None:
    """Remembers expert loads (share of assignments, a row a MoE layer) for `snapshot`."""
    self._routing["steps"].append(step)
    self._routing["num_tokens"].append(num_tokens)
    self._routing["loads"].append(np.asarray(load_LE, np.float32))

  def snapshot(self) -> dict[str, bytes]:
    """Writes routing.npz, puts all on disk, and returns the copies that a checkpoint of this step
    holds."""
    self._metrics.flush()
    os.fsync(self._metrics.fileno())
    logs = {COPY: gzip.compress((self.folder / METRICS).read_bytes(), mtime=0)}
    if self._routing["steps"]:
      arrays = {name: np.asarray(values) for name, values in self._routing.items()}
      file = io.BytesIO()
      np.savez_compressed(file, **arrays)
      logs[ROUTING] = file.getvalue()
      files.write_bytes(self.folder / ROUTING, logs[ROUTING])
    return logs

  def close(self) -> None:
    self._metrics.close()
    self._events.close()


class NullTelemetry:
  """Stands for `Telemetry` in all but the first of several processes: writes nothing."""

  seconds_before = 0.0

  def write(self, line: dict) -> None:
    pass

  def write_routing(self, step: int, num_tokens: int, load_LE: np.ndarray) -> None:
    pass

  def snapshot(self) -> dict[str, bytes]:
    return {}

  def close(self) -> None:
    pass


def _counted(lines: list[dict]) -> collections.Counter:
  return collections.Counter(map(json.dumps, lines))


def _read_routing(content: bytes) -> dict[str, np.ndarray] | None:
  """The arrays of a routing.npz; None for what cannot be read."""
  try:
    with np.load(io.BytesIO(content)) as saved:
      return {name: saved[name] for name in ("steps", "num_tokens", "loads")}
  except Exception:  # noqa: BLE001 - a damaged file surfaces as any of many types
    return None
