"""`moe-parity bench`: what this machine does with this code, as ratios from one run.

These machines are shared and drift: a figure is a median over repeats, and figures that are
compared are taken in turn in the same process.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from moe_parity.errors import UserError, suggest

COLUMNS = {  # of each benchmark: what its rows say, and which way is better
  "startup": "seconds from a command to its answer, over repeats",
  "step": "wall and CPU time of full train steps; gflop_per_s counts the paper's M and the output"
  " head, share_of_peak is that over what matrix products reached in this run",
  "layer": "ratio: time of a dense FFN of equal activated FLOPs over that of the MoE layer, so 1 is"
  " no overhead for routing and less is slower; shape: E experts of width I, K chosen, d_model D;"
  " max_vio: largest load over the mean, less 1",
  "exchange": "ratio: time on all simulated devices over time on one, so 1 is no cost for moving"
  " tokens and more is slower; skew: of the experts' popularity, 0 is even",
  "compile": "ratio: seconds for 24 layers over seconds for 6; 1 is no cost for depth",
  "loader": "tokens out of the loader, in a second of wall time and of CPU time",
  "coverage": "measured: how often an interval that claims `nominal` holds the truth, or what is"
  " named in BPC; in_range: whether that is called good",
  "decode": "speed_up: the dense arm's time over this arm's at equal N, more is faster;"
  " roofline_speed_up: what bandwidth and peak of this run allow; of a prefill none is computed",
  "gpu": "figures of each part; `error` or `skipped` where one could not be had",
}
WITH_FILES = ("decode", "gpu")  # what these have to show goes into a folder
ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(only: Sequence[str] = (), results: pathlib.Path | None = None) -> dict[str, list[dict]]:
  """Name -> rows of each benchmark named in `only` (if empty, all but `gpu`).

  Args:
    results: folder for what a benchmark has to show beyond its rows: decode.json, decode.png,
      gpu.json.
  Raises:
    UserError: no such benchmark, or a folder that cannot be made or that none writes into.
  """
  suite: dict[str, Callable[[], list[dict]]] = {
    "startup": startup,
    "step": step,
    "layer": layer,
    "exchange": exchange,
    "compile": compile_time,
    "loader": loader,
    "coverage": coverage,
    "decode": functools.partial(decode, results),
    "gpu": functools.partial(gpu, results),
  }
  for name in only:
    if name not in suite:
      hint = suggest(name, suite)
      raise UserError(f"--only={name}: the benchmarks are {', '.join(suite)}{hint}")
  if results is not None and only and not set(only) & set(WITH_FILES):
    raise UserError(
      f"--results={results}: {', '.join(only)} writes no file; of the benchmarks"
      f" {', '.join(WITH_FILES)} do"
    )
  if results is not None:
    try:
      results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      way_out = f"cannot be made ({error.strerror}); give a folder"
      raise UserError(f"--results={results} {way_out}") from None
  chosen = only or [name for name in suite if name != "gpu"]  # eight minutes of a GPU's own
  return {name: measure() for name, measure in suite.items() if name in chosen}


def gpu(results: pathlib.Path | None) -> list[dict]:
  """What one GPU does with this code (small shapes elsewhere); see `benchmarks.gpu`."""
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.benchmarks import gpu as measure

  return measure.table(measure.run(None if results is None else results / "gpu.json"))


def decode(results: pathlib.Path | None) -> list[dict]:
  """Dense against MoE arms of equal N where they generate text; see `benchmarks.decode`."""
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.benchmarks import decode as measure
  from moe_parity.benchmarks.decode_figure import figure
  from moe_parity.files import write_bytes, write_json
  from moe_parity.report.figure_style import DESK

  result = measure.run()
  if results is not None:
    write_json(results / "decode.json", result)
    write_bytes(results / "decode.png", figure(result).png(DESK))
  return measure.table(result)


def startup() -> list[dict]:
  """Seconds from a command to its answer; see `benchmarks.startup`."""
  from moe_parity.benchmarks import startup as measure

  return measure.run()


def common_work() -> dict:
  """name -> Architecture of the work that MaxText was timed on (docs/benchmarks.md)."""
  from moe_parity.planning.architecture import Architecture

  shape = dict(num_layers=4, d_model=256, num_heads=4, d_head=64, vocab_size=1024)
  return {
    "dense": Architecture(**shape, d_ffn=1024),
    "moe": Architecture(
      **shape, layout="full", num_experts=8, experts_per_token=2, d_expert=512
    ),
  }  # fmt: skip


def prepared_step(name: str, dtype: str):
  """(train step, state after three steps, batch) of the common work "dense" or "moe": 8 sequences
  of 256 tokens."""
  import jax
  import numpy as np

  from moe_parity.model.options import ModelOptions
  from moe_parity.training.optimizer import OptimizerOptions
  from moe_parity.training.state import init_state
  from moe_parity.training.step import StepOptions, make_train_step

  rows = np.random.default_rng(0).integers(0, 1024, (8, 257)).astype(np.int32)
  batch = jax.device_put((rows[:, :-1], rows[:, 1:]))
  optimizer = OptimizerOptions(3e-4, 1e-5, num_steps=1000, warmup_steps=100)
  model, architecture = ModelOptions(position="rope", dtype=dtype), common_work()[name]
  train_step = make_train_step(architecture, model, optimizer, StepOptions())
  state = init_state(architecture, model, optimizer, seed=0)
  for _ in range(3):
    state, scalars = train_step(state, *batch)
  jax.block_until_ready(scalars)
  return train_step, state, batch


def step(repeats: int = 12, dtypes: Sequence[str] = ("float32", "bfloat16")) -> list[dict]:
  """Full train steps of the common work, dense and MoE in turn."""
  import jax

  from moe_parity.planning.accounting import cost_of
  from moe_parity.startup import start_jax
  from moe_parity.training.peak_flops import measure_peak_flops

  start_jax()
  arms = {}
  for dtype in dtypes:
    for name, architecture in common_work().items():
      train_step, state, batch = prepared_step(name, dtype)
      # What the arithmetic units have to do: the plan's M and the head, which N and M leave out.
      cost = cost_of(architecture, 256)
      flops = cost.train_flops_per_token + 3 * 2 * architecture.vocab_size * architecture.d_model
      arms[name, dtype] = {
        "step": train_step,
        "state": state,
        "flops": flops,
        "wall": [],
        "cpu": [],
      }
  peaks: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
  for _ in range(repeats):
    for dtype in dtypes:
      peaks[dtype].append(measure_peak_flops(dtype))
    for arm in arms.values():
      wall, cpu = time.perf_counter(), time.process_time()
      arm["state"], scalars = arm["step"](arm["state"], *batch)
      jax.block_until_ready(scalars)
      arm["wall"].append(time.perf_counter() - wall)
      arm["cpu"].append(time.process_time() - cpu)
  table = []
  for (name, dtype), arm in arms.items():
    rate = batch[0].size / statistics.median(arm["wall"])
    peak = statistics.median(peaks[dtype])
    table.append(
      {
        "work": name,
        "dtype": dtype,
        "tokens_per_s": rate,
        "cpu_s_per_step": statistics.median(arm["cpu"]),
        "best_tokens_per_s": batch[0].size / min(arm["wall"]),
        "gflop_per_s": rate * arm["flops"] / 1e9,
        "peak_gflop_per_s": peak / 1e9,
        "share_of_peak": rate * arm["flops"] / peak,
      }
    )
  return table


def layer() -> list[dict]:
  """An MoE layer against a dense one of the same activated FLOPs; see `benchmarks.moe_layer`."""
  from moe_parity.benchmarks import moe_layer

  return moe_layer.run()


def exchange() -> list[dict]:
  """Experts over eight simulated devices against one; see `benchmarks.exchange`. In a process of
  its own: how many devices there are is settled when JAX starts."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
  command = [sys.executable, "-m", "moe_parity.benchmarks.exchange"]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
  return json.loads(done.stdout)


