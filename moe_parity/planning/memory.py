"""Bytes one device needs to train an architecture on a mesh: an estimate before any compile.

With W the parameters one device stores, t = batch * S / (data * fsdp * expert) its tokens of one
micro-batch, b the bytes of the compute dtype:

  parameters  4 W, float32 masters
  optimizer   8 W, two float32 moments of Adam
  gradients   4 W, and 4 W more to accumulate where the batch is split into micro-batches
  compute_weights  b x the largest layer's parameters, cast and all-gathered over `fsdp`;
              all layers' where nothing is rematerialized and they are copies of the masters
  activations saved residuals of the forward pass, by remat policy (`saved_channels`)
  backward_workspace  of the largest layer in its backward pass: what is rematerialized, and the
              gradients of hidden values, attention scores and its experts' rows
  logits      8 t V: float32 logits and their gradient, at most `max_logits` at a time
  exchange    2 b x K t D_m, rows in dispatch and combine; 0 without an `expert` axis

Where a TPU's kernels compute the experts, rows are padded as a TPU stores them (`row_width`).

Weights: an expert is on its part of `expert`, sharded further over `fsdp`; other matrices and the
vocabulary are sharded over `fsdp`; router and norms are replicated. Experts are padded to a
multiple of `expert`, or of `fsdp` where that shards whole experts (`mesh_sizes.stored_experts`);
padding experts take memory and are in no other count. What a compiler adds
(temporaries, fragmentation) is not in here: allow a quarter, and on a CPU a half for experts.
`moe-parity compile` and a test show XLA's own bytes next to these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from moe_parity.errors import UserError
from moe_parity.fields.check import check_value
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.attention_choice import FUSED
from moe_parity.planning.expert_parallel import CAPACITY_HEADROOM, tile_padded_rows
from moe_parity.planning.mesh_sizes import AXES, MeshSizes, stored_experts
from moe_parity.planning.tpu_slices import LANES

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
MAX_LOGITS_IN_MEMORY = 2**26  # logits of the loss that exist at a time on a device
MAX_LOGITS_ON_TPU = 2**28  # fewer chunks, each of which reads and writes the head's gradient


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device, by what they hold."""

  parameters: int
  optimizer: int
  gradients: int
  compute_weights: int
  activations: int
  backward_workspace: int
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
  fused_attention: bool = False,
  max_logits: int = 0,
) -> Memory:
  """The peak memory of one device of `mesh` in a training step.

  Args:
    batch_sequences: the whole batch, over all devices. mesh: axis -> size, an axis left out is 1.
    dtype: of the arithmetic. remat: as of the model's options.
    micro_batches: parts of the batch, computed one after another.
    kernels: whether attention and experts use a TPU's kernels. Then scores are never stored
      (otherwise their softmax is, S a head), and the sorted rows of experts are saved.
    fused_attention: whether attention alone stores no scores (cuDNN's).
    max_logits: logits that exist at a time on a device; 0 is all of a micro-batch.
  Raises:
    UserError: an unknown axis, policy or dtype; a batch or an expert count the mesh cannot divide.
  """
  sizes = _axis_sizes(architecture, mesh or {})
  num_shards = sizes["data"] * sizes["fsdp"] * sizes["expert"]
  _check(seq_len, batch_sequences, num_shards, micro_batches, dtype, remat)
  item = DTYPE_BYTES[dtype]
  tokens = batch_sequences // (num_shards * micro_batches) * seq_len
  num_params = _params_per_device(architecture, sizes)
  logits = tokens * architecture.vocab_size
  exchange = 0
  if sizes["expert"] > 1:
    row = row_width(architecture.d_model) if kernels else architecture.d_model
    exchange = 2 * item * architecture.experts_per_token * tokens * row
  rows: int | float = 0
  if kernels and architecture.is_moe:
    rows = _kernel_rows(architecture, sizes["expert"], tokens, tokens // seq_len) / tokens
  scores = 0 if kernels or fused_attention else seq_len
  saved, workspace = _saved_and_workspace(architecture, remat, scores, 4 // item, rows)
  layers = [_layer_params(architecture, is_moe, sizes) for is_moe in architecture.moe_layers]
  is_copied = remat == "none" and (item < 4 or sizes["fsdp"] > 1)
  return Memory(
    parameters=4 * num_params,
    optimizer=8 * num_params,
    gradients=4 * num_params * (2 if micro_batches > 1 else 1),
    compute_weights=item * (sum(layers) if is_copied else max(layers)),
    activations=round(item * tokens * saved),
    backward_workspace=round(item * tokens * workspace),
    logits=8 * (min(logits, max_logits) if max_logits else logits),
    exchange=exchange,
  )


def _check(
  seq_len: int, batch_sequences: int, num_shards: int, micro_batches: int, dtype: str, remat: str
) -> None:
  check_value("model.remat", remat)
  check_value("model.dtype", dtype)
  sizes = dict(seq_len=seq_len, batch_sequences=batch_sequences, micro_batches=micro_batches)
  for name, value in sizes.items():
    if value < 1:
      raise UserError(f"{name}={value} is below 1; give at least 1")
  if batch_sequences % (num_shards * micro_batches):
    raise UserError(
      f"batch_sequences={batch_sequences} is not a multiple of {num_shards * micro_batches}, the "
      f"{num_shards} shards of data, fsdp and expert times micro_batches={micro_batches}; use "
      f"{max(batch_sequences // (num_shards * micro_batches), 1) * num_shards * micro_batches}"
    )


def _kernel_rows(architecture: Architecture, expert_axis: int, tokens: int, sequences: int) -> int:
  """Rows of the experts' buffers on one device. With expert parallelism each of two batch splits
  has a buffer, if a device's sequences can be split."""
  splits = 2 if expert_axis > 1 and sequences % 2 == 0 else 1
  headroom = CAPACITY_HEADROOM if expert_axis > 1 else 1
  assignments = headroom * architecture.experts_per_token * tokens
  num_local = -(-architecture.num_experts // expert_axis)
  return splits * tile_padded_rows(math.ceil(assignments / splits), num_local)


def planned_memory(
  config: Any, arm: Any, sizes: MeshSizes | None = None, fused: bool | None = None
) -> Memory | None:
  """One device's memory when a config's arm (an `ArmPlan`) trains as the config says.

  Args:
    sizes: of the mesh; None is the config's.
    fused: whether attention stores no scores. None: it stores them unless the config names a fused
      implementation, for which one the platform's own is, a plan cannot know.
  Returns:
    None where the number of devices is left to the machine (a mesh axis of -1).
  Raises:
    UserError: as `device_memory`.
  """
  mesh = {axis: getattr(sizes or config.mesh, axis) for axis in AXES}
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
    fused_attention=config.model.attention in FUSED if fused is None else fused,
    max_logits=MAX_LOGITS_IN_MEMORY,
  )


def saved_channels(
  architecture: Architecture,
  is_moe: bool,
  remat: str,
  scores: int,
  values_per_float32: int = 1,
  rows: int | float = 0,
) -> int | float:
  """Values of the compute dtype that one layer saves for the backward pass, a token.

  layer: the layer's input, D_m.
  dots:  also every product with a weight: q, k, v, attention's output, and gate, up and down of
         the feed-forward part (of an MoE: of the shared expert, and K times of the routed ones
         unless kernels compute them).
  none:  what the backward pass reads: of each norm its input and result; q, k, v, the attention
         output before its projection, and the softmax of the scores (`scores` a head); of a SwiGLU
         gate, up and their product; of an MoE the router's logits and E probabilities, and of the
         routed experts gate and up, and the sorted rows where kernels compute them.

  Args:
    scores: keys a head whose attention weights are saved; 0 where a kernel computes attention.
    values_per_float32: values of the compute dtype in a float32, 2 for bfloat16.
    rows: expert rows a token that a kernel computes; 0 where none does.
  """
  a = architecture
  if remat == "layer":
    return a.d_model
  heads = a.num_heads * a.d_head
  keys = 2 * a.num_kv_heads * a.d_head
  chosen = a.experts_per_token
  if remat == "dots":
    saved = a.d_model + heads + keys + a.d_model
    if not is_moe:
      return saved + 2 * a.d_ffn + a.d_model
    saved += 0 if rows else chosen * (2 * a.d_expert + a.d_model)
    return saved + (2 * a.d_shared + a.d_model if a.d_shared else 0)
  saved = 4 * a.d_model + 2 * heads + keys
  # A kernel saves a float32 a query, its softmax norm, instead of scores.
  saved += a.num_heads * (scores or values_per_float32)
  if not is_moe:
    return saved + 3 * a.d_ffn
  saved += values_per_float32 * 2 * a.num_experts
  if rows:
    saved += rows * (2 * matrix_width(a.d_expert) + row_width(a.d_model))
  else:
    saved += chosen * 2 * a.d_expert
  return saved + 3 * a.d_shared


def matrix_width(width: int) -> int:
  """The width of a matrix in a TPU's memory: padded to whole 128s."""
  return LANES * math.ceil(width / LANES)


def row_width(width: int) -> int:
  """The width of a row as dispatch and kernels store it (`experts.permute.to_lane_tiles`): rows
  that are split into lane tiles of 128 are padded to eight tiles, in float32 and in bfloat16."""
  if width % LANES or width == LANES:
    return matrix_width(width)
  return 8 * LANES * math.ceil(width / (8 * LANES))


def _saved_and_workspace(
  architecture: Architecture,
  remat: str,
  scores: int,
  values_per_float32: int,
  rows: int | float,
) -> tuple[int | float, int | float]:
  """Values a token saves over all layers, and the workspace of the largest layer in its backward
  pass: its own residuals where it is rematerialized, and the gradients of its hidden values, of its
  scores (two a score, float32) and of its experts' rows and hidden values."""

  def channels(is_moe: bool, policy: str):
    return saved_channels(architecture, is_moe, policy, scores, values_per_float32, rows)

  a, workspace = architecture, 0
  for is_moe in set(a.moe_layers):
    size = channels(is_moe, "none") - channels(is_moe, remat)
    size += 2 * values_per_float32 * a.num_heads * scores + 3 * (a.d_shared if is_moe else a.d_ffn)
    if is_moe:
      row = row_width(a.d_model) if rows else a.d_model
      hidden = matrix_width(a.d_expert) if rows else a.d_expert
      size += (rows or a.experts_per_token) * (3 * row + (3 + values_per_float32) * hidden)
    workspace = max(workspace, size)
  return sum(channels(is_moe, remat) for is_moe in a.moe_layers), workspace


def _axis_sizes(architecture: Architecture, mesh: Mapping[str, int]) -> dict[str, int]:
  for axis, size in mesh.items():
    if axis not in AXES:
      raise UserError(f"mesh axis {axis!r} is not one of {', '.join(AXES)}")
    if size < 1:
      raise UserError(f"mesh axis {axis}={size} is below 1; give at least 1")
  sizes = dict.fromkeys(AXES, 1) | dict(mesh)
  if architecture.is_moe and sizes["expert"] > architecture.num_experts:
    raise UserError(
      f"mesh axis expert={sizes['expert']} exceeds num_experts="
      f"{architecture.num_experts}; use a smaller axis, or data instead"
    )
  return sizes


def _params_per_device(architecture: Architecture, sizes: Mapping[str, int]) -> int:
  """Parameters one device stores."""
  a, fsdp = architecture, sizes["fsdp"]
  total = 2 * _shard(a.vocab_size * a.d_model, fsdp) + a.d_model
  for is_moe in a.moe_layers:
    shared, experts = _layer_parts(a, is_moe, sizes)
    total += _shard(shared, fsdp) + _shard(experts, fsdp) + 2 * a.d_model
    total += a.num_experts * a.d_model if is_moe else 0
  return total


def _layer_params(architecture: Architecture, is_moe: bool, sizes: Mapping[str, int]) -> int:
  """Parameters of a layer as one device computes with them: all-gathered over `fsdp`."""
  shared, experts = _layer_parts(architecture, is_moe, sizes)
  return shared + experts


def _layer_parts(
  architecture: Architecture, is_moe: bool, sizes: Mapping[str, int]
) -> tuple[int, int]:
  """Parameters that all devices share, and those of the experts on one device of `expert`."""
  a = architecture
  attention = 2 * a.d_model * a.d_head * (a.num_heads + a.num_kv_heads)
  if not is_moe:
    return attention + 3 * a.d_model * a.d_ffn, 0
  return (
    attention + 3 * a.d_model * a.d_shared,
    stored_experts(a.num_experts, sizes["fsdp"], sizes["expert"]) * 3 * a.d_model * a.d_expert,
  )


def _shard(size: int, parts: int) -> int:
  """The largest shard of an axis over so many devices."""
  return math.ceil(size / parts)
