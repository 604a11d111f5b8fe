"""Timings on a shared machine: competitors alternate, and ratios are of consecutive samples."""

import statistics
import time
from collections.abc import Callable

import jax


def interleaved(
  functions: dict[str, Callable[[], object]], repeats: int, seconds_per_sample: int | float = 0.2
) -> dict[str, list[float]]:
  """Wall seconds a call of each function, `repeats` samples, taken in turns after two warm-ups.

  A sample is as many calls as fill `seconds_per_sample`. What the functions return is waited for.
  """
  calls = {}
  for name, function in functions.items():
    for _ in range(2):
      jax.block_until_ready(function())
    calls[name] = max(1, int(seconds_per_sample / _seconds(function, 1)))
  samples = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      samples[name].append(_seconds(function, calls[name]))
  return samples


def ratio(samples: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
  """Median, smallest and largest of samples[over] / samples[under], neighbor by neighbor."""
  ratios = [a / b for a, b in zip(samples[over], samples[under], strict=True)]
  return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def _seconds(function, calls):
  start = time.perf_counter()
  for _ in range(calls):
    jax.block_until_ready(function())
  return (time.perf_counter() - start) / calls
