"""Does an MoE generate faster than a dense model of equal memory? The paper says five times.

Arms of equal N, the paper's shapes in small, weights as they are initialized; every arm takes the
same step in turn in one process. Measured: prefill and decode at many batch sizes, next to the
roofline with the bandwidth and the peak that this device reaches in the same process, and the same
curve computed for the paper's 7B on an H100 and a TPU v5p from their published peaks.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity.inference.generator import Generator
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.inference.sampling import Sampling
from moe_parity.model.init import init_params
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.paper import tables
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.decode_cost import H100, V5P, Peaks, decode_cost, roofline_seconds

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_BATCHES = (1, 8, 32)
CONTEXT = 64  # positions in the cache when a step is timed, and of a prompt
COMPUTED_BATCHES = tuple(2**i for i in range(13))
COMPUTED_CONTEXTS = (128, 2048)
VOCABULARY = 65_536  # of the paper's arms, which says nothing of it; as configs/paper_7b.py
NUM_PARAMS = {"cpu": 12_845_056, "gpu": 1_600_000_000, "tpu": 1_600_000_000}


def arms(num_params: int) -> dict[str, Architecture]:
  """Dense and MoE shapes of N parameters, derived as any study's are."""
  from moe_parity.defaults import base, dense_arm, moe_arm
  from moe_parity.planning.plan import make_plan

  config, is_small = base(), num_params < 100_000_000
  config.budget.num_params, config.budget.dense_tokens = num_params, 100 * num_params
  config.budget.seq_len = 128
  shape = dict(num_layers=4, d_model=512, d_head=64, d_ffn=1408) if is_small else {}
  config.arms.dense = dense_arm(**shape)
  for rate, width in ((0.11, 192), (0.2, 256)):
    backbone = dict(num_layers=4, d_model=width, d_head=64) if is_small else {}
    config.arms[f"moe_{round(100 * rate)}"] = moe_arm(rate, **backbone)
  return {arm.name: arm.architecture for arm in make_plan(config, vocab_size=1024).arms}


def run(
  shapes: dict[str, Architecture] | None = None,
  batches: Sequence[int] = BATCHES,
  prefill_batches: Sequence[int] = PREFILL_BATCHES,
  seconds: int | float = 2.0,
  context: int = CONTEXT,
  bandwidth_bytes: int = 2**28,
) -> dict[str, Any]:
  """All of it, ready for JSON.

  Args:
    shapes: an architecture an arm, "dense" among them; None takes `arms` for this platform.
    prefill_batches: those of `batches` at which prompts are timed too.
    seconds: for which a step of each arm is repeated, in turn with the others'.
    context: positions of prompts and in the cache.
    bandwidth_bytes: of the matrix by which bandwidth is measured; larger than any cache.
  Returns:
    {"device", "dtype", "context", "bandwidth" (bytes/s), "peak" (FLOP/s), "arms", "decode",
    "prefill", "computed"}. Rows of the last three have "arm", "batch" and "speed_up" (the dense
    arm's time over this arm's).
  """
  from moe_parity.training.peak_flops import measure_peak_flops

  platform = jax.default_backend()
  dtype = "float32" if platform == "cpu" else "bfloat16"
  shapes = shapes or arms(NUM_PARAMS[platform])
  generators = {name: _generator(shape, dtype, context) for name, shape in shapes.items()}
  rows, prefilled, bandwidths, peaks = [], [], [], []
  for batch in batches:
    rows += _decode_rows(generators, batch, context, seconds)
    if batch in prefill_batches:
      prefilled += _prefill_rows(generators, batch, context, seconds)
    # Others on the machine come and go: a roofline is the best of what was seen all along.
    bandwidths.append(measure_bandwidth(dtype, bandwidth_bytes))
    peaks.append(measure_peak_flops(dtype))
  device_peaks = Peaks("here", max(peaks), max(bandwidths), np.inf)
  for row in rows:
    _compare(row, shapes, device_peaks, context, dtype)
  return {
    "device": jax.devices()[0].device_kind,
    "dtype": dtype,
    "context": context,
    "bandwidth": device_peaks.bandwidth,
    "peak": device_peaks.flops,
    "arms": {name: _described(shape) for name, shape in shapes.items()},
    "decode": rows,
    "prefill": prefilled,
    "computed": computed(),
  }


def _described(shape: Architecture) -> dict[str, Any]:
  cost = cost_of(shape, 128)
  numbers = {"num_params": cost.num_params, "activation_rate": cost.activation_rate}
  return numbers | {"architecture": shape.to_dict()}


def _generator(shape: Architecture, dtype: str, context: int) -> Generator:
  options = ModelOptions(dtype=dtype)
  _, params, buffers = abstract_model(shape, options)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), buffers)
  params, buffers = jax.device_put((init_params(params, seed=0), zeros))
  model = InferenceModel(shape, options, params, buffers)
  return Generator(model, num_positions=2 * context)


def _prompts(generator: Generator, batch: int, context: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(batch)
  inputs_BS = rng.integers(0, generator.vocab_size, (batch, context)).astype(np.int32)
  return inputs_BS, np.full(batch, context, np.int32)


def _decode_rows(generators, batch, context, seconds) -> list[dict[str, Any]]:
  """A row an arm: seconds of a step that finds `context` tokens in the cache."""
  key, greedy = jax.random.key(0), Sampling()

  def stepper(generator: Generator):
    inputs_BS, length_B = _prompts(generator, batch, 1)
    shapes = jax.eval_shape(
      lambda: generator.prefill(inputs_BS, length_B, context + 1, key, greedy)
    )
    # What a cache holds decides no time, so nothing is computed for it.
    buffers = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)]
    tokens = jnp.asarray(inputs_BS[:, 0])

    def step():
      cache = buffers[0].cache._replace(length_B=jnp.full(batch, context, jnp.int32))
      buffers[0] = generator.decode(buffers[0]._replace(cache=cache, token_B=tokens), key, greedy)
      return buffers[0].token_B

    return step

  samples = _in_turn({name: stepper(g) for name, g in generators.items()}, seconds)
  return [_row(name, batch, samples, batch) for name in generators]


