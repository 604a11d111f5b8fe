"""The same shapes in PyTorch, as a yardstick: attention, a dense FFN, a matrix product.

Runs in a process of its own and before JAX looks for devices, because JAX takes nearly all of a
GPU's memory at its start:

  python -m moe_parity.benchmarks.torch_reference     # prints a line of JSON a figure: {name: {}}

Attention is `scaled_dot_product_attention`, causal and without ALiBi, which it has no kernel for;
the FFN is SwiGLU of the activated width of the routed experts. Forward and backward, bfloat16.
Where PyTorch is not installed or sees no GPU, that is what the benchmark's row says.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from moe_parity.benchmarks.gpu_layers import (
  ATTENTION_SHAPES,
  EXPERT_SHAPES,
  TINY_ATTENTION_SHAPES,
  TINY_EXPERT_SHAPES,
)

TOKENS, TINY_TOKENS = 16_384, 64
PRODUCT, TINY_PRODUCT = 8192, 64
GROUPS, CALLS = 5, 10


def reference(seconds: float | int) -> dict[str, dict]:
  """Figures by name, of a process of its own; {"reference": {"absent": why}} without PyTorch.

  A process that fails or takes too long leaves the figures it has printed, and a row that says so.

  Args:
    seconds: after which that process is stopped.
  """
  if importlib.util.find_spec("torch") is None:
    return {"reference": {"absent": "PyTorch is not installed here"}}
  command = [sys.executable, "-m", "moe_parity.benchmarks.torch_reference"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
  except subprocess.TimeoutExpired as error:
    printed = error.stdout or ""  # bytes, whatever `text` says
    printed = printed if isinstance(printed, str) else printed.decode()
    late = {"absent": f"PyTorch took more than {seconds:.0f} s"}
    return _figures(printed) | {"reference": late}
  if done.returncode:
    why = {"error": " ".join(done.stderr.split())[-300:]}
    return _figures(done.stdout) | {"reference": why}
  return _figures(done.stdout)


def _figures(printed: str) -> dict[str, dict]:
  """The figures in what the process printed; a last line cut short is none."""
  figures = {}
  for line in printed.splitlines(keepends=True):
    if line.startswith("{") and line.endswith("\n"):
      figures |= json.loads(line)
  return figures


def measure() -> Iterator[tuple[str, dict]]:
  """All figures with their names, in this process; small shapes on a CPU."""
  import torch

  has_gpu = torch.cuda.is_available()
  device = "cuda" if has_gpu else "cpu"
  yield "versions", {"torch": torch.__version__, "device": _device_name(torch, has_gpu)}
  size = PRODUCT if has_gpu else TINY_PRODUCT
  left, right = (_drawn(torch, (size, size), device, False) for _ in range(2))
  seconds = _seconds(torch, lambda: left @ right, has_gpu)
  yield "matrix product, bfloat16", {"tflops": 2 * size**3 / seconds / 1e12}
  for shape in ATTENTION_SHAPES if has_gpu else TINY_ATTENTION_SHAPES:
    name = " ".join(f"{letter}{n}" for letter, n in zip("BSHNQ", shape, strict=True))
    yield f"scaled_dot_product_attention {name}", _attention(torch, shape, device)
  for shape in EXPERT_SHAPES if has_gpu else TINY_EXPERT_SHAPES:
    _, K, D, I = shape  # noqa: E741 - the alphabet of sharding/mesh.py
    tokens = TOKENS if has_gpu else TINY_TOKENS
    yield f"dense FFN T{tokens} D{D} F{K * I}", _ffn(torch, tokens, D, K * I, device)


def _device_name(torch, has_gpu: bool) -> str:
  return torch.cuda.get_device_name() if has_gpu else "CPU: PyTorch sees no GPU"


def _drawn(torch, shape: tuple[int, ...], device: str, has_gradient: bool):
  return torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_(has_gradient)


def _attention(torch, shape: tuple[int, ...], device: str) -> dict[str, float]:
  """Causal attention with shared keys; FLOPs as `gpu_layers.attention_speed` counts them."""
  B, S, H, N, Q = shape
  q = _drawn(torch, (B, H, S, Q), device, True)
  k, v = (_drawn(torch, (B, N, S, Q), device, True) for _ in range(2))
  dy = _drawn(torch, (B, H, S, Q), device, False)

  def both():
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != N)
    return torch.autograd.grad(y, (q, k, v), dy)

  seconds = _seconds(torch, both, device == "cuda")
  return {"ms": 1e3 * seconds, "tflops": 7 * B * H * S * S * Q / seconds / 1e12}


def _ffn(torch, tokens: int, d_model: int, width: int, device: str) -> dict[str, float]:
  """SwiGLU: three products forward and six backward."""
  x = _drawn(torch, (tokens, d_model), device, True)
  gate, up = (_drawn(torch, (d_model, width), device, True) for _ in range(2))
  down = _drawn(torch, (width, d_model), device, True)
  dy = _drawn(torch, (tokens, d_model), device, False)

  def both():
    y = (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down
    return torch.autograd.grad(y, (x, gate, up, down), dy)

  seconds = _seconds(torch, both, device == "cuda")
  return {"ms": 1e3 * seconds, "tflops": 18 * tokens * d_model * width / seconds / 1e12}


def _seconds(torch, function: Callable[[], object], has_gpu: bool) -> float:
  """Seconds a call: the median of groups of calls, after one group to warm up."""

  def wait():
    if has_gpu:
      torch.cuda.synchronize()

  calls = CALLS if has_gpu else 1
  times = []
  for _ in range(GROUPS + 1):
    wait()
    start = time.perf_counter()
    for _ in range(calls):
      function()
    wait()
    times.append((time.perf_counter() - start) / calls)
  return sorted(times[1:])[GROUPS // 2]


if __name__ == "__main__":
  for name, figures in measure():
    print(json.dumps({name: figures}), flush=True)
