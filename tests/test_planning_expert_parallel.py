"""Which token dispatcher, how large its buffers, how many bytes: in plain Python."""

import itertools
import math

import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.planning.expert_parallel import (
  ExpertParallelShape,
  check_token_dispatch,
  default_token_dispatch,
)
from moe_parity.planning.wire_bytes import wire_bytes


def rows_by_counting(e, k, num_devices, choices_per_row):
  """Rows for device 0 in the mean over every possible choice."""
  here = range(-(-e // num_devices))
  choices = list(itertools.combinations(range(e), k))
  return np.mean(
    [math.ceil(sum(c in here for c in chosen) / choices_per_row) for chosen in choices]
  )


@pytest.mark.parametrize(
  ("e", "k", "g"), [(9, 2, 8), (11, 4, 2), (13, 3, 4), (7, 7, 3), (12, 1, 5)]
)
def test_rows_per_pair_equal_a_count_over_all_choices(e, k, g):
  shape = ExpertParallelShape(40, k, e, g)
  for j in range(1, shape.max_choices_per_device + 1):
    assert shape.expected_rows_per_pair(j) == pytest.approx(rows_by_counting(e, k, g, j), rel=1e-12)


def test_choices_per_row_are_the_fewest_within_two_percent():
  for e, k, g in ((80, 6, 16), (64, 8, 8), (83, 2, 4), (81, 1, 8)):
    shape = ExpertParallelShape(4096, k, e, g)
    fewest = shape.expected_rows_per_pair(shape.max_choices_per_device)
    assert shape.expected_rows_per_pair(shape.choices_per_row) <= 1.02 * fewest
    assert all(
      shape.expected_rows_per_pair(j) > 1.02 * fewest for j in range(1, shape.choices_per_row)
    )


def test_no_token_needs_more_rows_than_it_has():
  for e, k, g in ((9, 4, 8), (11, 6, 2), (13, 5, 4)):
    shape = ExpertParallelShape(40, k, e, g)
    here, j = shape.experts_per_device, shape.choices_per_row
    needed = [
      sum(-(-n // j) for n in np.bincount([c // here for c in chosen]))
      for chosen in itertools.combinations(range(e), k)
    ]
    assert max(needed) <= shape.rows_per_token <= k


def test_first_and_overflow_rounds_hold_the_worst_case():
  for t, e, k, g in ((4096, 80, 6, 16), (1000, 83, 2, 4), (77, 9, 3, 8), (640, 64, 8, 2)):
    shape = ExpertParallelShape(t, k, e, g)
    assert shape.first_rows <= shape.max_rows_per_pair <= t * k
    assert (shape.overflow_rows == 0) == (shape.first_rows == shape.max_rows_per_pair)
    assert shape.first_rows >= min(
      t * shape.expected_rows_per_pair(shape.choices_per_row), shape.max_rows_per_pair
    )


def test_with_a_capacity_one_round_holds_every_row():
  shape = ExpertParallelShape(1000, 6, 80, 16, capacity_factor=1.25)
  assert shape.capacity == math.ceil(1.25 * 1000 * 6 / 80)
  assert shape.first_rows == shape.max_rows_per_pair == 5 * shape.capacity
  assert shape.overflow_rows == 0


def test_ragged_wire_bytes_are_a_row_a_choice_and_one_percent():
  """K = 6 of 80 experts over 16 devices, 8,192 tokens of 2,048 bfloat16 numbers on each. Forward
  the percent are routing weights, 4 bytes for each of all devices' choices, and counts. Backward
  their gradients, 4 bytes for each row that a buffer has room for: a quarter more than choices,
  and for each of 5 experts a tile of 256."""
  shape = ExpertParallelShape(8192, 6, 80, 16)
  sent = wire_bytes("ragged_all_to_all", shape, d_model=2048, itemsize=2)
  choices, there_and_back = 8192 * 6, 2 * 2048 * 2
  rows = 15 / 16 * choices * there_and_back
  assert rows + 15 * 4 * choices < sent.forward < rows + 15 * 4 * (choices + 16 * 5 + 1)
  room = 1.25 * choices + 5 * 256
  assert rows + 15 * 4 * room <= sent.backward < rows + 15 * 4 * (room + 2 * 256)
  assert max(sent.forward, sent.backward) < 1.0101 * rows


def test_dedup_wire_bytes_are_a_row_a_device_and_five_percent():
  """A token meets a device of 5 among 80 experts with probability 1 - C(75, 6) / C(80, 6)."""
  for num_tokens, k, e, g in ((8192, 6, 80, 16), (8192, 6, 80, 8), (5000, 3, 78, 4)):
    sent = wire_bytes(
      "ragged_all_to_all_dedup", ExpertParallelShape(num_tokens, k, e, g), d_model=2048, itemsize=2
    )
    here = -(-e // g)
    rows = (g - 1) * num_tokens * (1 - math.comb(e - here, k) / math.comb(e, k))
    assert rows < sent.forward / (2 * 2048 * 2) < 1.03 * rows
    assert rows < sent.backward / (2 * 2048 * 2) < 1.03 * rows


def test_all_gather_is_the_default_where_tokens_go_everywhere():
  take = dict(num_experts=64, experts_per_token=8)
  assert default_token_dispatch("tpu", num_devices=2, **take) == "all_gather"
  assert default_token_dispatch("tpu", num_devices=16, **take) == "ragged_all_to_all"
  assert default_token_dispatch("tpu", num_devices=16, has_ragged=False, **take) == "all_to_all"
  assert default_token_dispatch("gpu", num_devices=16, **take) == "all_to_all"
  assert (
    default_token_dispatch("cpu", num_devices=8, num_experts=78, experts_per_token=2)
    == "all_to_all"
  )


def check(token_dispatch="all_to_all", platform="cpu", num_experts=9, num_devices=4, **options):
  check_token_dispatch(
    token_dispatch, platform, num_experts=num_experts, num_devices=num_devices, **options
  )


def test_a_dispatcher_that_can_run_is_accepted():
  check()
  check("ragged_all_to_all", "tpu")
  check("all_gather", capacity_factor=1.25)


def test_a_dispatcher_that_cannot_run_is_refused_with_a_way_out():
  with pytest.raises(UserError, match="token_dispatch='ring' is not known; give all_to_all"):
    check("ring")
  for token_dispatch in ("ragged_all_to_all", "ragged_all_to_all_dedup"):
    with pytest.raises(
      UserError, match=f"token_dispatch='{token_dispatch}' needs a TPU or GPU.*use 'all_to_all'"
    ):
      check(token_dispatch)
  with pytest.raises(UserError, match="16 devices on the expert axis share 9 experts.*at most 9"):
    check(num_devices=16)
  for wrong, rule in ((-0.5, "below"), (math.inf, "not finite"), (math.nan, "not finite")):
    with pytest.raises(UserError, match=f"model.capacity_factor={wrong} is {rule}"):
      check(capacity_factor=wrong)
