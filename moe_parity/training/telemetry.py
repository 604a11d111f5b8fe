"""What a run writes down while it trains: metrics.jsonl, routing.npz, TensorBoard.

Floats are written with `repr` precision, so two runs can be compared to the last bit. A run that
continues from a checkpoint first takes back the lines of steps after it, then writes them again.
"""

import contextlib
import functools
import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity.training import run_folder

METRICS = "metrics.jsonl"
ROUTING = "routing.npz"


class Telemetry:
  """Writer of one run folder."""

  def __init__(self, folder: pathlib.Path, *, from_step: int, tensorboard: bool = True):
    """Args:
    from_step: finished steps of the checkpoint this run goes on from; 0 for a fresh run.
    """
    self.folder = folder
    self._routing: dict[str, list] = {"steps": [], "num_tokens": [], "loads": []}
    self._keep_until(from_step)
    self._metrics = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
    self._tensorboard, self._from_step = tensorboard, from_step

  def _keep_until(self, step: int) -> None:
    path = self.folder / METRICS
    if path.exists():
      kept = [line for line in read_metrics(self.folder) if line["step"] <= step]
      run_folder.replace(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    if (self.folder / ROUTING).exists():
      with np.load(self.folder / ROUTING) as saved:
        inside = saved["steps"] <= step
        self._routing = {name: list(saved[name][inside]) for name in self._routing}

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
    """Writes routing.npz whole; called before each checkpoint, so none is ahead of it."""
    if self._routing["steps"]:
      path = self.folder / ROUTING
      temporary = path.with_suffix(".tmp.npz")
      np.savez_compressed(temporary, **{k: np.asarray(v) for k, v in self._routing.items()})
      os.replace(temporary, path)

  def close(self) -> None:
    self._metrics.close()
    if "_board" in vars(self):
      self._board.close()


class Silent:
  """In the place of `Telemetry` in all but the first of several processes: writes nothing."""

  def write(self, line: dict) -> None:
    pass

  def write_routing(self, step: int, num_tokens: int, load_LE: np.ndarray) -> None:
    pass

  def save_routing(self) -> None:
    pass

  def close(self) -> None:
    pass


def read_metrics(folder: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
  lines = []
  with open(folder / METRICS, encoding="utf-8") as file:
    for text in file:
      if text.endswith("\n"):
        lines.append(json.loads(text))
  return lines


def routing_health(load_LE: np.ndarray) -> dict[str, list]:
  """Per MoE layer: MaxVio = max load / mean load - 1 (2408.15664), and experts with no token."""
  num_experts = load_LE.shape[-1]
  return {
    "max_vio": [float(row.max() * num_experts - 1) for row in load_LE],
    "dead_experts": [int((row == 0).sum()) for row in load_LE],
  }


class Clock:
  """Time spent training, over restarts and without the pauses for validation and checkpoints."""

  def __init__(
    self, tokens_per_step: int, flops_per_token: int, peak: float, folder: pathlib.Path, first: int
  ):
    """Args:
    flops_per_token: M of training by the plan's convention.
    peak: FLOP/s that count as 1 in `peak_share`.
    first: finished steps; the time they took is read from the folder's metrics.
    """
    self.tokens_per_step, self.flops_per_token, self.peak = tokens_per_step, flops_per_token, peak
    self._before = 0.0
    if first:
      self._before = max((line["seconds"] for line in read_metrics(folder)), default=0.0)
    self._start, self._lap = time.perf_counter(), (first, time.perf_counter())

  @property
  def seconds(self) -> float:
    return self._before + time.perf_counter() - self._start

  @contextlib.contextmanager
  def paused(self):
    """Leaves the time inside out of `seconds` and of the rates."""
    start = time.perf_counter()
    yield
    pause = time.perf_counter() - start
    self._start += pause
    self._lap = (self._lap[0], self._lap[1] + pause)

  def rate(self, step: int) -> float:
    """Tokens a second since the last call."""
    (last_step, last_time), now = self._lap, time.perf_counter()
    self._lap = (step, now)
    return (step - last_step) * self.tokens_per_step / max(now - last_time, 1e-9)


def log_line(step: int, scalars: dict, clock: Clock) -> dict:
  """One "train" line of metrics.jsonl from a finished step's scalars (on the host)."""
  rate = clock.rate(step)
  load_LE = scalars.get("load_LE", np.zeros((0, 1)))
  number = lambda name: float(scalars.get(name, 0.0))  # noqa: E731
  return {
    "kind": "train",
    "step": step,
    "num_tokens": step * clock.tokens_per_step,
    "loss": number("loss"),
    "cross_entropy": number("cross_entropy"),
    "balance_loss": number("balance_loss"),
    "z_loss": number("z_loss"),
    "gradient_norm": number("gradient_norm"),
    "learning_rate": number("learning_rate"),
    "tokens_per_second": rate,
    "flops_per_second": rate * clock.flops_per_token,
    "peak_share": rate * clock.flops_per_token / clock.peak,
    "seconds": clock.seconds,
    **routing_health(load_LE),
    "router_entropy": [float(x) for x in scalars.get("router_entropy_L", ())],
    "drop_share": [float(x) for x in scalars.get("drop_share_L", ())],
  }


def validation_line(step: int, clock: Clock, validation: dict) -> dict:
  """One "validation" line of metrics.jsonl."""
  return {
    "kind": "validation",
    "step": step,
    "num_tokens": step * clock.tokens_per_step,
    "seconds": clock.seconds,
    **{name: validation[name] for name in ("cross_entropy", "bpc", "bpb")},
  }


def measured_peak(dtype: str, repeats: int = 8) -> float:
  """FLOP/s of the best of `repeats` square matrix products on one device, in this process.

  The yardstick of `peak_share`: what this machine reaches now, not what a data sheet says.
  """
  size = 1024 if jax.default_backend() == "cpu" else 8192
  a = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, a))
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(product(a, a))
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
