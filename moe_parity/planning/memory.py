"""Bytes one device needs to train an architecture on a mesh: an estimate before any compile.

With W the parameters one device holds, t = batch * S / (data * fsdp * expert) its tokens of one
micro-batch, b the bytes of the compute dtype:

  parameters  4 W, float32 masters
  optimizer   8 W, two float32 moments of Adam
  gradients   4 W, and 4 W more to accumulate where the batch is cut into micro-batches
  gathered    b x the largest layer's parameters as computed with: cast, and collected over `fsdp`;
              all layers' where nothing is computed again and what is computed with is a copy
  activations what the forward pass keeps for the backward pass, by remat policy (`kept_channels`)
  working     of the largest layer, while its backward pass runs: what is computed again, and the
              gradients of hidden values, scores and its experts' rows
  logits      8 t V: float32 logits and their gradient, at most `most_logits` at a time
  exchange    2 b x K t D_m, rows on their way to the experts and back; 0 without an `expert` axis

Where a TPU's kernels compute the experts, their rows are as wide as a TPU keeps them (`row_width`).

Weights: an expert lies on its part of `expert`, cut further over `fsdp`; other matrices and the
vocabulary are cut over `fsdp`; router and norms are whole everywhere. Experts are filled up to a
multiple of `expert` (the phantom ones hold memory and are in no other count). What a compiler adds
(temporaries, fragmentation) is not in here: allow a quarter, and on a CPU a half for experts.
XLA's own bytes stand beside these in `moe-parity compile` and in a test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from moe_parity.errors import UserError
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.expert_parallel import SLACK, room_for
from moe_parity.planning.tpu_slices import LANES

AXES = ("data", "fsdp", "expert")
REMAT = ("none", "dots", "layer")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
MAX_LOGITS_IN_MEMORY = 2**26  # that the loss computes at a time on a device


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device, by what they hold."""

  parameters: int
  optimizer: int
  gradients: int
  gathered: int
  activations: int
  working: int
  logits: int
  exchange: int

  @property
  def total(self) -> int:
    """All of it, bytes."""
    return sum(dataclasses.astuple(self))

  def to_dict(self) -> dict[str, int]:
    """The parts and their total, bytes."""
    return dataclasses.asdict(self) | {"total": self.total}


