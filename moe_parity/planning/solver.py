"""From targets to an integer shape: the size and the activation rate, met by whole numbers.

`shape_search` has the objective. The same targets always give the same shape; where none meets them
the error names the target that stands in the way and the nearest shape.
"""

from __future__ import annotations

import dataclasses

from moe_parity.errors import UserError
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.depth_width import depth_widths
from moe_parity.planning.shape_search import Candidate, candidates, search
from moe_parity.planning.targets import RATE_TOLERANCE, Targets

# What is left out, one at a time, to find the target that stands in the way.
_RELAXED = {
  "total_ffn_ratio": 0,
  "ffn_ratio": 0,
  "aspect_ratio": 0,
  "granularity": 0,
  "experts_per_token": 0,
  "num_experts": 0,
  "d_expert": 0,
  "d_shared": 0,
  "d_ffn": 0,
  "num_heads": 0,
  "d_head": 0,
  "num_kv_heads": 0,
  "d_model": 0,
  "num_layers": 0,
  "layout": "full",
  "multiple_of": 1,
}


def solve(targets: Targets) -> Architecture:
  """The best shape for the targets.

  Raises:
    UserError: no shape meets them; says which target stands in the way, and the nearest shape.
  """
  candidate = search(targets)
  if candidate is None:
    raise UserError(_explain(targets))
  architecture = _architecture(targets, candidate)
  cost = cost_of(architecture, 1, targets.convention)
  assert (cost.num_params, cost.num_active_params) == candidate[-2:], (architecture, candidate)
  return architecture


def _architecture(targets: Targets, candidate: Candidate) -> Architecture:
  dw = candidate.dw
  return Architecture(
    num_layers=dw.num_layers,
    d_model=dw.d_model,
    num_heads=dw.num_heads,
    d_head=dw.d_head,
    num_kv_heads=targets.num_kv_heads,
    layout=targets.layout,
    d_ffn=candidate.d_ffn,
    num_experts=candidate.num_experts,
    d_expert=candidate.d_expert,
    experts_per_token=candidate.experts_per_token,
    d_shared=candidate.d_shared,
    vocab_size=targets.vocab_size,
  )


def _explain(targets: Targets) -> str:
  """Why there is no shape: the target without which there is one, and the nearest with all."""
  wanted = f"{targets.num_params:,} parameters within {100 * targets.params_tolerance:g} %"
  if targets.activation_rate:
    wanted += f" and activation_rate={targets.activation_rate:g} within {RATE_TOLERANCE:g}"
  return (
    f"no {targets.kind} shape has {wanted}; {_blocking_target(targets)}; {_nearest_shape(targets)}"
  )


def _blocking_target(targets: Targets) -> str:
  for name, relaxed in _RELAXED.items():
    value = getattr(targets, name)
    if value in (0, relaxed) or (name == "layout" and targets.kind == "dense"):
      continue
    try:
      candidate = search(dataclasses.replace(targets, **{name: relaxed}))
    except UserError:
      continue  # what is left contradicts itself without this target
    if candidate is not None:
      instead = f"with {name}={relaxed}" if relaxed else "without it"
      return f"{name}={value} stands in the way: {instead} {_describe(targets, candidate)}"
  return "no single target can be dropped to make one possible, change several"


def _nearest_shape(targets: Targets) -> str:
  """The shape nearest to size and rate among those that keep every other target."""
  nearest = None
  for dw in depth_widths(targets, is_relaxed=True)[:500]:
    for candidate in candidates(targets, dw, None, strict=False):
      missed = candidate._replace(objective=candidate.objective - dw.penalty)
      if nearest is None or missed < nearest:
        nearest = missed
  if nearest is not None:
    return f"as asked, the nearest is {_describe(targets, nearest)}"
  if targets.d_model and targets.depth:
    attention = 4 * targets.d_model**2 * targets.depth
    return (
      f"attention of {targets.depth} layers of d_model={targets.d_model} holds about "
      f"{attention:,} parameters before any feed-forward part"
    )
  return "no depth and width keep the other targets"


def _describe(targets: Targets, candidate: Candidate) -> str:
  dw = candidate.dw
  shape = f"num_layers={dw.num_layers} d_model={dw.d_model}"
  if candidate.d_ffn:
    shape += f" d_ffn={candidate.d_ffn}"
  if targets.kind == "moe":
    shape += (
      f" num_experts={candidate.num_experts} experts_per_token={candidate.experts_per_token} "
      f"d_expert={candidate.d_expert} d_shared={candidate.d_shared}"
    )
  off = 100 * (candidate.num_params / targets.num_params - 1)
  rate = candidate.num_active_params / candidate.num_params
  return f"{shape} with N={candidate.num_params:,} ({off:+.2f} %), r_a={rate:.4f}"
