"""What one device of this machine reaches now, the yardstick of `peak_share` in metrics.jsonl."""

import time

import jax
import jax.numpy as jnp


def measure_peak_flops(dtype: str, repeats: int = 8) -> float:
  """FLOP/s of the best of `repeats` square matrix products on one device, in this process.

  Measured, not taken from a data sheet: other programs on a shared machine lower it too.
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
