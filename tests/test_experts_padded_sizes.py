"""Sizes of padded experts: those of a CPU as they were, a GPU's, and that both are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.experts import padded_overflow
from moe_parity.experts.assignments import sort_by_expert
from moe_parity.experts.expert_ffn import expert_ffn, slots_per_expert
from moe_parity.experts.padded_sizes import CPU, GPU
from moe_parity.kernels import common
from tests.helpers.routed import ROUTINGS, assert_equals_reference, draw

# (tokens of a micro-batch, K, E) of configs' MoE arms, from one choice to seventeen.
SHAPES = [(16_384, 1, 218), (16_384, 6, 95), (16_384, 17, 70), (16_384, 2, 88), (8192, 6, 78)]


@pytest.mark.parametrize("t, k, e", SHAPES)
def test_a_gpus_slots_are_whole_64s_up_to_1_25_of_the_mean(t, k, e):
  mean, slots = t * k / e, GPU.slots(t, k, e)
  assert slots % 64 == 0
  assert slots >= mean + 1.75 * np.sqrt(mean * (1 - k / e))  # balanced routing does not overflow
  assert slots <= max(1.25 * mean, mean + 1.75 * np.sqrt(mean) + 64)
  if mean > 1000:
    assert slots > 1.15 * mean


@pytest.mark.parametrize("t, k, e", SHAPES)
def test_a_gpus_overflow_steps_are_a_sixteenth_of_all_rows(t, k, e):
  slots = GPU.slots(t, k, e)
  tile, num_tiles = GPU.tile(slots), GPU.tiles_per_step(slots, t * k)
  assert tile in (64, 128) and tile <= slots
  assert t * k / 16 - tile < tile * num_tiles <= t * k / 16


def test_a_cpus_sizes_are_what_its_numbers_were_measured_with():
  """Slots, tiles and tiles a step by hand: 1,035 and 1.75 x 31.1 are 1,090, in 16s 1,104."""
  slots = CPU.slots(16_384, 6, 95)
  assert (slots, CPU.tile(slots), CPU.tiles_per_step(slots, 98_304)) == (1104, 256, 2)
  assert (CPU.tile(48), CPU.tiles_per_step(48, 10_000)) == (16, 8)
  assert CPU.slots(40, 3, 24) == 16
  assert GPU.slots(2, 3, 24) == CPU.slots(2, 3, 24) == 6  # no more than all assignments


def test_the_platform_of_the_program_decides():
  assert slots_per_expert(16_384, 6, 95) == CPU.slots(16_384, 6, 95)
  with common.simulate("gpu"):
    assert slots_per_expert(16_384, 6, 95) == GPU.slots(16_384, 6, 95)


@jax.jit
def value_and_gradients(x, expert, gate, w_in, w_down, dy):
  """With 64 slots an expert, by the sizes of the platform that is simulated at the first call."""

  def ffn(x, gate, w_in, w_down):
    return expert_ffn(x, expert, gate, w_in, w_down, implementation="padded", num_slots=64)

  y, vjp = jax.vjp(ffn, x, gate, w_in, w_down)
  return y, *vjp(dy)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_gpus_sizes_give_the_loop_over_tokens(routing):
  """600 assignments to 3 experts with 64 slots each: the overflow loop takes up to two steps."""
  t, e, k = 300, 3, 2
  arguments = draw(np.random.default_rng(6), routing, t, e, k)

  with common.simulate("gpu"):
    assert_equals_reference(value_and_gradients(*arguments), arguments)
    by_expert = sort_by_expert(jnp.asarray(arguments[1]), e)
    num_steps = int(padded_overflow.plan_overflow(by_expert, 64).num_steps)
  assert (num_steps > 0) == (routing != "all unassigned")
