"""The GPU benchmark's figures of single layers: numerics, attention, experts.

Each function returns {name: what measures it}, so that `gpu.py` can stop between figures.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe_parity.benchmarks import moe_layer
from moe_parity.kernels.common import attention_device
from moe_parity.kernels.cudnn_attention import cudnn_attention
from moe_parity.model.attention import alibi_slopes, causal_attention
from moe_parity.planning.accounting import ATTENTION_BLOCK, query_block
from moe_parity.planning.attention_choice import why_not

# (B, S, H, N, Q): heads of 64 and 128, and shared keys.
ATTENTION_SHAPES = ((8, 2048, 9, 9, 64), (8, 2048, 11, 11, 128), (4, 2048, 32, 8, 128))
TINY_ATTENTION_SHAPES = ((1, 64, 4, 2, 16),)
# Of configs/single_gpu.py, paper_2b.py and paper_7b.py at an activation rate of about 20 %, and one
# with few wide experts.
EXPERT_SHAPES = ((95, 6, 576, 104), (84, 6, 1408, 352), (78, 6, 2048, 512), (96, 4, 1024, 384))
TINY_EXPERT_SHAPES = ((6, 2, 32, 16),)
SKEW = 0.35  # of the experts' log-popularity, as a balance loss leaves it


def blocks(q, k, v, slope_H, document_BS):
  """`model.attention = blocks`."""
  return causal_attention(q, k, v, slope_H, query_block(q.shape[1], ATTENTION_BLOCK), document_BS)


def implementations(shape: tuple[int, ...], position: str) -> dict[str, Callable]:
  """Those that can serve [B S H N Q] here in bfloat16; cuDNN's columns by XLA where cuDNN cannot be
  asked for."""
  sizes = "bfloat16", shape[1], shape[4], position
  cudnn = "xla" if why_not("cudnn", attention_device(), *sizes) else "cudnn"
  name = "cudnn" if cudnn == "cudnn" else "cudnn's columns by XLA"
  return {"blocks": blocks, name: functools.partial(cudnn_attention, implementation=cudnn)}


def operands(shape: tuple[int, ...]):
  """q, k, v and the gradient of the result, bfloat16."""
  B, S, H, N, Q = shape
  rng = np.random.default_rng(0)
  sizes = (B, S, H, Q), (B, S, N, Q), (B, S, N, Q), (B, S, H, Q)
  return tuple(jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in sizes)


def documents(shape: tuple[int, ...], length: int) -> jax.Array:
  """Documents of `length` positions on average."""
  ends = np.random.default_rng(1).random(shape[:2]) < 1 / length
  return jnp.asarray(np.cumsum(ends, 1), jnp.int32)


def with_gradients(function: Callable, slope_H: np.ndarray | None) -> Callable:
  """(q, k, v, dy, documents) -> (y, dq, dk, dv), compiled."""

  def both(q, k, v, dy, document_BS):
    y, vjp = jax.vjp(lambda q, k, v: function(q, k, v, slope_H, document_BS), q, k, v)
    return y, *vjp(dy)

  return jax.jit(both)


def numerics(tiny: bool) -> dict[str, Callable[[], dict]]:
  """Relative errors of every implementation of attention against float64, values and gradients."""
  cases = {}
  shape = (2, 48, 4, 2, 16) if tiny else (2, 1024, 6, 3, 64)
  wide = (1, 40, 4, 2, 24) if tiny else (1, 320, 4, 2, 128)
  for label, sizes, position, length in (
    ("ALiBi, shared keys", shape, "alibi", 0),
    ("ALiBi, documents", shape, "alibi", 20 if tiny else 100),
    ("ALiBi, wide heads", wide, "alibi", 0),
    ("no positions", shape, "none", 0),
  ):
    for name, function in implementations(sizes, position).items():
      cases[f"attention by {name}: {label}"] = functools.partial(
        attention_errors, function, sizes, position, length
      )
  return cases


def attention_errors(
  function: Callable, shape: tuple[int, ...], position: str, length: int
) -> dict[str, float | bool]:
  """Norm of the error over the norm of the float64 result, for y, dq, dk and dv; `ok` under 2 %,
  some times the 2^-8 to which bfloat16 rounds."""
  q, k, v, dy = operands(shape)
  slopes = alibi_slopes(shape[2]) if position == "alibi" else None
  document = documents(shape, length) if length else None
  got = with_gradients(function, slopes)(q, k, v, dy, document)
  want = attention_reference(q, k, v, dy, slopes, document)
  errors = {}
  for name, a, b in zip(("y", "dq", "dk", "dv"), got, want, strict=True):
    errors[name] = float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b))
  return errors | {"ok": max(errors.values()) < 0.02}


def attention_reference(q, k, v, dy, slope_H, document_BS):
  """y, dq, dk, dv in float64."""
  q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
  (B, S, H, Q), N = q.shape, k.shape[2]
  k, v = (np.repeat(x, H // N, 2) for x in (k, v))
  position = np.arange(S)
  scores = np.einsum("bshq,bthq->bhst", q, k) * Q**-0.5
  if slope_H is not None:
    distance = position[:, None] - position[None]
    scores -= np.asarray(slope_H, np.float64)[None, :, None, None] * distance
  visible = (position[:, None] >= position[None])[None, None]
  if document_BS is not None:
    document = np.asarray(document_BS)
    visible = visible & (document[:, None, :, None] == document[:, None, None, :])
  scores = np.where(visible, scores, -np.inf)
  weight = np.exp(scores - scores.max(-1, keepdims=True))
  weight /= weight.sum(-1, keepdims=True)
  y = np.einsum("bhst,bthq->bshq", weight, v)
  dweight = np.einsum("bshq,bthq->bhst", dy, v)
  dscores = weight * (dweight - (weight * dweight).sum(-1, keepdims=True)) * Q**-0.5
  dk, dv = (
    np.einsum("bhst,bshq->bthq", a, b).reshape(B, S, N, H // N, Q).sum(3)
    for a, b in ((dscores, q), (weight, dy))
  )
  return y, np.einsum("bhst,bthq->bshq", dscores, k), dk, dv


def attention(tiny: bool) -> dict[str, Callable[[], dict]]:
  """Milliseconds of every implementation, forward and backward, with ALiBi."""
  cases = {}
  for shape in TINY_ATTENTION_SHAPES if tiny else ATTENTION_SHAPES:
    sizes = " ".join(f"{letter}{size}" for letter, size in zip("BSHNQ", shape, strict=True))
    for name, function in implementations(shape, "alibi").items():
      for length in (0, 300):
        label = f"{name} {sizes}" + (" documents" if length else "")
        cases[label] = functools.partial(attention_speed, function, shape, length)
  return cases


def attention_speed(function: Callable, shape: tuple[int, ...], length: int) -> dict[str, float]:
  """Of the value and all gradients. FLOPs are of two products forward and five backward, over half
  of all pairs of positions."""
  rows = *operands(shape), documents(shape, length) if length else None
  start = time.perf_counter()
  compiled = with_gradients(function, alibi_slopes(shape[2])).lower(*rows).compile()
  compile_seconds = time.perf_counter() - start
  seconds = seconds_of(lambda: compiled(*rows))
  B, S, H, _, Q = shape
  return {
    "ms": 1e3 * seconds,
    "tflops": 7 * B * H * S * S * Q / seconds / 1e12,
    "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    "compile_seconds": compile_seconds,
  }


def experts(tiny: bool) -> dict[str, Callable[[], dict]]:
  """The routed experts against a dense FFN of the same FLOPs; see `moe_layer`."""
  return {
    "E {} K {} D {} I {}".format(*shape): functools.partial(
      _experts_row, shape, 3 if tiny else 9, 64 if tiny else 16_384
    )
    for shape in (TINY_EXPERT_SHAPES if tiny else EXPERT_SHAPES)
  }


def _experts_row(shape: tuple[int, ...], repeats: int, num_tokens: int) -> dict:
  (row,) = moe_layer.run([shape], repeats, num_tokens, skews=(SKEW,), dtype="bfloat16")
  return row


def seconds_of(function: Callable[[], object], groups: int = 5, budget: float = 0.25) -> float:
  """Seconds a call: the median of `groups` groups of calls that take about `budget` in all, after
  one to warm up."""
  jax.block_until_ready(function())
  start = time.perf_counter()
  jax.block_until_ready(function())
  number = max(1, min(50, int(budget / groups / max(time.perf_counter() - start, 1e-6))))
  times = []
  for _ in range(groups):
    start = time.perf_counter()
    for _ in range(number):
      result = function()
    jax.block_until_ready(result)
    times.append((time.perf_counter() - start) / number)
  return float(np.median(times))