def device_memory(
  architecture: Architecture,
  seq_len: int,
  batch_sequences: int,
  mesh: Mapping[str, int] | None = None,
  *,
  dtype: str = "bfloat16",
  remat: str = "layer",
  micro_batches: int = 1,
  kernels: bool = False,
  most_logits: int = 0,
) -> Memory:
  """What one device of `mesh` holds at the peak of a training step.

  Args:
    batch_sequences: the whole batch, over all devices. mesh: axis -> size, an axis left out is 1.
    dtype: of the arithmetic. remat: as of the model's options.
    micro_batches: pieces the batch is cut into, one after another.
    kernels: whether attention and experts go through a TPU's kernels. Then scores are never stored
      (otherwise their softmax is, S a head), and rows that were sorted for the experts are kept.
    most_logits: logits that exist at a time on a device; 0 is all of a micro-batch.
  Raises:
    UserError: an unknown axis, policy or dtype; a batch or an expert count the mesh cannot cut.
  """
  sizes = _axis_sizes(architecture, mesh or {})
  _check(remat, dtype, seq_len, batch_sequences, micro_batches)
  shards = _shards(sizes, batch_sequences, micro_batches)
  item = DTYPE_BYTES[dtype]
  tokens = batch_sequences // (shards * micro_batches) * seq_len
  held = _held_params(architecture, sizes)
  logits = tokens * architecture.vocab_size
  exchanged = 0
  if sizes["expert"] > 1:
    row = row_width(architecture.d_model) if kernels else architecture.d_model
    exchanged = 2 * item * architecture.experts_per_token * tokens * row
  rows = _kernel_rows(architecture, sizes, tokens, seq_len) if kernels else 0
  kept, working = _kept(architecture, remat, 0 if kernels else seq_len, 4 // item, rows)
  layers = [_layer_params(architecture, is_moe, sizes) for is_moe in architecture.moe_layers]
  copied = remat == "none" and (item < 4 or sizes["fsdp"] > 1)
  return Memory(
    parameters=4 * held,
    optimizer=8 * held,
    gradients=4 * held * (2 if micro_batches > 1 else 1),
    gathered=item * (sum(layers) if copied else max(layers)),
    activations=round(item * tokens * kept),
    working=round(item * tokens * working),
    logits=8 * (min(logits, most_logits) if most_logits else logits),
    exchange=exchanged,
  )


def _check(remat: str, dtype: str, seq_len: int, batch_sequences: int, micro_batches: int) -> None:
  if remat not in REMAT:
    raise UserError(f"remat={remat!r} is not known; use {', '.join(REMAT)}")
  if dtype not in DTYPE_BYTES:
    raise UserError(f"dtype={dtype!r} is not known; use {', '.join(DTYPE_BYTES)}")
  for name, value in (
    ("seq_len", seq_len),
    ("batch_sequences", batch_sequences),
    ("micro_batches", micro_batches),
  ):
    if value < 1:
      raise UserError(f"{name}={value} is below 1; give at least 1")


def _shards(sizes: Mapping[str, int], batch_sequences: int, micro_batches: int) -> int:
  """Parts that the mesh cuts a micro-batch into."""
  shards = sizes["data"] * sizes["fsdp"] * sizes["expert"]
  if batch_sequences % (shards * micro_batches):
    raise UserError(
      f"batch_sequences={batch_sequences} is not a multiple of {shards * micro_batches}, the "
      f"{shards} shards of data, fsdp and expert times micro_batches={micro_batches}; use "
      f"{max(batch_sequences // (shards * micro_batches), 1) * shards * micro_batches}"
    )
  return shards


def _kernel_rows(
  architecture: Architecture, sizes: Mapping[str, int], tokens: int, seq_len: int
) -> int | float:
  """Rows a token that a TPU's kernel computes the experts of."""
  if not architecture.is_moe:
    return 0
  # Behind an exchange each of two streams has a buffer, if two can share a device's sequences.
  streams = 2 if sizes["expert"] > 1 and tokens // seq_len % 2 == 0 else 1
  chosen = (SLACK if sizes["expert"] > 1 else 1) * architecture.experts_per_token * tokens
  here = -(-architecture.num_experts // sizes["expert"])
  return streams * room_for(math.ceil(chosen / streams), here) / tokens


def planned_memory(config: Any, arm: Any) -> Memory | None:
  """What a device holds when a config's arm (an `ArmPlan`) trains as the config says; attention as
  everywhere but on a TPU, whose kernel stores no scores.

  Returns:
    None where the config leaves the number of devices to the machine (a mesh axis of -1).
  Raises:
    UserError: as `device_memory`.
  """
  mesh = {axis: getattr(config.mesh, axis) for axis in AXES}
  if -1 in mesh.values():
    return None
  if not arm.architecture.is_moe:  # there `expert` carries batch
    mesh = {"data": mesh["data"] * mesh["expert"], "fsdp": mesh["fsdp"]}
  micro = config.train.micro_batch_sequences or arm.batch_sequences
  return device_memory(
    arm.architecture,
    arm.seq_len,
    arm.batch_sequences,
    mesh,
    dtype=config.model.dtype,
    remat=config.model.remat,
    micro_batches=max(arm.batch_sequences // micro, 1),
    most_logits=MAX_LOGITS_IN_MEMORY,
  )


def kept_channels(
  architecture: Architecture,
  is_moe: bool,
  remat: str,
  scores: int,
  wide: int = 1,
  rows: int | float = 0,
) -> int | float:
  """Values of the compute dtype that a token leaves in memory after one layer's forward pass.

  layer: what enters the layer, D_m.
  dots:  also every product with a weight: q, k, v, attention's output, and gate, up and down of
         the feed-forward part (of an MoE: of the shared expert, and K times of the routed ones).
  none:  what the backward pass asks for: of each norm what enters it and its result; q, k, v, what
         attention mixes, and the softmax of the scores (`scores` a head); of a SwiGLU gate, up and
         their product; of an MoE the router's logits and E probabilities, and of the routed experts
         gate and up, and the sorted rows themselves where kernels take them.

  Args:
    scores: keys whose weights are kept a head; 0 where a kernel computes attention.
    wide: values of the compute dtype that a float32 takes, 2 for bfloat16.
    rows: rows a token that a kernel computes the experts of; 0 where none does.
  """
  a = architecture
  if remat == "layer":
    return a.d_model
  heads = a.num_heads * a.d_head
  keys = 2 * a.num_kv_heads * a.d_head
  chosen = a.experts_per_token
  if remat == "dots":
    kept = a.d_model + heads + keys + a.d_model
    if not is_moe:
      return kept + 2 * a.d_ffn + a.d_model
    kept += chosen * (2 * a.d_expert + a.d_model)
    return kept + (2 * a.d_shared + a.d_model if a.d_shared else 0)
  kept = 4 * a.d_model + 2 * heads + keys
  # A kernel keeps a float32 a query, its norm, in place of scores.
  kept += a.num_heads * (scores or wide)
  if not is_moe:
    return kept + 3 * a.d_ffn
  kept += wide * 2 * a.num_experts
  if rows:
    kept += rows * (2 * matrix_width(a.d_expert) + row_width(a.d_model))
  else:
    kept += chosen * 2 * a.d_expert
  return kept + 3 * a.d_shared


def matrix_width(width: int) -> int:
  """Numbers that a row of a matrix takes in a TPU's memory: whole 128s."""
  return LANES * math.ceil(width / LANES)


def row_width(width: int) -> int:
  """The same of a row as exchanges and kernels take it (`experts.permute.as_lanes`): one that is
  cut into pieces of 128 takes whole eights of them, in float32 and in bfloat16."""
  if width % LANES or width == LANES:
    return matrix_width(width)
  return 8 * LANES * math.ceil(width / (8 * LANES))


def _kept(
  architecture: Architecture, remat: str, scores: int, wide: int, rows: int | float
) -> tuple[int | float, int | float]:
  """Values a token leaves over all layers, and what the largest layer holds beyond that while its
  backward pass runs: all of its own, where it is computed again, and the gradients of its hidden
  values, of its scores (two a score, float32) and of its experts' rows and hidden values."""

  def of(is_moe: bool, policy: str):
    return kept_channels(architecture, is_moe, policy, scores, wide=wide, rows=rows)

  a, working = architecture, 0
  for is_moe in set(a.moe_layers):
    again = of(is_moe, "none") - of(is_moe, remat)
    again += 2 * wide * a.num_heads * scores + 3 * (a.d_shared if is_moe else a.d_ffn)
    if is_moe:
      row = row_width(a.d_model) if rows else a.d_model
      hidden = matrix_width(a.d_expert) if rows else a.d_expert
      again += (rows or a.experts_per_token) * (3 * row + (3 + wide) * hidden)
    working = max(working, again)
  return sum(of(is_moe, remat) for is_moe in a.moe_layers), working


def _axis_sizes(architecture: Architecture, mesh: Mapping[str, int]) -> dict[str, int]:
  for axis, size in mesh.items():
    if axis not in AXES:
      raise UserError(f"mesh axis {axis!r} is not known; use {', '.join(AXES)}")
    if size < 1:
      raise UserError(f"mesh axis {axis}={size} is below 1; give at least 1")
  sizes = dict.fromkeys(AXES, 1) | dict(mesh)
  if architecture.is_moe and sizes["expert"] > architecture.num_experts:
    raise UserError(
      f"mesh axis expert={sizes['expert']} exceeds num_experts="
      f"{architecture.num_experts}; use a smaller axis, or data instead"
    )
  return sizes


def _held_params(architecture: Architecture, sizes: Mapping[str, int]) -> int:
  """Parameters one device stores."""
  a = architecture
  cut = sizes["fsdp"]
  held = 2 * _cut(a.vocab_size * a.d_model, cut) + a.d_model
  for is_moe in a.moe_layers:
    whole, experts = _layer_parts(a, is_moe, sizes["expert"])
    held += _cut(whole, cut) + _cut(experts, cut) + 2 * a.d_model
    held += a.num_experts * a.d_model if is_moe else 0
  return held


def _layer_params(architecture: Architecture, is_moe: bool, sizes: Mapping[str, int]) -> int:
  """Parameters of a layer as one device computes with them: collected over `fsdp`."""
  whole, experts = _layer_parts(architecture, is_moe, sizes["expert"])
  return whole + experts


def _layer_parts(architecture: Architecture, is_moe: bool, expert_axis: int) -> tuple[int, int]:
  """Matrices every device shares, and those of the experts of one place on the `expert` axis."""
  a = architecture
  attention = 2 * a.d_model * a.d_head * (a.num_heads + a.num_kv_heads)
  if not is_moe:
    return attention + 3 * a.d_model * a.d_ffn, 0
  return (
    attention + 3 * a.d_model * a.d_shared,
    _cut(a.num_experts, expert_axis) * 3 * a.d_model * a.d_expert,
  )


def _cut(value: int, parts: int) -> int:
  """The larger piece of a value in so many parts."""
  return math.ceil(value / parts)
