"""A roofline of a program compiled for NVIDIA cards, and which kernels it is made of.

The CUDA compiler states no time for anything. What can be had is a bound: every kernel takes at
least its FLOPs over the card's peak and at least its bytes over the HBM bandwidth; a collective its
bytes over the links. The sum over a step's kernels, each at the slower of the two, is the roofline
here. Launches, shapes that do not fill a card and overlap are not in it.

Loops run as often as the program says, loops over overflow rounds never (balanced routing).
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from moe_parity.aot import collectives, hlo
from moe_parity.aot.hlo_flops import instruction_flops
from moe_parity.aot.timeline import FREE, PART_ONLY, moved_bytes
from moe_parity.planning.attention_choice import BLOCKS_SCOPE
from moe_parity.planning.gpu_cards import Card

CUDNN, CUBLAS = "cuDNN attention", "cuBLASLt products"
PRODUCTS, SORTS, MOVES = "other products", "sorts", "gathers and scatters"
COPIES, OTHERS, COLLECTIVES = "copies", "other fusions", "collectives"
KINDS = (CUDNN, CUBLAS, PRODUCTS, SORTS, MOVES, COPIES, OTHERS, COLLECTIVES)
WORKSPACE = ("u8", "s8")  # what a library's call allocates in addition to its results
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5  # matrix products of an attention kernel


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction of a program. FLOPs, bytes and seconds are of one execution."""

  kind: str
  times: int
  flops: float
  num_bytes: float | int
  seconds: float
  shape: str
  op_name: str


class _Executed(NamedTuple):
  instruction: hlo.Instruction
  shapes: dict[str, str]
  times: int


def kernels(module: hlo.Module, card: Card, num_devices: int = 1) -> list[Kernel]:
  """Every kernel of one execution on one device."""
  found = []
  for executed in _executed(module, module.entry, 1):
    kernel = _kernel(module, executed, card, num_devices)
    if kernel is not None:
      found.append(kernel)
  return found


def by_kind(found: list[Kernel]) -> list[dict]:
  """One row a kind of kernel: calls, FLOPs, bytes and roofline seconds of a step."""
  rows = {kind: dict.fromkeys(("calls", "flops", "bytes", "seconds"), 0) for kind in KINDS}
  for kernel in found:
    row = rows[kernel.kind]
    row["calls"] += kernel.times
    row["flops"] += kernel.flops * kernel.times
    row["bytes"] += kernel.num_bytes * kernel.times
    row["seconds"] += kernel.seconds * kernel.times
  return [{"kind": kind} | row for kind, row in rows.items() if row["calls"]]


def score_bytes(module: hlo.Module, seq_len: int, block: int) -> int:
  """Bytes of the largest array of attention scores in HBM; 0 where no kernel stores scores.

  Scores are results of the attention in blocks (`BLOCKS_SCOPE`) whose last two axes are a block of
  queries and the keys up to its end, or the reverse.

  Args:
    block: queries computed at a time; `seq_len` where it does not divide that.
  """
  largest = 0
  for executed in _executed(module, module.entry, 1):
    scopes = [executed.instruction.op_name]
    scopes += [inner.op_name for _, inner in hlo.descendants(module, executed.instruction)]
    if not any(BLOCKS_SCOPE in scope for scope in scopes):
      continue
    for array in hlo.arrays(executed.instruction.shape):
      pair = array.dims[-2:]
      if len(array.dims) > 2 and block in pair and all(n % block == 0 for n in pair) \
         and max(pair) <= seq_len:  # fmt: skip
        largest = max(largest, array.num_bytes)
  return largest


def _executed(module: hlo.Module, name: str, times: int) -> Iterator[_Executed]:
  """Instructions of a computation and of what it runs, with how often; of branches the longest."""
  shapes = {i.name: i.shape for i in module.computations[name]}
  for instruction in module.computations[name]:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
      continue
    if opcode == "while":
      trips = hlo.trip_count(module, instruction)
      if trips:
        yield from _executed(module, instruction.attribute("body"), times * trips)
    elif opcode == "conditional":
      branches = [list(_executed(module, b, times)) for b in hlo.called(instruction)]
      yield from max(branches, key=len)
    elif opcode == "call":
      yield from _executed(module, instruction.attribute("to_apply"), times)
    else:
      yield _Executed(instruction, shapes, times)


