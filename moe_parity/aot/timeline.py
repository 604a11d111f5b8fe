"""Simulates a compiled program on the compiler's own schedule: step time, exposed communication.

All numbers are estimates, never measurements. Instructions run in the order of the module's text,
loop bodies as often as their conditions say. The time of each has one of four bases, which every
table names:

  compiler    the cycles XLA:TPU noted for a fusion, copy or reduction, over the clock
  kernel      a Pallas kernel: its FLOPs over the peak or its bytes over the HBM bandwidth, the
              slower; of experts' products those of balanced routing (`kernels/grouped_swiglu.py`)
  bytes       no note: the HBM bytes it reads and writes over the HBM bandwidth. A lower bound;
              sorts, gathers and what runs on a SparseCore are of this kind (there over the share of
              the bandwidth that the compiler notes)
  collective  bytes over links (`collectives.py`), no latency

An asynchronous collective or copy starts at its start instruction, once the link, copy engine or
SparseCore is free; at its done instruction the program waits for the rest of it. That wait is
*exposed* communication, the remainder was overlapped. Transfers of one kind run one after another.
"""

import dataclasses
from typing import NamedTuple

from moe_parity.aot import collectives, hlo
from moe_parity.aot.collectives import Collective, DevicePlacement
from moe_parity.aot.hlo_flops import instruction_flops, pallas_cost_estimate

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "opt-barrier")  # fmt: skip
BOOKKEEPING = ("AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding", "AsyncCollectiveStart",
               "AsyncCollectiveDone")  # fmt: skip
PART_ONLY = ("gather", "dynamic-slice", "slice", "scatter", "dynamic-update-slice")


@dataclasses.dataclass(frozen=True)
class Op:
  """One instruction and what it costs.

  Attributes:
    times: executions a step.
    seconds: of one execution. For an asynchronous one, of the transfer.
    exposed: of one execution, the time the program waits for it.
    basis: "compiler", "kernel", "bytes" or "collective".
    flops, hbm_bytes: of one execution.
    asynchronous: whether it has a start and a done, with work in between.
  """

  name: str
  opcode: str
  shape: str
  op_name: str
  times: int
  seconds: float
  exposed: float
  basis: str
  flops: float
  hbm_bytes: int
  asynchronous: bool
  collective: Collective | None = None


@dataclasses.dataclass(frozen=True)
class Timeline:
  """A program's instructions with their costs; seconds of one execution of the whole."""

  ops: tuple[Op, ...]
  seconds: float

  @property
  def flops(self) -> float:
    """Of one device and execution: products and kernels, recomputation counted."""
    return sum(op.flops * op.times for op in self.ops)

  @property
  def hbm_bytes(self) -> int:
    """Read and written by one device in one execution."""
    return sum(op.hbm_bytes * op.times for op in self.ops)

  def exposed(self, basis: str) -> float:
    """Seconds of an execution that instructions of one basis account for."""
    return sum(op.exposed * op.times for op in self.ops if op.basis == basis)


class _Transfer(NamedTuple):
  """An asynchronous operation under way."""

  index: int
  ends: float


class _Clock:
  """The current time of the program, and when links and engines are free again."""

  def __init__(self):
    self.now = 0.0
    self.free: dict[str, float] = {}
    self.transfers: dict[str, _Transfer] = {}
    self.pending_sparsecore: dict[str, Op] = {}  # SparseCore calls whose operands come later


def simulate(module: hlo.Module, placement: DevicePlacement) -> Timeline:
  """The timeline of one execution of a module."""
  ops: list[Op] = []
  seconds = _run(module, module.entry, placement, 1, ops)
  return Timeline(tuple(ops), seconds)


