"""Multiply-adds of compiled products, two FLOPs each. XLA's own count takes loop bodies once.

XLA:TPU writes every product as a convolution; a batch dimension may be a spatial one whose window
steps so that only the diagonal counts. Positions are therefore counted, as XLA does it.
"""

import math
import re

import numpy as np

from moe_parity.aot import hlo


def instruction_flops(module: hlo.Module, instruction: hlo.Instruction, shapes) -> float:
  """FLOPs of one execution of an instruction and of what it calls.

  Args:
    shapes: of the operands, by name.
  """
  if instruction.opcode == "convolution":
    return convolution_flops(instruction, shapes)
  if instruction.opcode == "dot":
    return dot_flops(instruction, shapes)
  if instruction.opcode == "custom-call":
    return float((pallas_cost_estimate(module, instruction) or {}).get("flops", 0))
  if instruction.opcode != "fusion":
    return 0.0
  total = 0.0
  for name in hlo.called(instruction):
    inner_shapes = {i.name: i.shape for i in module.computations[name]}
    total += sum(
      instruction_flops(module, inner, inner_shapes)
      for inner in module.computations[name]
      if inner.opcode in ("convolution", "dot", "fusion", "custom-call")
    )
  return total


def pallas_cost_estimate(module: hlo.Module, instruction: hlo.Instruction) -> dict | None:
  """The cost estimate that a Pallas kernel states, also where XLA has fused the kernel with its
  results' buffer. None if the instruction is no kernel."""
  inner = [inner for _, inner in hlo.descendants(module, instruction)]
  for call in (instruction, *inner):
    if call.opcode == "custom-call":
      config = hlo.backend_config(call).get("custom_call_config", {})
      if "cost_estimate" in config:
        return config["cost_estimate"]
  return None


def dot_flops(instruction: hlo.Instruction, shapes) -> float:
  """2 x results x contracted length."""
  left = hlo.arrays(shapes[instruction.operands[0]])[0].dims
  contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
  dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
  results = math.prod(hlo.arrays(instruction.shape)[0].dims)
  return 2.0 * results * math.prod(left[d] for d in dims)


def convolution_flops(instruction: hlo.Instruction, shapes) -> float:
  """2 x batch x input features x output features x positions at which the window meets data."""
  left = hlo.arrays(shapes[instruction.operands[0]])[0].dims
  right = hlo.arrays(shapes[instruction.operands[1]])[0].dims
  result = hlo.arrays(instruction.shape)[0].dims
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
  if labels is None:
    return 0.0
  left_at, right_at, result_at = (
    {letter: i for i, letter in enumerate(label)} for label in labels.groups()
  )
  window = _window(instruction.rest)
  positions = 1
  for i, digit in enumerate(sorted(letter for letter in left_at if letter.isdigit())):
    positions *= _positions(
      left[left_at[digit]],
      right[right_at[digit]],
      result[result_at[digit]],
      *(column[i] for column in window),
    )
  groups = _number(instruction.rest, "feature_group_count")
  batches = _number(instruction.rest, "batch_group_count")
  features = left[left_at["f"]] // groups * result[result_at["f"]]
  return 2.0 * features * (left[left_at["b"]] // batches) * positions


def _number(attributes: str, name: str) -> int:
  match = re.search(rf"{name}=(\d+)", attributes)
  return int(match[1]) if match else 1


def _window(attributes: str) -> list:
  """(stride, low padding, base dilation, window dilation) a spatial dimension; ones by default."""
  match = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(part.split("=") for part in match[1].split()) if match else {}
  sizes = fields.get("size", "").split("x")

  def column(name: str, default: str) -> list[int]:
    values = fields.get(name, "").split("x") if name in fields else [default] * len(sizes)
    return [int(value.split("_")[0]) for value in values]

  return [column("stride", "1"), column("pad", "0_0"), column("lhs_dilate", "1"),
          column("rhs_dilate", "1")]  # fmt: skip


def _positions(base: int, window: int, out: int, stride: int, low: int, dilate: int, spread: int):
  """Pairs of (result, window) positions of one dimension that are on data, not on padding."""
  if stride == dilate == spread == 1 and low == 0 and out == base - window + 1:
    return out * window
  places = np.arange(out)[None, :] * stride + np.arange(window)[:, None] * spread - low
  return int(np.sum((places % dilate == 0) & (places >= 0) & (places // dilate < base)))
