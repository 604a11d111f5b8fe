"""Costs of a hand-written module (`small.hlo`, in XLA:TPU's notation), against sums on paper. In it
two by two devices talk, a loop runs five times, and a kernel's program has lines and brackets."""

import json
import pathlib

import numpy as np
import pytest

from moe_parity.aot import collectives, hlo, timeline
from moe_parity.aot.collectives import DevicePlacement
from moe_parity.aot.hlo_flops import convolution_flops
from moe_parity.planning.tpu_slices import parse_slice

MODULE = (pathlib.Path(__file__).parent / "small.hlo").read_text()
COORDINATES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
PLACE = DevicePlacement(parse_slice("v5p:2x2x1"), {"fsdp": 2, "expert": 2}, COORDINATES)
LINK, HBM = 100e9, 2765e9


@pytest.fixture(scope="module")
def simulated():
  return timeline.simulate(hlo.parse(MODULE), PLACE)


def op(simulated, name):
  (found,) = [op for op in simulated.ops if op.name == name]
  return found


def test_a_kernels_program_does_not_end_its_instruction():
  module = hlo.parse(MODULE)
  assert [i.name for i in module.computations["body"]][-2:] == ["kernel", "pair"]
  assert module.entry == "main"


def test_a_loop_counts_its_body_as_often_as_its_condition_says(simulated):
  assert op(simulated, "kernel").times == 5


def test_a_kernel_costs_its_flops_over_the_peak(simulated):
  kernel = op(simulated, "kernel")
  assert kernel.basis == "kernel"
  assert kernel.seconds == pytest.approx(1e-6)  # 459e6 FLOPs of 459e12 a second


def test_a_noted_cost_is_cycles_over_the_clock(simulated):
  product = op(simulated, "h")
  assert product.basis == "compiler"
  assert product.seconds == pytest.approx(17_500 / (459e12 / 2**18))


def test_what_nobody_noted_costs_the_bytes_it_touches(simulated):
  copied = op(simulated, "copied")
  assert copied.basis == "bytes"
  assert copied.seconds == pytest.approx(2 * 64 * 512 * 2 / HBM)


def test_flops_of_products_and_of_kernels_in_loops_are_counted(simulated):
  assert simulated.flops == 2 * 64 * 256 * 512 + 5 * 459e6


def test_a_collective_is_exposed_only_beyond_the_work_between(simulated):
  gather = op(simulated, "start")
  wire = 256 * 512 * 2 / 2
  assert gather.asynchronous and gather.collective.kind == "all-gather"
  assert gather.seconds == pytest.approx(wire / LINK)
  assert gather.exposed == 0  # 1.3 us of transfer under 5 us of kernel
  assert not [op for op in simulated.ops if op.name == "whole_w"]


def test_a_collective_without_work_between_is_all_exposed(simulated):
  moved = op(simulated, "moved-start")
  assert moved.seconds == pytest.approx(64 * 512 * 2 / LINK)
  assert moved.exposed == pytest.approx(moved.seconds)


def test_a_fused_slice_of_an_all_reduce_is_a_reduce_scatter(simulated):
  out = op(simulated, "out").collective
  assert out.kind == "reduce-scatter"
  assert out.wire_bytes == 64 * 512 * 2 / 2


def test_collectives_carry_the_names_of_their_mesh_axes(simulated):
  axes = {op.name: op.collective.axes for op in simulated.ops if op.collective}
  assert axes == {"start": ("expert",), "moved-start": ("fsdp",), "out": ("expert",)}


def test_the_whole_is_the_sum_of_what_the_program_waits_for(simulated):
  waits = sum(op.exposed * op.times for op in simulated.ops)
  assert simulated.seconds == pytest.approx(waits)
  assert simulated.seconds == pytest.approx(
    sum(simulated.exposed(basis) for basis in ("compiler", "kernel", "bytes", "collective"))
  )


@pytest.mark.parametrize(
  "written",
  [
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}",
    "replica_groups=[4,2]<=[2,4]T(1,0)",
    "replica_groups=mesh['a'=2,'b'=4] {'a'}",
  ],
)
def test_three_notations_of_the_same_groups_read_the_same(written):
  assert collectives.replica_groups(written, 8) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_groups_nobody_named_are_everybody():
  assert collectives.replica_groups("channel_id=1", 3) == [[0, 1, 2]]


def test_a_notation_not_known_is_refused():
  with pytest.raises(ValueError, match="no known notation"):
    collectives.replica_groups("replica_groups=<new>", 4)


def instruction(opcode, shape, rest=""):
  return hlo.Instruction("c", shape, opcode, ("x",), "%x", rest)


def line_of(size, wraps):
  """`size` chips along the first axis of a slice in which that axis is a ring or a line."""
  grid = (16, 2) if wraps else (8, 8)
  place = DevicePlacement(
    parse_slice("v5e:16x16" if wraps else "v5e:8x8"), {}, np.zeros((size, 3), int)
  )
  place.coordinates[:, 0] = np.arange(size)
  assert grid[0] >= size
  return place


