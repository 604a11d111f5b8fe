"""Compiles an arm's train step for a TPU slice that is not attached, and reports memory and time.

Every number is compiler-estimated: nothing has run. Time comes from XLA's own schedule and cost
notes (`aot/timeline.py`), memory from its buffer assignment.
"""

import dataclasses
import math
import pathlib
import re
import time
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from moe_parity.aot import hlo
from moe_parity.aot.timeline import Timeline, simulate
from moe_parity.aot.topology import device_placement, slice_mesh, without_compile_cache
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.attention_choice import FUSED, Device
from moe_parity.planning.expert_parallel import RAGGED
from moe_parity.planning.memory import MAX_LOGITS_ON_TPU, device_memory
from moe_parity.planning.mesh_sizes import MeshSizes, check_arms
from moe_parity.planning.tpu_slices import Slice, ragged_unsupported
from moe_parity.training.build import abstract_step, model_options

TOP_OPERATIONS = 20  # operations a report lists


def compile_arm(
  config: ConfigDict,
  plan: ArmPlan,
  slice_: Slice,
  sizes: MeshSizes,
  text_file: pathlib.Path | None = None,
) -> dict:
  """Compiles one arm's step for a mesh on a slice; a report of plain values.

  Bytes and FLOPs are of one device and one optimizer step, seconds of a step. `fits` says whether
  the compiler could place the program in the HBM; where not, `compiler` quotes it and the parts
  that need a finished program are left out.

  Args:
    text_file: where to write the compiled program's text.
  Raises:
    UserError: the mesh cannot train the arm; libtpu is not installed.
  """
  plain = MeshSizes(sizes.data * sizes.expert, sizes.fsdp)  # in a dense arm `expert` carries batch
  micro = config.train.micro_batch_sequences
  check_arms(sizes if plan.architecture.is_moe else plain, [plan], micro)
  mesh = slice_mesh(slice_, sizes)
  if plan.architecture.is_moe and sizes.expert > 1 and config.mesh.token_dispatch in RAGGED:
    kind = mesh.devices.flat[0].device_kind
    if ragged_unsupported(kind, slice_.num_devices):
      raise UserError(
        f"mesh.token_dispatch={config.mesh.token_dispatch!r} does not exist on {slice_.name}: its"
        " links have limited routing; use 'all_to_all' or 'all_gather', or leave it out"
      )
  step, arguments = abstract_step(config, plan, mesh)
  start = time.perf_counter()
  lowered = step.lower(*arguments)
  traced = time.perf_counter()
  report = _header(config, plan, slice_, sizes) | {"lower_seconds": traced - start}
  state = state_bytes(arguments)
  planned = _planned(config, plan, sizes)
  try:
    with without_compile_cache():
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    memory = {"hbm": slice_.generation.hbm_bytes, **state, "planned": planned}
    return report | {"fits": False, "memory": memory, "compiler": _first_line(str(error))}
  report["compile_seconds"] = time.perf_counter() - traced
  text = compiled.as_text()
  if text_file is not None:
    text_file.write_text(text)
  timeline = simulate(hlo.parse(text), device_placement(slice_, mesh))
  memory = _memory(compiled.memory_analysis(), slice_, state, planned)
  return (
    report
    | {"fits": memory["total"] <= memory["hbm"], "memory": memory}
    | _work(plan, slice_, timeline)
    | {"collectives": _collectives(timeline), "operations": _operations(timeline)}
  )


def _header(config, plan: ArmPlan, slice_: Slice, sizes: MeshSizes) -> dict:
  """What was compiled, for what, with what."""
  return {
    "figures": "compiler-estimated",
    "config": config.name,
    "arm": plan.name,
    "topology": slice_.name,
    "chips": slice_.num_chips,
    "devices": slice_.num_devices,
    "mesh": dataclasses.asdict(sizes),
    "token_dispatch": config.mesh.token_dispatch or "the platform's own",
    "batch_sequences": plan.batch_sequences,
    "micro_batch_sequences": config.train.micro_batch_sequences or plan.batch_sequences,
    "tokens_per_device": plan.batch_sequences * plan.seq_len // slice_.num_devices,
    "remat": config.model.remat,
    "dtype": config.model.dtype,
    "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
  }


