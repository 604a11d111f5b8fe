"""Parses the text of a compiled, scheduled HLO module: instructions in execution order.

Text and not a protocol buffer, because every version of JAX provides text (`compiled.as_text()`).
Strings in it may contain line ends and braces (the program of a Pallas kernel does), so an
instruction ends where its brackets and quotes close.
"""

import functools
import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from moe_parity.planning.expert_parallel import OVERFLOW_SCOPE

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-~]+) \(.*\{\s*$")
_START = re.compile(r"^\s+(?:ROOT )?%?([\w.\-~]+) = ")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-~]+)")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2}


class HloArray(NamedTuple):
  """One array of a shape. `space` is 0 in HBM; 1 and more are on-chip memories."""

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def num_bytes(self) -> int:
    """Without the padding of tiles."""
    bits = BITS.get(self.dtype) or next(iter(map(int, re.findall(r"\d+", self.dtype))), 8)
    return math.prod(self.dims) * bits // 8


class Instruction(NamedTuple):
  """One line of a computation. `rest` is what follows the operands: attributes."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  arguments: str
  rest: str

  def attribute(self, name: str) -> str:
    """The computation or word after `name=`; "" where there is none."""
    match = re.search(rf"\b{name}=%?([\w.\-~]+)", self.rest)
    return match[1] if match else ""

  @property
  def op_name(self) -> str:
    """Where in the program it comes from, as JAX named it."""
    match = re.search(r'op_name="([^"]*)"', self.rest)
    return match[1] if match else ""


class Module(NamedTuple):
  """Computations by name, each a list of instructions; `entry` names the first."""

  computations: dict[str, list[Instruction]]
  entry: str


def parse(text: str) -> Module:
  """Reads a module.

  Raises:
    ValueError: text that holds no entry computation.
  """
  computations: dict[str, list[Instruction]] = {}
  current, entry = None, ""
  lines = iter(text.splitlines())
  for line in lines:
    if current is None:
      if match := _HEADER.match(line):
        current = computations.setdefault(match[2], [])
        entry = match[2] if match[1] else entry
    elif line.startswith("}"):
      current = None
    elif match := _START.match(line):
      current.append(_instruction(match[1], _read_instruction(line[match.end() :], lines)))
  if not entry:
    raise ValueError("no ENTRY computation in this text; it is no compiled HLO module")
  return Module(computations, entry)


def _read_instruction(line: str, lines: Iterator[str]) -> str:
  """Joins a line with those after it, up to where quotes and brackets are closed."""
  while True:
    bare = _STRING.sub("", line)
    opened = sum(map(bare.count, "([{")) - sum(map(bare.count, ")]}"))
    if '"' not in bare and opened <= 0:
      return line
    more = next(lines, None)
    if more is None:
      return line
    line += "\n" + more


def _instruction(name: str, text: str) -> Instruction:
  """`SHAPE opcode(operands), attributes`."""
  end = _closing(text, 0, " ")
  opened = text.index("(", end)
  closed = _closing(text, opened, ")")
  arguments = text[opened + 1 : closed]
  operands = tuple(_NAME.findall(arguments))
  return Instruction(
    name, text[:end], text[end:opened].strip(), operands, arguments, text[closed + 1 :]
  )


def _closing(text: str, start: int, end: str) -> int:
  """Where `end` first stands outside of brackets that opened after `start`."""
  depth = 0
  for match in re.finditer(r"[(\[{)\]} ]", text[start:]):
    character = match[0]
    depth += (character in "([{") - (character in ")]}")
    if character == end and depth == 0:
      return start + match.start()
  return len(text)


@functools.lru_cache(maxsize=100_000)
def arrays(shape: str) -> tuple[HloArray, ...]:
  """The arrays of a shape; of a tuple, all of them in order."""
  result = []
  for dtype, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
    space = re.search(r"S\((\d+)\)", layout)
    size = tuple(int(d) for d in dims.split(",") if d)
    result.append(HloArray(dtype, size, int(space[1]) if space else 0))
  return tuple(result)


def num_bytes(shape: str, space: int | None = None) -> int:
  """Bytes of a shape; with `space`, of its arrays in that memory only."""
  return sum(array.num_bytes for array in arrays(shape) if space in (None, array.space))


def backend_config(instruction: Instruction) -> dict:
  """The `backend_config` of an instruction; {} where it has none."""
  start = instruction.rest.find("backend_config={")
  if start < 0:
    return {}
  try:
    return json.JSONDecoder(strict=False).raw_decode(instruction.rest, start + 15)[0]
  except json.JSONDecodeError:
    return {}


def trip_count(module: Module, loop: Instruction) -> int:
  """How often the body of a `while` runs, from its condition: counters start at 0 and go up by 1.
  Loops over overflow rounds (`planning.expert_parallel.OVERFLOW_SCOPE`) count as 0.

  Raises:
    ValueError: neither a note of the compiler nor a constant bound gives it.
  """
  if re.search(rf"\b{OVERFLOW_SCOPE}\b", loop.op_name):  # bare, or in transpose(jvp(...))
    return 0
  if match := re.search(r'known_trip_count[^0-9]*"?(\d+)', loop.rest):
    return int(match[1])
  condition = module.computations[loop.attribute("condition")]
  by_name = {i.name: i for i in condition}
  for instruction in condition:
    if instruction.opcode == "compare" and "direction=LT" in instruction.rest:
      for name in instruction.operands:
        if by_name[name].opcode == "constant":
          return int(by_name[name].arguments)
  bounds = [int(i.arguments) for i in condition
            if i.opcode == "constant" and i.arguments.lstrip("-").isdigit()]  # fmt: skip
  if len(bounds) == 1:
    return bounds[0]
  raise ValueError(
    f"the trip count of %{loop.name} cannot be read: its condition has no single bound"
  )


def called(instruction: Instruction) -> list[str]:
  """Names of the computations an instruction runs, its loop condition left out."""
  names = [instruction.attribute(a) for a in ("calls", "body", "to_apply", "called_computation")]
  names += [instruction.attribute(a) for a in ("true_computation", "false_computation")]
  if match := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
    names += _NAME.findall(match[1])
  return [name for name in names if name]


def descendants(module: Module, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
  """(computation, instruction) of everything a fusion or call contains, at any depth."""
  for name in called(instruction):
    for inner in module.computations.get(name, []):
      yield name, inner
      yield from descendants(module, inner)
