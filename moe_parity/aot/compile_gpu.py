"""Compiles an arm's train step for NVIDIA cards that are not attached: memory, kernels, a roofline.

Nothing has run. Bytes are XLA's own buffer assignment and exact; kernels are those the compiler put
into the program; seconds are a roofline (`aot/gpu_roofline.py`), a bound and no estimate.
"""

import pathlib
import time
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from moe_parity.aot import cuda, hlo
from moe_parity.aot.compile_step import state_bytes
from moe_parity.aot.gpu_roofline import CUBLAS, CUDNN, Kernel, by_kind, kernels, score_bytes
from moe_parity.aot.gpu_topology import compiler_options, described, gpu_mesh
from moe_parity.aot.topology import without_compile_cache
from moe_parity.errors import UserError
from moe_parity.planning.accounting import query_block
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.expert_parallel import default_token_dispatch
from moe_parity.planning.gpu_cards import Host
from moe_parity.planning.memory import planned_memory
from moe_parity.planning.mesh_sizes import MeshSizes, check_arms
from moe_parity.training.build import abstract_step, model_options

TOP_KERNELS = 15  # kernels a report lists
FIGURES = "compiled without a device: memory exact, seconds a roofline; nothing ran"


def compile_for_gpu(
  config: ConfigDict,
  plan: ArmPlan,
  host: Host,
  sizes: MeshSizes,
  text_file: pathlib.Path | None = None,
) -> dict:
  """Compiles one arm's step for a mesh of cards; a report of plain values.

  Bytes, FLOPs and seconds are of one card and one optimizer step.

  Args:
    text_file: where to write the compiled program's text.
  Raises:
    UserError: the compiler is not installed, or of a version that cannot; the mesh cannot train the
      arm; a card without units for the dtype; a named attention that cannot run on it, or that
      cuDNN refuses.
  """
  peak = host.card.peak(config.model.dtype)
  plain = MeshSizes(sizes.data * sizes.expert, sizes.fsdp)  # in a dense arm `expert` carries batch
  check_arms(
    sizes if plan.architecture.is_moe else plain, [plan], config.train.micro_batch_sequences
  )
  mesh = gpu_mesh(host, sizes)
  choice = model_options(config).attention_choice(
    host.card.device, plan.seq_len, plan.architecture.d_head
  )
  with described(host.card), without_compile_cache():
    step, arguments = abstract_step(config, plan, mesh)
    start = time.perf_counter()
    compiled = _compiled(step.lower(*arguments))
  seconds = time.perf_counter() - start
  text = compiled.as_text()
  if text_file is not None:
    text_file.write_text(text)
  module = hlo.parse(text)
  memory = _memory(compiled.memory_analysis(), state_bytes(arguments), host)
  memory["planned"] = planned_memory(config, plan, sizes, is_fused(choice)).total
  found = kernels(module, host.card, host.num_devices)
  block = query_block(plan.seq_len, config.model.attention_block)
  return (
    _header(config, plan, host, sizes)
    | {"compile_seconds": seconds, "fits": memory["total"] <= memory["usable"], "memory": memory}
    | {"attention": _attention(choice, found, score_bytes(module, plan.seq_len, block))}
    | _work(plan, host, peak, found)
    | {"kernels": by_kind(found), "longest": _longest(found)}
  )


def is_fused(choice) -> bool:
  """Whether a choice of attention stores no scores."""
  return choice.implementation == "cudnn"


def _compiled(lowered: Any) -> Any:
  try:
    return lowered.compile(compiler_options=compiler_options())
  except jax.errors.JaxRuntimeError as error:
    if "cudnn" not in str(error).lower():
      raise
    if "cudnn_device_props" in str(error):
      raise UserError(
        f"nvidia-cudnn-cu13 is {metadata.version('nvidia-cudnn-cu13')} here, which does not read"
        f" the description of a card that jax {jax.__version__} writes; run"
        " pip install 'moe_parity[gpu-aot]', which brings one that does"
      ) from None
    words = " ".join(str(error).split("\n\n")[0].split())[:300]
    raise UserError(
      f"cuDNN has no attention kernel for this: {words}; use --config.model.attention=blocks"
    ) from None


