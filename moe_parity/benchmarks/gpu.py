"""`bench --only=gpu`: what one GPU does with this code, in eight minutes, every figure recorded.

Seven parts, each with its share of the time: PyTorch's figures for the same shapes, where it is
installed; the device's own rates; numerics of every implementation against float64; attention;
experts against a dense FFN; full train steps; two arms of a study. A figure is written to the file
as soon as it is there, and one that fails is a line of it, so a run that is cut short loses
nothing. Where there is no GPU the same code runs small shapes.
"""

import dataclasses
import importlib.metadata
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity import config as configs
from moe_parity.benchmarks import gpu_layers, gpu_study, torch_reference
from moe_parity.files import write_json
from moe_parity.kernels.common import attention_device, compute_capability
from moe_parity.planning.plan import make_plan
from moe_parity.training.build import model_options, optimizer_options, step_options
from moe_parity.training.out_of_memory import planned_here
from moe_parity.training.peak_flops import measure_peak_flops
from moe_parity.training.state import init_state
from moe_parity.training.step import make_train_step

SECONDS = 480
# The part of all seconds at which a part stops starting figures.
UNTIL = {
  "torch": 0.1, "device": 0.14, "numerics": 0.3, "attention": 0.45, "experts": 0.62, "step": 0.85,
  "study": 1.0,
}  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "numpy")
# (config, arm, changes, sequences of the batch): dense and MoE at 160 M, then at 2 B.
STEPS = (
  ("single_gpu", "dense", {}, 24),
  ("single_gpu", "moe_20", {}, 24),
  ("single_gpu", "dense", {"model.attention": "blocks"}, 24),
  ("single_gpu", "moe_20", {"model.attention": "blocks"}, 24),
  ("single_gpu", "dense", {"model.remat": "layer"}, 24),
  ("single_gpu", "moe_20", {"model.remat": "layer"}, 24),
  ("single_gpu", "moe_20", {"train.micro_batch_sequences": 24}, 24),
  ("paper_2b", "moe_20", {"model.remat": "none", "train.micro_batch_sequences": 4}, 16),
)
TINY_STEPS = (("single_gpu", "dense", {}, 2), ("single_gpu", "moe_20", {}, 2))


class Recorder:
  """Rows of a running benchmark, in its file from the moment they are known.

  Attributes:
    rows: {"part", "name", "at" (seconds since the start), figures}. A figure that failed has
      `error`, one for which no time was left `skipped`.
  """

  def __init__(self, path: pathlib.Path | None, seconds: float | int):
    self.rows: list[dict] = []
    self._path, self._seconds, self._begin = path, seconds, time.perf_counter()

  def measure(self, part: str, name: str, figures: Callable[[], dict]) -> dict:
    """Adds a row of what `figures` returns, unless the part's time is over."""
    left = self.left(part)
    if left <= 0:
      return self.add(part, name, {"skipped": f"the part's time is over by {-left:.0f} s"})
    try:
      return self.add(part, name, figures())
    except Exception as error:
      text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
      return self.add(part, name, {"error": text})

  def left(self, part: str) -> float:
    """Seconds that a part has left."""
    return self._seconds * UNTIL[part] - self._elapsed()

  def _elapsed(self) -> float:
    return time.perf_counter() - self._begin

  def add(self, part: str, name: str, figures: dict) -> dict:
    """Adds a row of figures that are there."""
    row = {"part": part, "name": name, "at": round(self._elapsed(), 1), **figures}
    self.rows.append(row)
    if self._path is not None:
      write_json(self._path, {"rows": self.rows})
    return row


def run(
  path: pathlib.Path | None = None, seconds: float | int = SECONDS, tiny: bool | None = None
) -> list[dict]:
  """All parts; the rows of `Recorder`.

  Args:
    path: of the JSON file that grows meanwhile; None writes none.
    seconds: for all parts.
    tiny: small shapes; None where there is no GPU.
  """
  recorder = Recorder(path, seconds)
  # First, because JAX takes nearly all of a GPU's memory when it looks for devices.
  for name, figures in torch_reference.reference(UNTIL["torch"] * seconds).items():
    recorder.add("torch", name, figures)
  tiny = jax.default_backend() != "gpu" if tiny is None else tiny
  peak = device(recorder, tiny)
  for part, figures in (
    ("numerics", gpu_layers.numerics(tiny)),
    ("attention", gpu_layers.attention(tiny)),
    ("experts", gpu_layers.experts(tiny)),
  ):
    for name, measure in figures.items():
      recorder.measure(part, name, measure)
  for config, arm, changes, sequences in TINY_STEPS if tiny else STEPS:
    name = " ".join([config, arm, *(f"{key}={value}" for key, value in changes.items())])
    recorder.measure(
      "step",
      name,
      lambda case=(config, arm, changes, sequences): step(*case, peak=peak, tiny=tiny),
    )
  recorder.measure(
    "study", "demo", lambda: gpu_study.trained(max(recorder.left("study"), 30), tiny)
  )
  return recorder.rows


