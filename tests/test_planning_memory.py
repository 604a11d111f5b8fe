"""Bytes on a device: small cases counted by hand, and what must hold for any mesh."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.errors import UserError
from moe_parity.paper import tables
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.memory import device_memory, saved_channels

DENSE = Architecture(
  num_layers=2, d_model=6, num_heads=3, num_kv_heads=1, d_head=4, d_ffn=10, vocab_size=17
)
MOE = Architecture(
  num_layers=3, d_model=8, num_heads=2, d_head=4, layout="1dense", d_ffn=20, num_experts=5,
  experts_per_token=2, d_expert=12, d_shared=24, vocab_size=32,
)  # fmt: skip
# By hand: attention 2*6*4*(3+1), feed-forward 3*6*10, two norms; vocabulary twice, last norm.
DENSE_PARAMS = 2 * (192 + 180 + 12) + 2 * 17 * 6 + 6


def test_one_device_holds_the_exact_parameters_four_times_over():
  memory = device_memory(DENSE, 16, 4, dtype="float32", remat="none")
  assert memory.parameters == memory.gradients == 4 * DENSE_PARAMS
  assert memory.optimizer == 8 * DENSE_PARAMS
  exact = cost_of(MOE, 16, "exact")
  held = device_memory(MOE, 16, 4).parameters
  assert held == 4 * (exact.num_params + exact.vocabulary_params)


def test_activations_of_each_policy_are_those_counted_by_hand():
  # One dense token: input 6, q 12, k and v 8, attention's output 6, gate and up 20, down 6.
  assert saved_channels(DENSE, False, "layer", 16) == 6
  assert saved_channels(DENSE, False, "dots", 16) == 6 + 12 + 8 + 6 + 20 + 6
  # Norms 2 * 2 * 6, q and mixed values 24, k and v 8, 3 heads over 16 keys, three times 10.
  assert saved_channels(DENSE, False, "none", 16) == 24 + 24 + 8 + 48 + 30
  # In a kernel no scores, but a norm for each of 3 heads, twice as wide as bfloat16.
  assert saved_channels(DENSE, False, "none", 0, values_per_float32=2) == 24 + 24 + 8 + 3 * 2 + 30
  # One MoE token: 8 + 8 + 16 + 8, two experts of 2*12 + 8, the shared one 2*24 + 8.
  assert saved_channels(MOE, True, "dots", 16) == 40 + 2 * 32 + 56
  assert (
    saved_channels(MOE, True, "dots", 0, rows=2.5) == 40 + 56
  )  # what a kernel multiplies is not
  # Norms 32, attention 32 and 2 * 16 scores, router 2 * 5, two experts of 2 * 12, shared 3 * 24.
  assert saved_channels(MOE, True, "none", 16) == 32 + 32 + 32 + 10 + 2 * 24 + 72
  assert (
    saved_channels(MOE, True, "none", 16, values_per_float32=2) == 32 + 32 + 32 + 20 + 2 * 24 + 72
  )
  # Sorted rows stay, here two and a half a token; on a TPU 8 and 12 numbers take a row of 128.
  assert saved_channels(MOE, True, "none", 16, rows=2.5) == 32 + 32 + 32 + 10 + 2.5 * 3 * 128 + 72
  # The paper's 2B: rows of 11 pieces of 128 take 16, hidden layers of 320 take 384.
  wide = dataclasses.replace(MOE, d_model=1408, d_expert=320)
  rest = 4 * 1408 + 32 + 32 + 10 + 72
  assert saved_channels(wide, True, "none", 16, rows=3) == rest + 3 * (2 * 384 + 2048)


def test_each_of_two_batch_splits_has_its_own_buffer():
  """12 tokens of one sequence choose 30 rows with slack, and 60 of two: either would fit the tiles
  that three experts have one each of, in whole pairs."""
  options = dict(dtype="float32", remat="none", kernels=True)
  one, two, three = (
    device_memory(MOE, 12, 2 * n, {"expert": 2}, **options).activations for n in (1, 2, 3)
  )
  rows = 4 * 256 * 2 * (3 * 128) * 4  # 4 tiles, 2 MoE layers, a row and 2 hidden layers, float32
  others = one - rows
  assert two == 2 * others + 2 * rows
  assert three == 3 * others + rows  # no two can share three sequences
  memory = device_memory(MOE, 12, 2, {"expert": 2}, **options)
  assert memory.exchange == 4 * 2 * 2 * 12 * 128  # there and back, 2 choices of 12 tokens
  # Gradients: of the shared expert, and of 4 tiles 3 rows, 3 hidden layers and one in float32.
  assert memory.backward_workspace == 4 * (12 * 3 * 24 + 4 * 256 * (3 * 128 + 4 * 128))


def test_bytes_of_a_step_are_those_counted_by_hand():
  memory = device_memory(DENSE, 16, 4, dtype="float32", remat="none")
  assert memory.activations == 4 * 64 * 2 * 134
  assert memory.backward_workspace == 4 * 64 * (
    3 * 2 * 16 + 30
  )  # gradients of scores and hidden values
  assert memory.logits == 8 * 64 * 17 and memory.exchange == 0
  assert memory.compute_weights == 4 * (
    192 + 180
  )  # as they lie; in two bytes a copy of both layers
  assert device_memory(DENSE, 16, 4, remat="none").compute_weights == 2 * 2 * (192 + 180)
  assert device_memory(DENSE, 16, 4, dtype="float32", max_logits=100).logits == 800
  assert memory.total == sum(memory.to_dict()[part] for part in memory.to_dict()) - memory.total
  # Layer inputs of two layers, and one layer whole while it is computed again, in two bytes.
  layer = device_memory(DENSE, 16, 4, dtype="bfloat16", remat="layer")
  assert layer.activations == 2 * 64 * 2 * 6
  assert layer.backward_workspace == 2 * 64 * (134 - 6 + 2 * 96 + 30)  # scores in float32


def test_a_mesh_cuts_experts_over_expert_and_matrices_over_fsdp():
  memory = device_memory(MOE, 16, 12, {"data": 3, "expert": 2, "fsdp": 2})
  attention, dense, shared, router = 256, 480, 576, 40
  experts = 3 * 3 * 8 * 12  # five experts on two places: three, one of them a phantom on one place
  held = (attention + dense) // 2 + 2 * ((attention + shared) // 2 + experts // 2 + router)
  held += 3 * 2 * 8 + 8 + 2 * 32 * 8 // 2
  assert memory.parameters == 4 * held
  assert memory.exchange == 2 * 2 * 2 * 16 * 8  # there and back, bfloat16, K 2, 16 tokens, D_m 8
  assert memory.logits == 8 * 16 * 32


def test_whole_experts_are_padded_to_a_multiple_of_fsdp():
  of_mesh = lambda n: device_memory(  # noqa: E731
    dataclasses.replace(MOE, num_experts=n), 16, 12, {"data": 3, "fsdp": 4}
  )
  per_expert, router = 2 * 3 * 8 * 12, 2 * 8  # two MoE layers; the router has no padding
  assert of_mesh(16).parameters - of_mesh(15).parameters == 4 * router
  assert of_mesh(12).parameters - of_mesh(11).parameters == 4 * router
  assert of_mesh(16).parameters - of_mesh(12).parameters == 4 * (4 * router + per_expert)
  assert of_mesh(6).parameters - of_mesh(5).parameters == 4 * (router + per_expert // 4)  # columns


def test_micro_batches_trade_activations_for_a_second_gradient():
  whole, cut = (device_memory(MOE, 16, 12, micro_batches=n) for n in (1, 3))
  assert cut.activations == whole.activations // 3 and cut.gradients == 2 * whole.gradients


@given(
  data=st.integers(1, 4),
  fsdp=st.integers(1, 4),
  expert=st.integers(1, 5),
  remat=st.sampled_from(["none", "dots", "layer"]),
)
def test_more_devices_never_need_more_memory_each(data, fsdp, expert, remat):
  batch = 4 * 3 * 5 * 4 * 2
  if batch % (data * fsdp * expert):
    return
  mesh = {"data": data, "fsdp": fsdp, "expert": expert}
  one = device_memory(MOE, 16, batch, remat=remat)
  many = device_memory(MOE, 16, batch, mesh, remat=remat)
  for part in ("parameters", "optimizer", "gradients", "activations", "logits"):
    assert getattr(many, part) <= getattr(one, part)
  assert many.parameters * data * fsdp * expert >= one.parameters
  less = device_memory(MOE, 16, batch, mesh, remat="layer")
  assert less.parameters == many.parameters and less.activations <= many.activations


def test_the_papers_7b_moe_fits_64_chips_and_not_one():
  shape = dataclasses.replace(tables.row("table11", 4).architecture, vocab_size=65536)
  options = dict(remat="layer", kernels=True, max_logits=2**26)
  assert device_memory(shape, 2048, 256, {"fsdp": 8, "expert": 8}, **options).total < 95e9 / 4
  assert device_memory(shape, 2048, 256, **options).total > 95e9


@pytest.mark.parametrize(
  "change, words",
  [
    ({"mesh": {"tensor": 2}}, "'tensor' is not one of data"),
    ({"mesh": {"model": 2}}, "'model' is not one of data"),
    ({"mesh": {"data": 0}}, "data=0 is below 1"),
    ({"mesh": {"expert": 6}}, "expert=6 exceeds num_experts=5"),
    ({"mesh": {"data": 5}}, "batch_sequences=12 is not a multiple of 5.*use 10"),
    ({"remat": "some"}, "model.remat='some' is not known"),
    ({"dtype": "int8"}, "dtype='int8'"),
    ({"micro_batches": 0}, "micro_batches=0"),
    ({"seq_len": 0}, "seq_len=0"),
  ],
)
def test_a_mesh_or_option_that_cannot_be_is_refused(change, words):
  arguments = dict(seq_len=16, batch_sequences=12) | change
  with pytest.raises(UserError, match=words):
    device_memory(MOE, **arguments)