def test_all_to_all_bytes_are_those_that_leave_a_device():
  place = line_of(8, wraps=False)
  found = collectives.estimate(
    instruction("all-to-all", "f32[8,100]{1,0}"), {"x": "f32[8,100]{1,0}"}, place
  )
  assert found.wire_bytes == 8 * 100 * 4 * 7 / 8
  # Half the line sends half its bytes over the one link in the middle: 4 devices x 1600 bytes.
  assert found.seconds == pytest.approx(4 * 1600 / 50e9)


def test_a_ring_has_two_links_to_send_on():
  shapes = {"x": "f32[16,100]{1,0}"}
  ring = collectives.estimate(instruction("all-to-all", shapes["x"]), shapes, line_of(16, True))
  assert ring.seconds == pytest.approx(8 * 3200 / (2 * 50e9))


def test_an_all_reduce_travels_twice():
  shapes = {"x": "f32[1000]{0}"}
  found = collectives.estimate(instruction("all-reduce", shapes["x"]), shapes, line_of(4, False))
  assert found.wire_bytes == 2 * 4000 * 3 / 4


@pytest.mark.parametrize(("from_rows", "into_rows"), [(100, 200), (200, 100)])
def test_a_ragged_all_to_all_costs_its_rows_not_its_buffer(from_rows, into_rows):
  """Dispatch writes rows into a larger buffer, combine reads them from it; the result of an
  asynchronous pair holds both."""
  shapes = {"x": f"bf16[{from_rows},2,8]{{2,1,0}}", "memory": f"bf16[{into_rows},2,8]{{2,1,0}}"}
  for kind, result in (
    ("ragged-all-to-all", shapes["memory"]),
    ("ragged-all-to-all-start", f"(({', '.join(shapes.values())}), {shapes['memory']}, u32[])"),
  ):
    found = hlo.Instruction("c", result, kind, ("x", "memory"), "%x, %memory", "")
    assert collectives.estimate(found, shapes, line_of(8, False)).payload_bytes == 100 * 2 * 8 * 2


def test_cores_of_one_chip_talk_for_nothing_and_share_its_links():
  coordinates = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
  place = DevicePlacement(parse_slice("tpu7x:2x2x1"), {}, coordinates)
  shapes = {"x": "f32[1000]{0}"}
  groups = "replica_groups={{0,1},{2,3}}"
  assert collectives.estimate(instruction("all-reduce", "f32[1000]{0}", groups), shapes, place
    ).seconds == 0  # fmt: skip
  everybody = collectives.estimate(instruction("all-reduce", "f32[1000]{0}"), shapes, place)
  assert everybody.seconds == pytest.approx(2 * 2 * 4000 * 3 / 4 / 100e9)


def test_a_batch_dimension_as_a_window_counts_its_diagonal():
  shapes = {"x": "bf16[16,64,32]{2,1,0}", "w": "bf16[16,32,48]{2,1,0}"}
  product = hlo.Instruction(
    "c", "bf16[16,64,48]{2,1,0}", "convolution", ("x", "w"), "%x, %w",
    ", window={size=16 stride=15 pad=0_0 lhs_dilate=16}, dim_labels=0bf_0io->0bf",
  )  # fmt: skip
  assert convolution_flops(product, shapes) == 2 * 16 * 64 * 32 * 48


KERNEL = """HloModule kernel

%called (stack: bf16[9,64,128], at: s32[]) -> bf16[9,64,128] {{
  %stack = bf16[9,64,128]{{2,1,0}} parameter(0)
  %at = s32[] parameter(1)
  %y = bf16[64,128]{{1,0}} custom-call(), custom_call_target="tpu_custom_call", {config}
  ROOT %put = bf16[9,64,128]{{2,1,0}} dynamic-update-slice(%stack, %y, %at, %at, %at)
}}

ENTRY %main (stack.1: bf16[9,64,128], at.1: s32[]) -> bf16[9,64,128] {{
  %stack.1 = bf16[9,64,128]{{2,1,0}} parameter(0)
  %at.1 = s32[] parameter(1)
  ROOT %fused = bf16[9,64,128]{{2,1,0}} fusion(%stack.1, %at.1), kind=kCustom, calls=%called
}}
"""


@pytest.mark.parametrize(
  ("flops", "num_bytes", "seconds"), [(459e12, 2765e6, 1.0), (459e9, 2765e9, 1.0), (0, 0, 0.0)]
)
def test_a_kernel_fused_into_a_stack_costs_its_estimate(flops, num_bytes, seconds):
  note = {"flops": str(int(flops)), "bytes_accessed": str(int(num_bytes)), "transcendentals": "0"}
  config = json.dumps({"custom_call_config": {"cost_estimate": note}})
  module = hlo.parse(KERNEL.format(config=f"backend_config={config}"))
  (op,) = timeline.simulate(module, PLACE).ops
  assert op.basis == "kernel" and op.flops == flops
  assert op.seconds == pytest.approx(seconds)