def _run(
  module: hlo.Module, name: str, placement: DevicePlacement, times: int, ops: list[Op]
) -> float:
  """Appends the instructions of a computation to `ops`; seconds of one execution."""
  clock = _Clock()
  shapes = {i.name: i.shape for i in module.computations[name]}
  for instruction in module.computations[name]:
    opcode = instruction.opcode
    if opcode in FREE:
      continue
    if opcode == "while":
      trips = hlo.trip_count(module, instruction)
      body = _run(module, instruction.attribute("body"), placement, times * trips, ops)
      clock.now += trips * body
    elif opcode == "conditional":
      branches: list[list[Op]] = [[] for _ in hlo.called(instruction)]
      spent = [_run(module, branch, placement, times, into)
               for branch, into in zip(hlo.called(instruction), branches, strict=True)]  # fmt: skip
      ops += branches[spent.index(max(spent))]
      clock.now += max(spent)
    elif opcode == "call":
      clock.now += _run(module, instruction.attribute("to_apply"), placement, times, ops)
    else:
      _step(module, instruction, shapes, placement, times, ops, clock)
  return clock.now


def _step(module, instruction, shapes, placement, times, ops, clock) -> None:
  """Advances the clock by an instruction that is no control flow: its time, or the wait for it."""
  half, key = _half(module, instruction)
  if half == "middle":
    if key in clock.pending_sparsecore:
      _begin(clock.pending_sparsecore.pop(key), instruction.name, ops, clock)
    elif key in clock.transfers:
      clock.transfers[instruction.name] = clock.transfers[key]
    return
  if half == "done":
    transfer = clock.transfers.pop(key, None)
    if transfer is None:
      return
    wait = max(0.0, transfer.ends - clock.now)
    ops[transfer.index] = dataclasses.replace(ops[transfer.index], exposed=wait)
    clock.now += wait
    return
  op = _estimate(module, instruction, shapes, placement, times)
  if op is None:
    return
  if half == "start":
    if op.opcode == "call-start" and not instruction.operands:
      clock.pending_sparsecore[key] = op
    else:
      _begin(op, key, ops, clock)
    return
  ops.append(op)
  clock.now += op.seconds


def _begin(op: Op, key: str, ops: list[Op], clock: _Clock) -> None:
  """Starts an asynchronous operation as soon as its engine is free."""
  engine = "link" if op.collective else "sparsecore" if "call" in op.opcode else "copy"
  begins = max(clock.now, clock.free.get(engine, 0.0))
  clock.free[engine] = begins + op.seconds
  clock.transfers[key] = _Transfer(len(ops), begins + op.seconds)
  ops.append(dataclasses.replace(op, exposed=0.0, asynchronous=True))


def _half(module: hlo.Module, instruction: hlo.Instruction) -> tuple[str, str]:
  """("start" | "middle" | "done" | "", the name its other half goes by)."""
  if instruction.opcode == "fusion":
    chain, target = _chain(module, instruction)
    if target:
      return ("start" if target == "AsyncCollectiveStart" else "done"), chain
  elif instruction.opcode.endswith("-start"):
    return "start", instruction.name
  elif instruction.opcode.endswith("-update"):
    return "middle", instruction.operands[0]
  elif instruction.opcode.endswith("-done"):
    return "done", instruction.operands[0]
  return "", ""


def _chain(module: hlo.Module, fusion: hlo.Instruction) -> tuple[str, str]:
  """(name, AsyncCollectiveStart or AsyncCollectiveDone) of a fusion that begins or ends a
  collective which XLA spread over the fusions in between; ("", "") for any other."""
  target = channel = ""
  for _, inner in hlo.descendants(module, fusion):
    if "AsyncCollective" in inner.rest:
      target = "AsyncCollectiveStart" if "CollectiveStart" in inner.rest else "AsyncCollectiveDone"
    if collectives.kind_of(inner):
      channel = f"chain {inner.attribute('channel_id')} {inner.attribute('chain_id')}"
  return (channel, target) if target else ("", "")


