"""What the compiled exchanges send, read from the compiler's text, against the formula."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from moe_parity.aot import hlo
from moe_parity.experts.assignments import sort_by_expert
from moe_parity.kernels import common
from moe_parity.planning.expert_parallel import ExpertParallelShape, tile_padded_rows
from moe_parity.planning.wire_bytes import wire_bytes
from tests.helpers.routed import D_EXPERT, D, tpu_mesh
from tests.test_experts_expert_parallel import T, sharded

G, E, K = 8, 78, 5
RAGGED = MERGED = ExpertParallelShape(T, K, E, G)
ITEM_BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2}
SHAPES = re.compile(r"(pred|s32|u32|f32|bf16)\[([\d,]*)\]")


def num_bytes(shapes: str) -> int:
  return sum(
    ITEM_BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
    for kind, sizes in SHAPES.findall(shapes)
  )


def sent_bytes(text: str) -> dict[str, float]:
  """Bytes a device sends to the others, by collective; each instruction counted once."""
  sent = dict.fromkeys(("all-to-all", "all-gather", "reduce-scatter", "all-reduce"), 0)
  for result, kind in re.findall(r"= (.*?) ([a-z-]+)\(", text):
    if kind in sent:
      whole = num_bytes(result) * (G if kind == "reduce-scatter" else 1)
      sent[kind] += whole * (G - 1) // G
  return sent


def traced(token_dispatch, implementation="padded", mesh=None):
  """One layer forward and backward for 8 devices, float32."""
  ffn = sharded(1, G, E, token_dispatch=token_dispatch, implementation=implementation, mesh=mesh)

  def both(x, expert, gate, w_in, w_down, dy):
    y, vjp = jax.vjp(
      lambda x, gate, w_in, w_down: ffn(x, expert, gate, w_in, w_down)[0], x, gate, w_in, w_down
    )
    return y, *vjp(dy)

  padded = G * -(-E // G)
  shapes = [(T * G, D), (T * G, K), (T * G, K), (padded, 2, D_EXPERT, D), (padded, D_EXPERT, D),
            (T * G, D)]  # fmt: skip
  dtypes = [jnp.float32, jnp.int32, *[jnp.float32] * 4]
  return jax.jit(both).trace(*map(jax.ShapeDtypeStruct, shapes, dtypes))


@functools.cache
def compiled(token_dispatch):
  return traced(token_dispatch).lower().compile().as_text()


def test_estimates_leave_out_loops_over_overflow_rounds():
  module = hlo.parse(compiled("all_to_all"))
  loops = [i for body in module.computations.values() for i in body if i.opcode == "while"]
  assert len(loops) >= 4  # further rounds and overflowing slots, each forward and backward
  assert [hlo.trip_count(module, loop) for loop in loops] == [0] * len(loops)


@pytest.mark.parametrize("token_dispatch", ["all_to_all", "all_gather"])
def test_compiled_collectives_send_what_the_formula_says(token_dispatch):
  text = compiled(token_dispatch)
  expected = wire_bytes(token_dispatch, ExpertParallelShape(T, K, E, G), d_model=D, itemsize=4)
  sent = sent_bytes(text)
  if token_dispatch == "all_to_all":  # both rounds stand in the text once
    rounds = (
      expected.forward + expected.backward,
      expected.overflow_forward,
      expected.overflow_backward,
    )
    assert expected.overflow_forward and sent["all-to-all"] == sum(rounds)
    assert sent["all-gather"] == sent["reduce-scatter"] == 0
  else:
    assert sent["all-gather"] + sent["reduce-scatter"] == expected.forward + expected.backward
    assert sent["all-to-all"] == 0


@functools.cache
def ragged_for_tpu():
  program = traced("ragged_all_to_all", "grouped", tpu_mesh(1, G))
  return program.lower(lowering_platforms=("tpu",)).as_text()


def operand_bytes(text: str, operation: str) -> list[int]:
  """Bytes of the first operand of every instance of an operation in StableHLO text."""
  shapes = re.findall(rf"{operation}.*?: \(tensor<([\dx]*?)x?([a-z]+\d+)>", text)
  sizes = {"f32": 4, "i32": 4}
  return [sizes[kind] * math.prod(map(int, filter(None, dims.split("x")))) for dims, kind in shapes]


def wire_metadata(token_dispatch: str, shape: ExpertParallelShape) -> int:
  """Bytes of the first round, forward and backward, without vectors."""
  sent = wire_bytes(token_dispatch, shape, d_model=0, itemsize=4)
  return sent.forward + sent.backward


def test_ragged_dispatch_sends_vectors_and_gathers_weights():
  text = ragged_for_tpu()
  # Vectors only, each row of them D numbers: the sizes that travel are known when it runs.
  rows = re.findall(r"ragged_all_to_all.*?: \(tensor<\d+x(\d+)x(\w+)>", text)
  assert set(rows) == {(str(D), "f32")}
  # An overflow round gathers weights in both passes, and gradients of one buffer.
  overflow = tile_padded_rows(G * RAGGED.overflow_choices, RAGGED.experts_per_device)
  again = 4 * (G - 1) * (2 * T * K + overflow)
  gathered = (G - 1) * sum(operand_bytes(text, '"stablehlo.all_gather"'))
  assert gathered == wire_metadata("ragged_all_to_all", RAGGED) + again


def test_dedup_dispatch_sends_vectors_and_metadata_of_slots():
  program = traced("ragged_all_to_all_dedup", "grouped", tpu_mesh(1, G))
  text = program.lower(lowering_platforms=("tpu",)).as_text()
  first, overflow = (G * rows for rows in (MERGED.first_rows, MERGED.overflow_rows))
  sent = operand_bytes(text, "ragged_all_to_all")
  # Buffers of slots: dispatch, combine and the gradients of both.
  assert sum(size for size in sent if size == 4 * D * first) == 4 * 4 * D * first
  assert set(sent) == {4 * D * first, 4 * D * overflow}
  # Metadata of all slots; the backward pass of an overflow round repeats its dispatch.
  per_row = MERGED.choices_per_row
  again = 4 * (G - 1) * MERGED.overflow_rows * per_row * (2 + 2 + 1)
  tags = (G - 1) * sum(size // G for size in operand_bytes(text, '"stablehlo.all_to_all"'))
  counts = 4 * (G - 1) * G  # of rows for each device, which are gathered
  assert tags + counts == wire_metadata("ragged_all_to_all_dedup", MERGED) + again


def test_a_tpu_program_sorts_nothing_and_fills_no_buffers():
  text = ragged_for_tpu()
  assert "stablehlo.sort" not in text and "call @empty" not in text
  constants = re.findall(r"broadcast_in_dim.*?: \(tensor<f32>\) -> tensor<([\dx]+)xf32>", text)
  constants += re.findall(r"dense<[^>]*> : tensor<([\dx]+)xf32>", text)
  experts = RAGGED.experts_per_device
  rooms = (G * size for size in (RAGGED.first_choices, RAGGED.overflow_choices))
  buffers = {f"{rows}x{D}" for rows in (T * K, *(tile_padded_rows(n, experts) for n in rooms))}
  assert constants and not buffers & set(constants)


def test_cpu_and_gpu_sort_where_a_tpu_counts():
  shape = jax.ShapeDtypeStruct((T, K), jnp.int32)
  for platform, sorts in (("cpu", True), ("gpu", True), ("tpu", False)):
    with common.simulate(platform):
      lowered = jax.jit(lambda expert: sort_by_expert(expert, E)).lower(shape)
    assert ("stablehlo.sort" in lowered.as_text()) == sorts