def test_arrays_on_the_chip_touch_no_hbm():
  assert hlo.num_bytes("(f32[10]{0:T(128)S(1)}, bf16[3,5]{1,0})", space=0) == 30


PREFETCH = """HloModule prefetch

ENTRY %main (x: s8[4096,1024]) -> s8[512,1024] {
  %x = s8[4096,1024]{1,0} parameter(0)
  %start = ((s8[4096,1024]{1,0}), s8[512,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[512:1024], [0:1024]}
  ROOT %done = s8[512,1024]{1,0:S(1)} slice-done(%start)
}
"""  # noqa: E501


def test_a_prefetched_slice_reads_its_part_of_the_array():
  (start,) = timeline.simulate(hlo.parse(PREFETCH), PLACE).ops
  assert start.hbm_bytes == 512 * 1024 and start.asynchronous
  assert start.exposed == pytest.approx(512 * 1024 / HBM)


SPARSECORE = """HloModule sparse

%gathering (x: bf16[4096,64], i: s32[512]) -> bf16[512,64] {
  %x = bf16[4096,64]{1,0} parameter(0)
  %i = s32[512]{0} parameter(1)
  ROOT %gather = bf16[512,64]{1,0} gather(%x, %i), offset_dims={1}, slice_sizes={1,64}
}

%called (x.1: bf16[4096,64], i.1: s32[512]) -> bf16[512,64] {
  %x.1 = bf16[4096,64]{1,0} parameter(0)
  %i.1 = s32[512]{0} parameter(1)
  ROOT %offloaded = bf16[512,64]{1,0} fusion(%x.1, %i.1), kind=kCustom, calls=%gathering
}

ENTRY %main (x.2: bf16[4096,64], i.2: s32[512]) -> bf16[512,64] {
  %x.2 = bf16[4096,64]{1,0} parameter(0)
  %i.2 = s32[512]{0} parameter(1)
  %start = ((), (), (s32[1]{0})) call-start(), to_apply=%called, backend_config={"sparse_core_config":{"hbm_bandwidth_adjustment_factor":0.5}}
  %before = bf16[4096,64]{1,0} copy(%x.2), backend_config={"window_config":{"estimated_cycles":"1750000"}}
  %update = ((bf16[4096,64]{1,0}, s32[512]{0}), bf16[512,64]{1,0}) call-update(%start, %before, %i.2)
  ROOT %done = bf16[512,64]{1,0} call-done(%update)
}
"""  # noqa: E501


def test_a_sparsecore_gather_starts_when_its_operands_exist():
  """Half of the HBM's rate, for the rows it reads and writes and not the array it reads from."""
  simulated = timeline.simulate(hlo.parse(SPARSECORE), PLACE)
  call = op(simulated, "start")
  assert call.hbm_bytes == 2 * 512 * 64 * 2
  assert call.seconds == pytest.approx(call.hbm_bytes / (0.5 * HBM))
  assert call.exposed == pytest.approx(call.seconds) and call.asynchronous


OFFLOADED = """HloModule offloaded

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%called (p: bf16[1024,512]) -> bf16[RESULT,512] {
  %p = bf16[1024,512]{1,0} parameter(0)
  ROOT %inner = bf16[RESULT,512]{1,0} KIND(%p), replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
}

ENTRY %main (x: bf16[1024,512]) -> bf16[RESULT,512] {
  %x = bf16[1024,512]{1,0} parameter(0)
  %start = ((), (), (s32[1]{0})) call-start(), async_execution_thread="sparsecore", to_apply=%called, backend_config={"sparse_core_config":{"offload":"OFFLOAD_COLLECTIVE"}}
  %update = ((bf16[1024,512]{1,0}), bf16[RESULT,512]{1,0}) call-update(%start, %x)
  %meanwhile = bf16[1024,512]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"1750"}}
  ROOT %done = bf16[RESULT,512]{1,0} call-done(%update)
}
"""  # noqa: E501


@pytest.mark.parametrize(
  "kind, result, sent",
  [("all-gather", 2048, 1), ("all-reduce", 1024, 1), ("reduce-scatter", 512, 0.5)],
)
def test_a_sparsecores_collective_takes_links_meanwhile(kind, result, sent):
  """`sent`: MiB over the one link to the other device of a pair."""
  text = OFFLOADED.replace("KIND", kind).replace("RESULT", str(result))
  simulated = timeline.simulate(hlo.parse(text), PLACE)
  call, meanwhile = op(simulated, "start"), op(simulated, "meanwhile")
  assert call.collective.kind == kind and call.basis == "collective" and call.asynchronous
  assert call.seconds == pytest.approx(sent * 2**20 / LINK)
  assert 0 < meanwhile.seconds < call.seconds
  assert call.exposed == pytest.approx(call.seconds - meanwhile.seconds)
  assert simulated.seconds == pytest.approx(call.seconds)