def coverage() -> list[dict]:
  """How often intervals hold the truth, over made-up studies; see `benchmarks.coverage`."""
  from moe_parity.benchmarks import coverage as made_up

  return made_up.run()


def compile_time(repeats: int = 3) -> list[dict]:
  """Seconds to compile the train step of 6 and of 24 layers, in turn and without a cache."""
  import dataclasses

  import jax
  import numpy as np

  from moe_parity.model.options import ModelOptions
  from moe_parity.training.optimizer import OptimizerOptions
  from moe_parity.training.state import init_state
  from moe_parity.training.step import StepOptions, make_train_step

  jax.config.update("jax_enable_compilation_cache", False)
  tokens = np.zeros((4, 64), np.int32)
  optimizer = OptimizerOptions(3e-4, 1e-5, num_steps=1000, warmup_steps=100)
  seconds: dict[tuple, list[float]] = {}
  for repeat in range(repeats):
    for name, architecture in common_work().items():
      for num_layers in (6, 24):
        deep = dataclasses.replace(
          architecture, num_layers=num_layers, d_model=64 + 8 * repeat, d_head=16
        )
        state = init_state(deep, ModelOptions(), optimizer, seed=0)
        train_step = make_train_step(deep, ModelOptions(), optimizer, StepOptions())
        start = time.perf_counter()
        train_step.lower(state, tokens, tokens).compile()
        seconds.setdefault((name, num_layers), []).append(time.perf_counter() - start)
  jax.config.update("jax_enable_compilation_cache", True)
  table = []
  for name in common_work():
    shallow, deep = (statistics.median(seconds[name, n]) for n in (6, 24))
    table.append(
      {"work": name, "layers_6_s": shallow, "layers_24_s": deep, "ratio": deep / shallow}
    )
  return table