def _prefill_rows(generators, batch, context, seconds) -> list[dict[str, Any]]:
  key, greedy = jax.random.key(0), Sampling()

  def filler(generator: Generator):
    inputs_BS, length_B = _prompts(generator, batch, context)
    return lambda: generator.prefill(inputs_BS, length_B, context, key, greedy).token_B

  samples = _in_turn({name: filler(g) for name, g in generators.items()}, seconds)
  return [_row(name, batch, samples, batch * context) for name in generators]


def _in_turn(steps: dict[str, Callable], seconds: int | float) -> dict[str, list[float]]:
  """Seconds of every call: one of each step after another, until each has had its time; at least
  five of each, after one that compiles."""
  samples: dict[str, list[float]] = {name: [] for name in steps}
  for step in steps.values():
    jax.block_until_ready(step())
  while min(map(len, samples.values())) < 5 or min(map(sum, samples.values())) < seconds:
    for name, step in steps.items():
      start = time.perf_counter()
      jax.block_until_ready(step())
      samples[name].append(time.perf_counter() - start)
  return samples


def _row(name: str, batch: int, samples: dict, num_tokens: int) -> dict[str, Any]:
  """The fastest call counts: the steps are short and always the same, and what makes one slower is
  what else runs on the machine. `speed_up_median` is of neighboring calls."""
  seconds = min(samples[name])
  neighbors = [a / b for a, b in zip(samples["dense"], samples[name], strict=True)]
  return {
    "arm": name,
    "batch": batch,
    "seconds": seconds,
    "num_calls": len(samples[name]),
    "tokens_per_s": num_tokens / seconds,
    "speed_up": min(samples["dense"]) / seconds,
    "speed_up_median": statistics.median(neighbors),
  }


def _compare(row: dict, shapes, here: Peaks, context: int, dtype: str) -> None:
  """Adds what a step costs and what the roofline says of it."""
  costs = {name: decode_cost(shape, row["batch"], context, dtype) for name, shape in shapes.items()}
  cost = costs[row["arm"]]
  row |= {
    "distinct_experts": cost.distinct_experts,
    "weight_bytes": cost.weight_bytes,
    "cache_bytes": cost.cache_bytes,
    "flops": cost.flops,
    "share_of_bandwidth": cost.bytes / row["seconds"] / here.bandwidth,
    "share_of_peak": cost.flops / row["seconds"] / here.flops,
    "roofline_speed_up": roofline_seconds(costs["dense"], here) / roofline_seconds(cost, here),
  }


def measure_bandwidth(dtype: str, num_bytes: int, repeats: int = 8) -> float:
  """Bytes/s of the best of `repeats` products of a matrix with a vector: what decoding reads by."""
  size = int((num_bytes / jnp.dtype(dtype).itemsize) ** 0.5)
  matrix, vector = jnp.ones((size, size), dtype), jnp.ones(size, dtype)
  product = jax.jit(jnp.matmul)
  best = float("inf")
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(product(matrix, vector))
    best = min(best, time.perf_counter() - start)
  return matrix.nbytes / best


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
  """What `bench` prints of `run`: a row an arm and batch."""
  shown = ("arm", "batch", "tokens_per_s", "speed_up", "roofline_speed_up", "distinct_experts",
           "share_of_bandwidth", "share_of_peak")  # fmt: skip
  decoded = [{"step": "decode"} | {k: row[k] for k in shown} for row in result["decode"]]
  prefilled = [{"step": "prefill"} | {k: row.get(k) for k in shown} for row in result["prefill"]]
  return decoded + prefilled


def computed() -> list[dict[str, Any]]:
  """The paper's 7B arms in bfloat16 on one chip, from published peaks; nothing ran.

  `fits` says whether weights and cache are within the chip's memory.
  """
  shapes = {"dense": tables.row("table14", 5).architecture}
  for row in reversed(tables.table("table11")):  # one an activation rate, as configs/paper_7b.py
    shapes[f"moe_{round(row['ra_pct']):02d}"] = row.architecture
  shapes = {name: dataclasses.replace(s, vocab_size=VOCABULARY) for name, s in shapes.items()}
  rows = []
  for chip in (H100, V5P):
    for context in COMPUTED_CONTEXTS:
      for batch in COMPUTED_BATCHES:
        costs = {name: decode_cost(shape, batch, context) for name, shape in shapes.items()}
        dense = roofline_seconds(costs["dense"], chip)
        for name, cost in costs.items():
          seconds = roofline_seconds(cost, chip)
          rows.append(
            {
              "chip": chip.name, "context": context, "arm": name, "batch": batch,
              "tokens_per_s": batch / seconds,
              "speed_up": dense / seconds,
              "distinct_experts": cost.distinct_experts,
              "weight_bytes": cost.weight_bytes,
              "cache_bytes": cost.cache_bytes,
              "stored_bytes": cost.stored_bytes,
              "fits": cost.stored_bytes <= chip.memory,
              "bound": "bytes" if cost.bytes / chip.bandwidth >= seconds else "FLOPs",
            }
          )  # fmt: skip
  return rows
