"""What a model does beyond its shape: positions, gates, arithmetic. The shape is `Architecture`."""

from __future__ import annotations

import dataclasses

from moe_parity.fields.check import check_values
from moe_parity.fields.choices import NORM_EPSILON, ROPE_BASE
from moe_parity.planning.attention_choice import AttentionChoice, Device, choose_attention


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """Choices every arm of a comparison shares (paper section 3; what it leaves open is in README).

  Attributes:
    position: "alibi" (the paper's), "rope" or "none".
    rope_base: of the frequencies rope_base^(-2 i / d_head) of "rope" (rope_theta elsewhere).
    norm_epsilon: added to the mean square in RMSNorm.
    normalize_gates: divide the K chosen gates by their sum. The paper's text does not.
    routed_scale: what the sum of the routed experts is multiplied by: a positive number as text
      ("" is 1), "E/K" (the number of experts over those chosen: raw gates of an even router then
      sum to 1), or "learned" (one number a layer, 1 at first). DeepSeek-V2 and V3 (2405.04434,
      2412.19437) use constants of 16 and 2.5.
    remat: what the backward pass recomputes. "none" keeps every activation; "dots" keeps the
      results of matrix products; "layer" keeps only what enters a layer.
    dtype: arithmetic of the matrix products. Router, softmax, norms and loss are float32 always.
      Products of float32 arrays, the router's apart, have XLA's default precision: a GPU may round
      their operands to TF32, and a TPU rounds them to bfloat16.
    attention: "blocks" (plain products of query blocks), "cudnn" (NVIDIA GPUs), "flash" or
      "splash" (TPUs); "" takes the platform's fused one where it can serve, else blocks
      (`planning/attention_choice.py`). A named one that cannot run is refused.
    attention_block: queries computed at a time, each block against the keys up to its end: with n
      blocks a causal mask costs (n+1)/2n of the full product. A sequence it does not divide is one
      block. Blocks are unrolled, so many of them cost compile time.
    embedding_std: standard deviation of the initial embedding.
    token_dispatch: how tokens reach experts on other devices: "all_to_all", "ragged_all_to_all",
      "ragged_all_to_all_dedup", "all_gather", or "" for the platform's own
      (`planning/expert_parallel.py`). All give the same numbers.
    capacity_factor: assignments an expert takes of one device's tokens (of a micro-batch), times
      the mean; what is beyond is dropped and counted. 0 drops nothing.
    num_batch_splits: parts a device's sequences are split into, so that one part's dispatch and
      combine overlap with the computation of another (two-batch overlap); 0 is the platform's own
      number (`model/layer_stack.py`).
    is_probing: expert layers also report the norms of what they add (`evaluation/ablations.py`).
    is_decoding: the program has few tokens and takes no gradient: expert layers then read only the
      chosen experts' weights, where that is faster (`experts/looped_ffn.py`).
  """

  position: str = "alibi"
  rope_base: float | int = ROPE_BASE
  norm_epsilon: float = NORM_EPSILON
  normalize_gates: bool = False
  routed_scale: str = ""
  remat: str = "none"
  dtype: str = "float32"
  attention: str = ""
  attention_block: int = 512
  embedding_std: float = 0.02
  token_dispatch: str = ""
  capacity_factor: float | int = 0.0
  num_batch_splits: int = 0
  is_decoding: bool = False
  is_probing: bool = False

  def __post_init__(self):
    check_values("model", vars(self), "model")
    check_values("mesh", vars(self), "mesh")

  def for_inference(self) -> ModelOptions:
    """The same model forward only: nothing dropped, no two-batch overlap, nothing recomputed."""
    return dataclasses.replace(self, capacity_factor=0.0, num_batch_splits=1, remat="none")

  def attention_choice(self, device: Device, seq_len: int, d_head: int) -> AttentionChoice:
    """Which implementation computes attention on a device.

    Raises:
      UserError: the implementation these options name cannot run there.
    """
    return choose_attention(self.attention, device, self.dtype, seq_len, d_head, self.position)