def loader(seq_len: int = 2048, batch_sequences: int = 8, repeats: int = 5) -> list[dict]:
  """Tokens out of the loader, and on to the device, on the built-in corpus: in a second of wall
  time, and in one of this process's CPU time, which other load on the machine stretches less."""
  from moe_parity.data.loader import Loader, prefetch
  from moe_parity.data.mixture import available_tokens
  from moe_parity.data.prepare import prepare
  from moe_parity.planning.domain_shares import plan_mixture, read_shares
  from moe_parity.training.setup import to_device

  train = prepare().train
  shares = read_shares(",".join(f"{name}={i}" for i, name in enumerate(train.documents.domains, 1)))
  unique = train.num_windows(seq_len) * seq_len // 4
  available = available_tokens(train, seq_len, shares.names)
  mixture = plan_mixture("bench", "strict", shares, unique, unique, seq_len, available, 100)
  table = []
  plain, mixed = (Loader(train, batch_sequences, seq_len, mixture=m) for m in (None, mixture))
  sources = {
    "windows": iter(plain),
    "windows of a mixture": iter(mixed),
    "windows on the device": prefetch(plain, lambda batch: to_device(batch, None)),
  }
  for what, batches in sources.items():
    for _ in range(20):
      next(batches)
    wall, cpu = [], []
    for _ in range(repeats):
      start, cpu_start, count = time.perf_counter(), time.process_time(), 0
      while time.perf_counter() - start < 1:
        next(batches)
        count += batch_sequences * seq_len
      wall.append(count / (time.perf_counter() - start))
      cpu.append(count / (time.process_time() - cpu_start))
    table.append(
      {
        "what": f"{what} of S = {seq_len}, batch {batch_sequences}",
        "tokens_per_s": statistics.median(wall),
        "tokens_per_cpu_s": statistics.median(cpu),
      }
    )
  return table
