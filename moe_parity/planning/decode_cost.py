"""What one decode step costs: bytes a device reads and FLOPs it computes, for B sequences of S
positions each.

Weights are read once a step, whatever B. Of an MoE layer's routed experts those are read that some
token chose: E (1 - (1 - K/E)^B) of E in the mean, where each of B tokens chooses K of E experts
fairly. So a step of few sequences reads about K/E of the experts, a step of many reads all of them:
an MoE's lead in bytes fades with B, its lead in FLOPs stays.

The cache is read once a sequence. On a device of known peaks a step takes at least

  max(bytes / bandwidth, FLOPs / peak)        (the roofline; Williams et al. 2009)
"""

import dataclasses

from moe_parity.planning.architecture import Architecture
from moe_parity.planning.memory import DTYPE_BYTES
from moe_parity.planning.tpu_slices import GENERATIONS


@dataclasses.dataclass(frozen=True)
class DecodeCost:
  """Of one step.

  Attributes:
    distinct_experts: routed experts of a layer that some token chose, in the mean; 0 when dense.
    weight_bytes: weights read: all but embeddings and experts that no token chose.
    cache_bytes: keys and values read.
    flops: of all matrix products.
    stored_bytes: weights and cache that the device holds, embeddings included.
  """

  distinct_experts: int | float
  weight_bytes: int | float
  cache_bytes: int | float
  flops: int | float
  stored_bytes: int | float

  @property
  def bytes(self) -> int | float:
    """Read in all."""
    return self.weight_bytes + self.cache_bytes


def distinct_experts(num_experts: int, experts_per_token: int, num_tokens: int) -> int | float:
  """Experts that at least one of `num_tokens` tokens chose, in the mean over fair choices."""
  return num_experts * (1 - (1 - experts_per_token / num_experts) ** num_tokens)


def decode_cost(
  architecture: Architecture, num_sequences: int, num_positions: int, dtype: str = "bfloat16"
) -> DecodeCost:
  """The cost of one token for each of `num_sequences`, each with `num_positions` in the cache.

  Args:
    dtype: of weights and cache; routers and norms are float32 always.
  """
  a, width = architecture, DTYPE_BYTES[dtype]
  d, layers = a.d_model, a.num_layers
  attention = layers * 2 * d * a.d_head * (a.num_heads + a.num_kv_heads)
  shared = a.num_dense_layers * 3 * d * a.d_ffn + a.num_moe_layers * 3 * d * a.d_shared
  expert, head = 3 * d * a.d_expert, a.vocab_size * d
  router = a.num_moe_layers * d * a.num_experts
  distinct = 0.0
  if a.is_moe:
    distinct = distinct_experts(a.num_experts, a.experts_per_token, num_sequences)
  float32 = 4 * (router + (2 * layers + 1) * d)
  read = attention + shared + head + a.num_moe_layers * distinct * expert
  stored_params = attention + shared + 2 * head + a.num_moe_layers * a.num_experts * expert
  chosen = a.num_moe_layers * a.experts_per_token * expert
  cached = num_sequences * num_positions * layers * 2 * a.num_kv_heads * a.d_head
  products = attention + shared + head + chosen + router
  attended = 2 * layers * num_positions * a.num_heads * a.d_head
  return DecodeCost(
    distinct_experts=distinct,
    weight_bytes=width * read + float32,
    cache_bytes=width * cached,
    flops=2 * num_sequences * (products + attended),
    stored_bytes=width * (stored_params + cached) + float32,
  )


@dataclasses.dataclass(frozen=True)
class Peaks:
  """What a device can do at most: FLOP/s, bytes/s from its memory, bytes it holds."""

  name: str
  flops: int | float
  bandwidth: int | float
  memory: int | float


# NVIDIA's data sheet of the H100 SXM: 989.4 TFLOP/s of dense bf16, 3.35 TB/s, 80 GB.
H100 = Peaks("H100", 989.4e12, 3.35e12, 80e9)
V5P = Peaks(
  "v5p",
  GENERATIONS["v5p"].peak_flops,
  GENERATIONS["v5p"].hbm_bandwidth,
  GENERATIONS["v5p"].hbm_bytes,
)


def roofline_seconds(cost: DecodeCost, peaks: Peaks) -> int | float:
  """The least a step can take: see the module."""
  return max(cost.bytes / peaks.bandwidth, cost.flops / peaks.flops)