def _header(config: ConfigDict, plan: ArmPlan, host: Host, sizes: MeshSizes) -> dict:
  micro = config.train.micro_batch_sequences or plan.batch_sequences
  packages = ("jax", cuda.PLUGIN_PACKAGE, "nvidia-cudnn-cu13")
  return {
    "figures": FIGURES,
    "config": config.name,
    "arm": plan.name,
    "topology": host.name,
    "card": host.card.product,
    "devices": host.num_devices,
    "mesh": {"data": sizes.data, "fsdp": sizes.fsdp, "expert": sizes.expert},
    "token_dispatch": _token_dispatch(config, plan, sizes),
    "batch_sequences": plan.batch_sequences,
    "micro_batch_sequences": micro,
    "tokens_per_device": plan.batch_sequences * plan.seq_len // host.num_devices,
    "remat": config.model.remat,
    "dtype": config.model.dtype,
    "versions": {name: metadata.version(name) for name in packages},
  }


def _token_dispatch(config: ConfigDict, plan: ArmPlan, sizes: MeshSizes) -> str:
  """How tokens reach experts on other cards; "" where every card has all experts."""
  if sizes.expert == 1 or not plan.architecture.is_moe:
    return ""
  return config.mesh.token_dispatch or default_token_dispatch(
    "gpu",
    num_experts=plan.architecture.num_experts,
    experts_per_token=plan.architecture.experts_per_token,
    num_devices=sizes.expert,
  )


def _memory(analysis: Any, state: dict[str, int], host: Host) -> dict:
  """Bytes by kind. Temporaries are gradients, activations, library workspaces and all else that
  lives within a step."""
  extra = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  parts = state | {"results": extra, "temporaries": analysis.temp_size_in_bytes}
  return {
    "card": host.card.memory_bytes,
    "usable": host.card.usable_bytes,
    **parts,
    "total": sum(parts.values()),
  }


def _attention(choice: Any, found: list[Kernel], scores: int) -> dict:
  """What computes attention, by the plan and by the program."""
  return {
    "chosen": choice.implementation,
    "reason": choice.reason,
    "cudnn_calls": sum(k.times for k in found if k.kind == CUDNN),
    "score_bytes": scores,
    "unchecked": cuda.driver_without_devices(),
  }


def _work(plan: ArmPlan, host: Host, peak: float, found: list[Kernel]) -> dict:
  """FLOPs and seconds against the plan's at `peak`, FLOP/s of the config's dtype."""
  tokens = plan.batch_sequences * plan.seq_len / host.num_devices
  model_flops = plan.train_flops_per_token * tokens
  flops = sum(k.flops * k.times for k in found)
  seconds = sum(k.seconds * k.times for k in found)
  peak_seconds = model_flops / peak
  return {
    "flops": {"compiled": flops, "plan": model_flops},
    "cublas_calls": sum(k.times for k in found if k.kind == CUBLAS),
    "seconds": {"roofline": seconds, "plan_at_peak": peak_seconds},
    "roofline_share_of_peak": peak_seconds / seconds,
    "roofline_days": plan.num_steps * seconds / 86400,
  }


def _longest(found: list[Kernel]) -> list[dict]:
  """Kernels by their roofline seconds in a step."""
  ordered = sorted(found, key=lambda k: -k.seconds * k.times)[:TOP_KERNELS]
  return [
    {
      "seconds": k.seconds * k.times,
      "times": k.times,
      "kind": k.kind,
      "flops": k.flops * k.times,
      "bytes": k.num_bytes * k.times,
      "shape": k.shape.split("{")[0].lstrip("("),
      "from": k.op_name,
    }
    for k in ordered
  ]
