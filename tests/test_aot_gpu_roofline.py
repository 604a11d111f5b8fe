"""Kernels, FLOPs and bytes of compiled GPU programs, against numbers worked out by hand."""

import pytest

from moe_parity.aot import hlo
from moe_parity.aot.gpu_roofline import by_kind, kernels, score_bytes
from moe_parity.planning.gpu_cards import CARDS

GEMM = (
  'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"beta":0,'
  '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],'
  '"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}'
)
# A loop of 3 of a product [64, 32] x [32, 16]; a product fused with the slice it reads; attention.
PROGRAM = f"""HloModule jit_step, is_scheduled=true

%sliced (p: bf16[5,64,32], i: s32[], w: bf16[32,16]) -> (bf16[64,16], s8[1024]) {{
  %p = bf16[5,64,32]{{2,1,0}} parameter(0)
  %i = s32[] parameter(1)
  %w = bf16[32,16]{{1,0}} parameter(2)
  %zero = s32[] constant(0)
  %cut = bf16[1,64,32]{{2,1,0}} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={{1,64,32}}
  %flat = bf16[64,32]{{1,0}} bitcast(%cut)
  ROOT %call = (bf16[64,16]{{1,0}}, s8[1024]{{0}}) custom-call(%flat, %w), {GEMM}
}}

%sorting (p: f32[100]) -> f32[100] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %sort = f32[100]{{0}} sort(%p), dimensions={{0}}, to_apply=%less
}}

%nothing (p: bf16[2,128,4,64]) -> f32[] {{
  ROOT %p = f32[] constant(1)
}}

%body (state: (s32[], bf16[64,32], bf16[32,16])) -> (s32[], bf16[64,32], bf16[32,16]) {{
  %state = (s32[], bf16[64,32]{{1,0}}, bf16[32,16]{{1,0}}) parameter(0)
  %x = bf16[64,32]{{1,0}} get-tuple-element(%state), index=1
  %w = bf16[32,16]{{1,0}} get-tuple-element(%state), index=2
  %product = (bf16[64,16]{{1,0}}, s8[4096]{{0}}) custom-call(%x, %w), {GEMM}
  ROOT %next = (s32[], bf16[64,32]{{1,0}}, bf16[32,16]{{1,0}}) tuple(%i, %x, %w)
}}

%condition (state: (s32[], bf16[64,32], bf16[32,16])) -> pred[] {{
  ROOT %less = pred[] constant(true)
}}

ENTRY %main (q: bf16[2,128,4,64], s: f32[100]) -> f32[100] {{
  %q = bf16[2,128,4,64]{{3,2,1,0}} parameter(0)
  %s = f32[100]{{0}} parameter(1)
  %stack = bf16[5,64,32]{{2,1,0}} parameter(2)
  %index = s32[] parameter(3)
  %weights = bf16[32,16]{{1,0}} parameter(4)
  %f = f32[64,32]{{1,0}} parameter(5)
  %wf = f32[32,16]{{1,0}} parameter(6)
  %loop = (s32[], bf16[64,32]{{1,0}}, bf16[32,16]{{1,0}}) while(%init), condition=%condition, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  %rounds = (s32[], bf16[64,32]{{1,0}}, bf16[32,16]{{1,0}}) while(%init), condition=%condition, body=%body, metadata={{op_name="jit(f)/overflow_rounds/while"}}
  %fused = (bf16[64,16]{{1,0}}, s8[1024]{{0}}) fusion(%stack, %index, %weights), kind=kCustom, calls=%sliced
  %wide = (f32[64,16]{{1,0}}, s8[1024]{{0}}) custom-call(%f, %wf), {GEMM}
  %forward = (bf16[2,4,128,64]{{3,1,2,0}}, f32[2,4,128]{{2,1,0}}, u8[256]{{0}}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax"
  %backward = (bf16[2,4,128,64]{{3,1,2,0}}, u8[9999]{{0}}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %scores = f32[2,4,32,96]{{3,2,1,0}} fusion(%q), kind=kLoop, calls=%nothing, metadata={{op_name="jit(f)/attention_blocks/exp"}}
  %others = f32[2,4,128,128]{{3,2,1,0}} fusion(%q), kind=kLoop, calls=%nothing, metadata={{op_name="jit(f)/feedforward/exp"}}
  ROOT %sorted = f32[100]{{0}} fusion(%s), kind=kLoop, calls=%sorting
}}
"""  # noqa: E501