def device(recorder: Recorder, tiny: bool) -> float:
  """The device, its rate of matrix products and of copies; bfloat16 FLOP/s, 0 if that failed."""
  recorder.measure("device", "versions", _versions)
  peak = 0.0
  for dtype in ("float32", "bfloat16"):

    def product(dtype=dtype):
      return {"tflops": measure_peak_flops(dtype, repeats=2 if tiny else 8) / 1e12}

    peak = recorder.measure("device", f"matrix product, {dtype}", product).get("tflops", 0.0)

  def copy():
    x = jnp.ones(2**16 if tiny else 2**30, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    seconds = gpu_layers.seconds_of(lambda: add(x))
    return {"terabytes_per_second": 2 * x.nbytes / seconds / 1e12}

  recorder.measure("device", "copy", copy)
  return 1e12 * peak


def _versions() -> dict[str, Any]:
  packages = {d.metadata["Name"] for d in importlib.metadata.distributions()}
  limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
  return {
    "device": jax.devices()[0].device_kind,
    "compute_capability": compute_capability(),
    "memory_gib": limit / 2**30,
    **{name: importlib.metadata.version(name) for name in PACKAGES if name in packages},
  }


def step(
  name: str, arm: str, changes: dict[str, Any], sequences: int, *, peak: float, tiny: bool
) -> dict[str, Any]:
  """Figures of an arm's full train step.

  Args:
    changes: fields of the config by their dotted names.
    sequences: of the batch, in place of the plan's.
    peak: bfloat16 FLOP/s of matrix products on this device.
  """
  overrides = [f"--config.{field}={value}" for field, value in changes.items()]
  path = configs.shipped(f"configs/{name}.py")
  config = configs.load(f"{path}:tiny" if tiny else str(path), overrides)
  plan = {plan.name: plan for plan in make_plan(config).arms}[arm]
  plan = dataclasses.replace(plan, batch_sequences=sequences)
  model, optimizer = model_options(config), optimizer_options(config, plan)
  train_step = make_train_step(plan.architecture, model, optimizer, step_options(config, plan))
  state = init_state(plan.architecture, model, optimizer, 0, None)
  rows = np.random.default_rng(0).integers(
    0, plan.architecture.vocab_size, (sequences, plan.seq_len + 1), np.int32
  )
  inputs, targets = jax.device_put((rows[:, :-1], rows[:, 1:]))
  start = time.perf_counter()
  compiled = train_step.lower(state, inputs, targets).compile()
  compile_seconds = time.perf_counter() - start
  times = []
  for _ in range(3 if tiny else 6):
    start = time.perf_counter()
    state, scalars = compiled(state, inputs, targets, train_step.rates)
    loss = float(scalars["loss"])
    times.append(time.perf_counter() - start)
  seconds, memory = statistics.median(times[1:]), compiled.memory_analysis()
  tokens, planned = sequences * plan.seq_len, planned_here(config, plan)
  attention = model.attention_choice(attention_device(), plan.seq_len, plan.architecture.d_head)
  return {
    "attention": attention.implementation,
    "step_seconds": seconds,
    "tokens_per_second": tokens / seconds,
    "share_of_peak": plan.train_flops_per_token * tokens / seconds / peak if peak else None,
    "loss": loss,
    "sequences": sequences,
    "compile_seconds": compile_seconds,
    "argument_gib": memory.argument_size_in_bytes / 2**30,
    "temporary_gib": memory.temp_size_in_bytes / 2**30,
    "planned_gib": planned.total / 2**30,
  }


def table(rows: list[dict]) -> list[dict]:
  """Rows for a printed table: one text of figures each."""

  def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

  return [
    {"part": row["part"], "name": row["name"]}
    | {
      "figures": ", ".join(
        f"{key} {shown(value)}" for key, value in row.items() if key not in ("part", "name", "at")
      )
    }
    for row in rows
  ]