def _kernel(module, executed: _Executed, card: Card, num_devices: int) -> Kernel | None:
  instruction, shapes, times = executed
  shape, name = instruction.shape, instruction.op_name
  if collectives.kind_of(instruction):
    _, wire, _ = collectives.traffic(instruction, shapes, num_devices)
    seconds = wire / card.link_bandwidth
    return Kernel(COLLECTIVES, times, 0.0, wire, seconds, shape, name)
  if call := _library_call(module, instruction, shapes):
    kind, flops, num_bytes, dtype = call
  else:
    inner = {i.opcode for _, i in hlo.descendants(module, instruction)} | {instruction.opcode}
    flops = instruction_flops(module, instruction._replace(opcode=_plain(instruction)), shapes)
    kind = _kind(instruction, inner, flops)
    num_bytes, dtype = _moved_bytes(module, instruction, shapes, inner), "bf16"
  seconds = max(flops / _peak(card, dtype), num_bytes / card.hbm_bandwidth)
  return Kernel(kind, times, flops, num_bytes, seconds, shape, name)


def _peak(card: Card, dtype: str) -> float:
  """FLOP/s of products of a dtype; "tf32" are those of float32 at the default precision."""
  if dtype == "f32":
    return card.peak_flops_float32
  return card.peak("float32") if dtype == "tf32" or not card.peak_flops else card.peak_flops


def _plain(instruction: hlo.Instruction) -> str:
  """The opcode without the half of an asynchronous pair."""
  return instruction.opcode.removesuffix("-start")


def _kind(instruction: hlo.Instruction, inner: set[str], flops: float) -> str:
  if flops:
    return PRODUCTS
  if "sort" in inner:
    return SORTS
  if inner & {"gather", "scatter"}:
    return MOVES
  return COPIES if _plain(instruction) in ("copy", "transpose") else OTHERS


def _library_call(
  module: hlo.Module, instruction: hlo.Instruction, shapes: dict[str, str]
) -> tuple[str, float, int, str] | None:
  """(kind, FLOPs, bytes, dtype as of `_peak`) of a call of cuDNN or cuBLASLt, also of one that
  XLA has fused with the slices of arrays it reads and writes; None of any other instruction."""
  calls = [(instruction, shapes)]
  for name, inner in hlo.descendants(module, instruction):
    if inner.opcode == "custom-call":
      calls.append((inner, {i.name: i.shape for i in module.computations[name]}))
  for call, seen in calls:
    match = re.search(r'custom_call_target="(__cudnn\$fmha|__cublas)(\w*)', call.rest)
    if not match:
      continue
    first = hlo.arrays(seen[call.operands[0]])[0]
    num_bytes = _operand_bytes(call, seen) + sum(
      array.num_bytes for array in hlo.arrays(call.shape) if array.dtype not in WORKSPACE
    )
    if match[1] == "__cublas":
      is_rounded = first.dtype == "f32" and '"HIGHEST"' not in call.rest
      return CUBLAS, _gemm_flops(call, seen), num_bytes, "tf32" if is_rounded else first.dtype
    products = BACKWARD_PRODUCTS if match[2].endswith("Backward") else FORWARD_PRODUCTS
    B, S, H, width = first.dims
    pairs = S * (S + 1) / 2  # of a query and a key: the others are masked
    return CUDNN, products * 2.0 * B * H * width * pairs, num_bytes, first.dtype
  return None


def _gemm_flops(instruction: hlo.Instruction, shapes) -> float:
  """2 x results x contracted length."""
  start = instruction.rest.index('"dot_dimension_numbers":') + len('"dot_dimension_numbers":')
  numbers = json.JSONDecoder().raw_decode(instruction.rest, start)[0]
  left = hlo.arrays(shapes[instruction.operands[0]])[0].dims
  contracted = [left[int(axis)] for axis in numbers["lhs_contracting_dimensions"]]
  return 2.0 * math.prod(hlo.arrays(instruction.shape)[0].dims) * math.prod(contracted)


def _operand_bytes(instruction: hlo.Instruction, shapes) -> int:
  return sum(hlo.num_bytes(shapes.get(name, "")) for name in instruction.operands)


def _moved_bytes(module, instruction: hlo.Instruction, shapes, inner: set[str]) -> int:
  """HBM bytes of a kernel that is no library's; of the first half of an asynchronous one, whose
  result lists its operands too, those of the kernel itself."""
  if not instruction.opcode.endswith("-start"):
    return moved_bytes(module, instruction, shapes)
  results = hlo.arrays(instruction.shape)[len(instruction.operands) : -1]
  result = sum(array.num_bytes for array in results)
  if inner & {"scatter", "dynamic-update-slice"}:
    operands = [hlo.num_bytes(shapes.get(name, "")) for name in instruction.operands]
    return 2 * (sum(operands) - max(operands, default=0)) or result
  if inner & set(PART_ONLY):
    return 2 * result
  return _operand_bytes(instruction, shapes) + result
