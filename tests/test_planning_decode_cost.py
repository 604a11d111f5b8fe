"""Bytes and FLOPs of a decode step against counts made another way."""

import math

import numpy as np
import pytest

from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.decode_cost import (
  H100,
  V5P,
  Peaks,
  decode_cost,
  distinct_experts,
  roofline_seconds,
)

DENSE = Architecture(3, 12, 4, 5, num_kv_heads=2, d_ffn=20, vocab_size=37)
MOE = Architecture(
  4, 12, 4, 5, layout="1dense", d_ffn=20, num_experts=7, experts_per_token=2, d_expert=10,
  d_shared=14, vocab_size=37,
)  # fmt: skip


def test_distinct_experts_are_what_fair_draws_meet():
  rng = np.random.default_rng(0)
  met = [
    len(np.unique([rng.permutation(11)[:3] for _ in range(5)])) for _ in range(2000)
  ]  # five tokens, three of eleven experts each
  # four standard errors
  assert distinct_experts(11, 3, 5) == pytest.approx(np.mean(met), abs=4 * np.std(met) / 2000**0.5)
  assert distinct_experts(11, 3, 1) == pytest.approx(3)
  assert distinct_experts(11, 11, 1) == 11


@pytest.mark.parametrize("architecture", [DENSE, MOE])
def test_flops_are_those_of_the_executed_forward_pass(architecture):
  """Attention to S cached positions costs what a token pays for a row of S, unmasked."""
  a, S, B = architecture, 9, 6
  cost = cost_of(a, S, "paper")
  products = 2 * cost.num_active_params + 2 * a.d_model * a.num_experts * a.num_moe_layers
  scores = 4 * a.num_layers * a.num_heads * a.d_head * S
  expected = products + scores + 2 * a.vocab_size * a.d_model
  assert decode_cost(a, B, S).flops == B * expected


@pytest.mark.parametrize("architecture", [DENSE, MOE])
def test_one_sequence_reads_active_weights_and_many_read_all(architecture):
  a = architecture
  cost, width = cost_of(a, 1, "paper"), 4
  outside = a.num_moe_layers * a.d_model * a.num_experts + (2 * a.num_layers + 1) * a.d_model
  outside += a.vocab_size * a.d_model
  one, many = (decode_cost(a, batch, 3, "float32") for batch in (1, 10_000))
  assert one.weight_bytes == pytest.approx(width * (cost.num_active_params + outside))
  assert many.weight_bytes == pytest.approx(width * (cost.num_params + outside))
  cached = 3 * 2 * a.num_layers * a.num_kv_heads * a.d_head
  assert many.cache_bytes == 10_000 * width * cached
  embedding = a.vocab_size * a.d_model
  assert many.stored_bytes == pytest.approx(many.bytes + width * embedding)


def test_bfloat16_halves_all_but_routers_and_norms():
  narrow, wide = (decode_cost(MOE, 2, 3, dtype) for dtype in ("bfloat16", "float32"))
  always = 4 * (3 * 12 * 7 + 9 * 12)
  assert 2 * (narrow.weight_bytes - always) == pytest.approx(wide.weight_bytes - always)
  assert 2 * narrow.cache_bytes == wide.cache_bytes


def test_the_roofline_is_the_slower_of_memory_and_arithmetic():
  cost = decode_cost(MOE, 8, 3)
  slow_memory, slow_units = Peaks("a", math.inf, 10.0, 0), Peaks("b", 10.0, math.inf, 0)
  assert roofline_seconds(cost, slow_memory) == cost.bytes / 10
  assert roofline_seconds(cost, slow_units) == cost.flops / 10
  both = Peaks("c", 10.0, 10.0, 0)
  assert roofline_seconds(cost, both) == max(cost.flops, cost.bytes) / 10
  assert V5P.flops == 459e12 and H100.bandwidth == 3.35e12