@pytest.fixture(scope="module")
def module():
  return hlo.parse(PROGRAM)


@pytest.fixture(scope="module")
def rows(module):
  return {row["kind"]: row for row in by_kind(kernels(module, CARDS["h100"]))}


def test_products_are_counted_in_loops_and_in_fusions(rows):
  one = 2 * 64 * 32 * 16
  assert rows["cuBLASLt products"]["calls"] == 3 + 1 + 1  # loop, fused, float32
  assert rows["cuBLASLt products"]["flops"] == 5 * one


def test_a_fused_product_reads_its_slice_and_no_workspace(rows):
  bf16 = 2 * (64 * 32 + 32 * 16 + 64 * 16)
  assert rows["cuBLASLt products"]["bytes"] == 4 * bf16 + 2 * bf16


def test_attention_counts_visible_pairs_and_both_passes(rows):
  pairs = 128 * 129 / 2
  assert rows["cuDNN attention"]["calls"] == 2
  assert rows["cuDNN attention"]["flops"] == (2 + 5) * 2 * 2 * 4 * 64 * pairs


def test_a_kernel_takes_the_slower_of_flops_and_bytes(module):
  card = CARDS["h100"]
  for kernel in kernels(module, card):
    at_least = max(kernel.flops / card.peak_flops, kernel.num_bytes / card.hbm_bandwidth)
    assert kernel.seconds >= at_least
  wide = next(k for k in kernels(module, card) if k.shape.startswith("(f32[64,16]"))
  assert wide.seconds == max(wide.flops / card.peak_flops_tf32,
                             wide.num_bytes / card.hbm_bandwidth)  # fmt: skip


@pytest.mark.parametrize(
  "dtype, precision, card, peak",
  [
    ("bf16", "DEFAULT", "h100", 989.4e12),
    ("f32", "DEFAULT", "h100", 494.7e12),  # TF32: XLA rounds the operands
    ("f32", "HIGHEST", "h100", 66.9e12),
    ("f32", "DEFAULT", "t4", 8.1e12),  # has no TF32
  ],
)
def test_a_large_product_takes_its_precisions_peak(dtype, precision, card, peak):
  n, card = 4096, CARDS[card]
  gemm = GEMM.replace('"beta":0', f'"precision_config":{{"operand_precision":["{precision}",'
                      f'"{precision}"]}},"beta":0')  # fmt: skip
  assert precision in gemm
  text = f"""HloModule jit_step

ENTRY %main (x: {dtype}[{n},{n}]) -> {dtype}[{n},{n}] {{
  %x = {dtype}[{n},{n}]{{1,0}} parameter(0)
  ROOT %product = ({dtype}[{n},{n}]{{1,0}}, s8[4096]{{0}}) custom-call(%x, %x), {gemm}
}}
"""
  (found,) = kernels(hlo.parse(text), card)
  assert found.seconds == 2 * n**3 / peak


def test_sorts_have_a_row_and_overflow_rounds_none(rows):
  assert rows["sorts"]["calls"] == 1
  assert "other products" not in rows


def test_scores_are_those_of_attention_in_blocks(module):
  assert score_bytes(module, 128, 32) == 4 * 2 * 4 * 32 * 96
  assert score_bytes(module, 128, 128) == 0  # no array of whole sequences there


def test_a_collective_takes_its_bytes_over_the_links():
  text = """HloModule jit_step

ENTRY %main (x: f32[8,100]) -> f32[64,100] {
  %x = f32[8,100]{1,0} parameter(0)
  %start = (f32[8,100]{1,0}, f32[64,100]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %done = f32[64,100]{1,0} all-gather-done(%start)
}
"""  # noqa: E501
  found = kernels(hlo.parse(text), CARDS["h100"], 8)
  assert [k.kind for k in found] == ["collectives"]
  assert found[0].num_bytes == 4 * 64 * 100 * 7 / 8
  assert found[0].seconds == found[0].num_bytes / 450e9