def _estimate(module, instruction, shapes, placement: DevicePlacement, times: int) -> Op | None:
  """The cost of an instruction; None if it is only bookkeeping."""
  if instruction.opcode == "custom-call" and any(t in instruction.rest for t in BOOKKEEPING):
    return None
  generation = placement.slice.generation
  collective = _collective(module, instruction, shapes, placement)
  flops = instruction_flops(module, instruction, shapes)
  config = hlo.backend_config(instruction)
  sparsecore_config = config.get("sparse_core_config")
  if sparsecore_config:
    hbm_bytes = _sparsecore_bytes(module, instruction)
  else:
    hbm_bytes = moved_bytes(module, instruction, shapes)
  cycles = int(config.get("window_config", {}).get("estimated_cycles", 0))
  note = pallas_cost_estimate(module, instruction)
  if collective is not None:
    basis, seconds = "collective", collective.seconds
  elif cycles > 0:
    basis, seconds = "compiler", cycles / generation.cycles_per_second
  elif note is not None:
    hbm_bytes = int(note.get("bytes_accessed", hbm_bytes))
    basis = "kernel"
    seconds = max(flops / generation.flops_per_device, hbm_bytes / generation.bandwidth_per_device)
  else:
    share = float((sparsecore_config or {}).get("hbm_bandwidth_adjustment_factor", 1.0))
    basis, seconds = "bytes", hbm_bytes / (share * generation.bandwidth_per_device)
  return Op(
    instruction.name, instruction.opcode, instruction.shape, instruction.op_name, times, seconds,
    seconds, basis, flops, hbm_bytes, False, collective,
  )  # fmt: skip


def _collective(module, instruction, shapes, placement: DevicePlacement) -> Collective | None:
  """The collective that an instruction is or holds; None for all others.

  A fusion that cuts an all-reduce's result up is how XLA:TPU writes a reduce-scatter. The fusions
  between the halves of a spread-out collective hold it too, and are not counted again.
  """
  if collectives.kind_of(instruction):
    return collectives.estimate(instruction, shapes, placement)
  if instruction.opcode not in ("fusion", "async-start", "call-start"):
    return None
  for name, inner in hlo.descendants(module, instruction):
    if kind := collectives.kind_of(inner):
      if "chain_id" in inner.rest and _half(module, instruction)[0] != "start":
        return None
      collective = collectives.estimate(inner, _shapes(module, name), placement)
      scattered = (
        kind == "all-reduce"
        and instruction.opcode != "call-start"  # of a SparseCore: its shape shows no arrays
        and hlo.num_bytes(instruction.shape) < collective.payload_bytes
      )
      if scattered:
        return dataclasses.replace(
          collective,
          kind="reduce-scatter",
          wire_bytes=collective.wire_bytes / 2,
          seconds=collective.seconds / 2,
        )
      return collective
  return None


def _shapes(module: hlo.Module, name: str) -> dict[str, str]:
  return {i.name: i.shape for i in module.computations[name]}


def _sparsecore_bytes(module: hlo.Module, call: hlo.Instruction) -> int:
  """What the fusions behind a SparseCore's call read and write; the call itself shows no arrays."""
  return sum(
    moved_bytes(module, inner, _shapes(module, name))
    for name, inner in hlo.descendants(module, call)
    if inner.opcode == "fusion"
  )


def moved_bytes(module: hlo.Module, instruction: hlo.Instruction, shapes: dict[str, str]) -> int:
  """HBM bytes read and written: operands and results, on-chip ones left out, and of what reads or
  writes a part of an array the part. Without the padding of tiles."""
  results = hlo.num_bytes(instruction.shape, space=0)
  operands = [hlo.num_bytes(shapes.get(name, ""), space=0) for name in instruction.operands]
  if instruction.opcode == "slice-start":  # (operands), the part that is copied, a semaphore
    return hlo.arrays(instruction.shape)[len(operands)].num_bytes
  if instruction.opcode.endswith("-start"):
    return max([*operands, results // 2])
  opcodes = {instruction.opcode}
  if instruction.opcode == "fusion":
    opcodes |= {inner.opcode for _, inner in hlo.descendants(module, instruction)}
  if opcodes & {"scatter", "dynamic-update-slice"}:
    return 3 * (sum(operands) - max(operands, default=0)) or results
  if opcodes & set(PART_ONLY):
    return 2 * results
  return sum(operands) + results
