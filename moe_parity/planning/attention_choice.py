"""Which implementation computes attention: one function of device, arithmetic and sizes.

  blocks  products of blocks of queries with the keys up to their end. Runs everywhere; stores the
          scores of a block.
  cudnn   cuDNN's fused attention on NVIDIA GPUs (`kernels/cudnn_attention.py`).
  flash   this project's TPU kernel (`kernels/flash_attention.py`).
  splash  JAX's TPU kernel (`kernels/splash_attention.py`), with ALiBi as columns of q and k.

Fused implementations never store scores. All compute the same function, so a plan's FLOPs do not
depend on the choice: `executed` counts blocks of `model.attention_block` queries, which is what
blocks and, at the default of 512, both TPU kernels compute. cuDNN's tiles are its own.
"""

from __future__ import annotations

import dataclasses
import math

from moe_parity.errors import UserError

FUSED = ("cudnn", "flash", "splash")
KERNEL_MULTIPLE = 128  # positions; what a TPU kernel needs a sequence to be a multiple of
FLASH_LONGEST = 16_384  # positions whose keys and queries of a head fit on a TPU's chip
BLOCKS_SCOPE = "attention_blocks"  # the name that a compiled program gives to what blocks compute
NUM_COLUMNS = 4  # channels that carry ALiBi (`kernels/alibi_columns.py`)
COLUMNS_LONGEST = 65_536  # positions that two bytes, exact in bfloat16, can tell apart
CUDNN_MULTIPLE = 8  # channels; what cuDNN needs a head's width to be a multiple of
# cuDNN has fused attention from capability 8.0 on. Its backward pass takes heads of up to 128
# channels, from 9.0 (Hopper) on 256.
CUDNN_OLDEST, HOPPER = 8.0, 9.0
CUDNN_WIDEST, CUDNN_WIDEST_HOPPER = 128, 256


@dataclasses.dataclass(frozen=True)
class Device:
  """What attention's implementation depends on of a device.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    compute_capability: of an NVIDIA GPU, such as 8.9; 0 of any other device.
  """

  platform: str
  compute_capability: float = 0.0

  def __str__(self) -> str:
    if self.platform != "gpu":
      return self.platform.upper()
    capability = self.compute_capability
    return f"GPU of capability {capability:.1f}" if capability else "GPU that is not NVIDIA's"


@dataclasses.dataclass(frozen=True)
class AttentionChoice:
  """The implementation, and why the platform's fused one was not taken ("" where it was)."""

  implementation: str
  reason: str = ""


def choose_attention(
  name: str, device: Device, dtype: str, seq_len: int, d_head: int, position: str
) -> AttentionChoice:
  """The implementation of attention that a program for `device` takes.

  Args:
    name: `model.attention`; "" is the platform's own: flash on TPUs, cudnn on NVIDIA GPUs, each
      where it can serve, else blocks.
    dtype: of the matrix products. position: "alibi", "rope" or "none".
  Raises:
    UserError: `name` is an implementation that cannot serve here. Nothing is replaced in silence.
  """
  if name:
    if reason := why_not(name, device, dtype, seq_len, d_head, position):
      raise UserError(
        f"model.attention={name!r} cannot run on a {device}: {reason}; use model.attention='', the"
        " platform's own, or 'blocks'"
      )
    return AttentionChoice(name)
  fused = {"tpu": "flash", "gpu": "cudnn"}.get(device.platform)
  if fused is None:
    return AttentionChoice("blocks")
  reason = why_not(fused, device, dtype, seq_len, d_head, position)
  return AttentionChoice("blocks", f"{fused}: {reason}") if reason else AttentionChoice(fused)


def why_not(
  implementation: str, device: Device, dtype: str, seq_len: int, d_head: int, position: str
) -> str:
  """Why an implementation cannot serve; "" where it can. Arguments as of `choose_attention`."""
  if implementation == "blocks":
    return ""
  if implementation == "cudnn":
    return _why_not_cudnn(device, dtype, seq_len, d_head, position)
  if device.platform != "tpu":
    return "it is a TPU's kernel, which would be interpreted step by step"
  if seq_len % KERNEL_MULTIPLE:
    return f"sequences of {seq_len:,} positions are no multiple of {KERNEL_MULTIPLE}"
  longest = FLASH_LONGEST if implementation == "flash" else COLUMNS_LONGEST
  if seq_len > longest and (implementation == "flash" or position == "alibi"):
    return f"sequences of {seq_len:,} positions are longer than {longest:,}"
  return ""


def cudnn_width(d_head: int, position: str) -> int:
  """Channels of a head as cuDNN gets it: ALiBi's columns appended, then padded with zeros."""
  width = d_head + (NUM_COLUMNS if position == "alibi" else 0)
  return CUDNN_MULTIPLE * math.ceil(width / CUDNN_MULTIPLE)


def _why_not_cudnn(device: Device, dtype: str, seq_len: int, d_head: int, position: str) -> str:
  capability = device.compute_capability
  if device.platform != "gpu" or not capability:
    return "it needs an NVIDIA GPU"
  if capability < CUDNN_OLDEST:
    return f"it needs a GPU of capability {CUDNN_OLDEST:.1f} or above"
  if dtype != "bfloat16":
    return f"it computes in bfloat16 and model.dtype is {dtype}"
  if seq_len % 2:
    return f"sequences of {seq_len:,} positions are odd"
  if position == "alibi" and seq_len > COLUMNS_LONGEST:
    return f"sequences of {seq_len:,} positions are longer than {COLUMNS_LONGEST:,}"
  width = cudnn_width(d_head, position)
  widest = CUDNN_WIDEST_HOPPER if capability >= HOPPER else CUDNN_WIDEST
  if width <= widest:
    return ""
  heads = f"heads of {d_head} channels"
  if position == "alibi":
    heads += f" and ALiBi's columns take {width}, which"
  return f"{heads} are more than the {widest} of this capability"


# What a plan shows in addition to this machine: capabilities and the cards people know them by.
PLAN_DEVICES = (
  (Device("cpu"), "CPU"),
  (Device("tpu"), "TPU"),
  (Device("gpu", 7.5), "T4"),
  (Device("gpu", 8.0), "A100"),
  (Device("gpu", 8.9), "L4"),
  (Device("gpu", 9.0), "H100"),
)


def attention_rows(
  name: str, dtype: str, seq_len: int, d_head: int, position: str
) -> list[dict[str, str]]:
  """What `choose_attention` picks on known devices, one row each: {"device", "attention",
  "reason"}; a named implementation that cannot run is "refused"."""
  sizes = dtype, seq_len, d_head, position
  rows = []
  for device, label in PLAN_DEVICES:
    if name and (reason := why_not(name, device, *sizes)):
      rows.append({"device": label, "attention": "refused", "reason": f"{name}: {reason}"})
    else:
      choice = choose_attention(name, device, *sizes)
      rows.append({"device": label, "attention": choice.implementation, "reason": choice.reason})
  return rows