def state_bytes(arguments: tuple[Any, ...]) -> dict[str, int]:
  """Bytes of one device's part of the state and batch, by kind."""

  def part(tree) -> int:
    return sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )

  state, *batch = arguments
  return {
    "parameters": part(state.params),
    "optimizer": part(state.optimizer),
    "batch": part((batch, state.buffers, state.step)),
  }


def _planned(config, plan: ArmPlan, sizes: MeshSizes) -> dict[str, int]:
  """What `planning/memory.py` expected."""
  micro = config.train.micro_batch_sequences or plan.batch_sequences
  options, d_head = model_options(config), plan.architecture.d_head
  attention = options.attention_choice(Device("tpu"), plan.seq_len, d_head).implementation
  return device_memory(
    plan.architecture,
    plan.seq_len,
    plan.batch_sequences,
    dataclasses.asdict(sizes),
    dtype=config.model.dtype,
    remat=config.model.remat,
    micro_batches=plan.batch_sequences // micro,
    kernels=attention in FUSED,
    max_logits=MAX_LOGITS_ON_TPU,
  ).to_dict()


def _memory(analysis, slice_: Slice, state: dict[str, int], planned: dict[str, int]) -> dict:
  """HBM by kind. Padding is what tiles add to the state; temporaries are gradients, activations
  and all else that lives within a step; the program's own code counts too."""
  padding = analysis.argument_size_in_bytes - sum(state.values())
  code = analysis.generated_code_size_in_bytes
  extra = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  parts = state | {
    "padding": padding,
    "results": extra,
    "temporaries": analysis.temp_size_in_bytes,
    "code": code,
  }
  total = sum(parts.values())
  return {"hbm": slice_.generation.hbm_bytes, **parts, "total": total, "planned": planned}


def _work(plan: ArmPlan, slice_: Slice, timeline: Timeline) -> dict:
  """FLOPs, bytes and seconds against the plan and the chip."""
  generation = slice_.generation
  tokens = plan.batch_sequences * plan.seq_len / slice_.num_devices
  model_flops = plan.train_flops_per_token * tokens
  roofline = model_flops / generation.flops_per_device
  bases = ("compiler", "kernel", "bytes", "collective")
  return {
    "flops": {"compiled": timeline.flops, "plan": model_flops},
    "hbm_bytes": timeline.hbm_bytes,
    "seconds": {
      "step": timeline.seconds,
      **{basis: timeline.exposed(basis) for basis in bases},
      "roofline": roofline,
    },
    "share_of_peak": roofline / timeline.seconds,
    "days": plan.num_steps * timeline.seconds / 86400,
  }


def _collectives(timeline: Timeline) -> list[dict]:
  """One row a kind and mesh axes, costliest first; bytes and seconds over the step."""
  rows: dict[tuple, dict] = {}
  for op in timeline.ops:
    if op.collective is None:
      continue
    c = op.collective
    row = rows.setdefault(
      (c.kind, c.axes),
      {"collective": c.kind, "axes": "+".join(c.axes), "count": 0, "payload_bytes": 0,
       "wire_bytes": 0.0, "seconds": 0.0, "exposed_seconds": 0.0, "asynchronous": 0},
    )  # fmt: skip
    row["count"] += op.times
    row["payload_bytes"] += c.payload_bytes * op.times
    row["wire_bytes"] += c.wire_bytes * op.times
    row["seconds"] += c.seconds * op.times
    row["exposed_seconds"] += op.exposed * op.times
    row["asynchronous"] += op.times * op.asynchronous
  return sorted(rows.values(), key=lambda row: -row["seconds"])


def _operations(timeline: Timeline) -> list[dict]:
  """Where the time goes: instructions by what they add to a step."""
  longest = sorted(timeline.ops, key=lambda op: -op.exposed * op.times)[:TOP_OPERATIONS]
  return [
    {
      "seconds": op.exposed * op.times,
      "times": op.times,
      "basis": op.basis,
      "opcode": op.opcode,
      "shape": re.sub(r"\{[^}]*\}", "", op.shape),
      "from": op.op_name,
    }
    for op in longest
  ]


def _first_line(message: str) -> str:
  """The compiler's words on memory, in one line."""
  return " ".join(message.split("\nSee ")[0].split())[:600]
