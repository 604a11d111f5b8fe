"""The routed experts against a dense FFN of the same activated FLOPs, forward and backward.

Both sides are SwiGLU in one jitted function that returns the output and every gradient; the MoE
side also sorts, dispatches and combines. Routing is drawn at random, in two kinds: fair, and skewed
as early in training or without a balance loss. No router: top-k is timed by neither side.
"""

import functools
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity.benchmarks.timing import interleaved, ratio
from moe_parity.experts.expert_ffn import expert_ffn
from moe_parity.startup import keep_large_buffers


class Shape(NamedTuple):
  num_experts: int
  experts_per_token: int
  d_model: int
  d_expert: int


SHAPES = (
  Shape(8, 2, 256, 128), Shape(88, 2, 256, 64), Shape(64, 6, 256, 64), Shape(32, 4, 512, 256)
)  # fmt: skip
SKEWS = (0.0, 0.4)


def run(
  shapes=SHAPES, repeats: int = 9, num_tokens: int = 4096, skews=SKEWS, dtype: str = "float32"
) -> list[dict]:
  """One row a shape and skew.

  Args:
    skews: standard deviation of the experts' log-popularity; 0 is fair.
    dtype: of activations and weights, on both sides.
  Returns:
    rows with max_vio (largest load over the mean, less 1), milliseconds and useful GFLOP/s of both
    sides (medians), and dense time over MoE time: median, smallest, largest over the repeats.
  """
  keep_large_buffers()
  return [
    _row(Shape(*shape), repeats, num_tokens, skew, dtype) for shape in shapes for skew in skews
  ]


def dense_ffn(x_TD, w_gate_DF, w_up_DF, w_down_FD):
  return (jax.nn.silu(x_TD @ w_gate_DF) * (x_TD @ w_up_DF)) @ w_down_FD


def draw_routing(shape: Shape, num_tokens: int, skew: int | float, rng: np.random.Generator):
  """Distinct experts for every token, popular ones more often, and gates that sum to 1."""
  popularity_E = skew * rng.normal(size=shape.num_experts)
  score_TE = popularity_E[None, :] + rng.gumbel(size=(num_tokens, shape.num_experts))
  expert_TK = np.argsort(-score_TE, axis=1)[:, : shape.experts_per_token].astype(np.int32)
  gate_TK = rng.random(expert_TK.shape, np.float32)
  return expert_TK, gate_TK / gate_TK.sum(axis=1, keepdims=True)


def with_gradients(function):
  """The function's value and its gradients for all but the first argument, given that of the
  value. The first, the routing, is an argument too: XLA would sort a constant while compiling."""

  def both(dy, routing, *arguments):
    y, vjp = jax.vjp(functools.partial(function, routing), *arguments)
    return y, vjp(dy)

  return jax.jit(both)


def _row(shape: Shape, repeats, num_tokens, skew, dtype) -> dict:
  e, k, d, i = shape
  rng = np.random.default_rng(0)
  expert_TK, gate_TK = draw_routing(shape, num_tokens, skew, rng)

  def normal(*sizes, fan_in=1):
    return jnp.asarray(rng.normal(size=sizes) * fan_in**-0.5, dtype)

  x, dy = normal(num_tokens, d), normal(num_tokens, d)
  dense_weights = normal(d, k * i, fan_in=d), normal(d, k * i, fan_in=d), normal(k * i, d, fan_in=i)
  expert_weights = normal(e, 2, i, d, fan_in=d), normal(e, i, d, fan_in=i)
  expert_TK, gate_TK = jnp.asarray(expert_TK), jnp.asarray(gate_TK)
  dense = with_gradients(lambda _, *arguments: dense_ffn(*arguments))
  moe = with_gradients(lambda expert_TK, x, gate_TK, *w: expert_ffn(x, expert_TK, gate_TK, *w))
  samples = interleaved(
    {
      "dense": lambda: dense(dy, expert_TK, x, *dense_weights),
      "moe": lambda: moe(dy, expert_TK, x, gate_TK, *expert_weights),
    },
    repeats,
  )
  load_E = np.bincount(np.asarray(expert_TK).reshape(-1), minlength=e)
  seconds = {name: statistics.median(values) for name, values in samples.items()}
  flops = 3 * 6 * num_tokens * k * d * i
  return {
    "shape": f"E {e} K {k} D {d} I {i}",
    "tokens": num_tokens,
    "dtype": dtype,
    "max_vio": float(load_E.max() / load_E.mean() - 1),
    "dense_ms": 1e3 * seconds["dense"],
    "moe_ms": 1e3 * seconds["moe"],
    "dense_gflops_per_second": flops / seconds["dense"] / 1e9,
    "moe_gflops_per_second": flops / seconds["moe"] / 1e9,
    **ratio(samples, "dense", "moe"),
  }
