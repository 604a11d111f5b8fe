"""Which exchange, how large its buffers, how many bytes: in plain Python, before any compile."""

import itertools
import math

import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.planning.expert_parallel import Shape, check_exchange, default_exchange, wire_bytes


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
  shape = Shape(40, k, e, g)
  for j in range(1, shape.most_choices + 1):
    assert shape.rows_per_pair(j) == pytest.approx(rows_by_counting(e, k, g, j), rel=1e-12)


def test_rows_hold_as_few_choices_as_come_within_two_percent_of_the_fewest_rows():
  for e, k, g in ((80, 6, 16), (64, 8, 8), (83, 2, 4), (81, 1, 8)):
    shape = Shape(4096, k, e, g)
    fewest = shape.rows_per_pair(shape.most_choices)
    assert shape.rows_per_pair(shape.choices_per_row) <= 1.02 * fewest
    assert all(shape.rows_per_pair(j) > 1.02 * fewest for j in range(1, shape.choices_per_row))


def test_no_token_needs_more_rows_than_are_set_aside_for_it():
  for e, k, g in ((9, 4, 8), (11, 6, 2), (13, 5, 4)):
    shape = Shape(40, k, e, g)
    here, j = shape.experts_per_device, shape.choices_per_row
    needed = [
      sum(-(-n // j) for n in np.bincount([c // here for c in chosen]))
      for chosen in itertools.combinations(range(e), k)
    ]
    assert max(needed) <= shape.rows_per_token <= k


def test_first_round_and_replays_together_hold_the_worst_case():
  for t, e, k, g in ((4096, 80, 6, 16), (1000, 83, 2, 4), (77, 9, 3, 8), (640, 64, 8, 2)):
    shape = Shape(t, k, e, g)
    assert shape.first_rows <= shape.most_rows <= t * k
    assert (shape.replay_rows == 0) == (shape.first_rows == shape.most_rows)
    assert shape.first_rows >= min(t * shape.rows_per_pair(shape.choices_per_row), shape.most_rows)


def test_with_a_capacity_one_round_holds_every_row_an_expert_takes():
  shape = Shape(1000, 6, 80, 16, capacity_factor=1.25)
  assert shape.capacity == math.ceil(1.25 * 1000 * 6 / 80)
  assert shape.first_rows == shape.most_rows == 5 * shape.capacity
  assert shape.replay_rows == 0


def test_wire_bytes_of_the_ragged_exchange_are_a_row_for_every_choice_and_one_percent():
  """K = 6 of 80 experts over 16 devices, 8,192 tokens of 2,048 bfloat16 numbers on each. Forward
  the percent are routing weights, 4 bytes for each of all devices' choices, and counts. Backward
  their gradients, 4 bytes for each row that a buffer has room for: a quarter more than choices,
  and for each of 5 experts a tile of 256."""
  shape = Shape(8192, 6, 80, 16)
  sent = wire_bytes("ragged", shape, d_model=2048, itemsize=2)
  choices, there_and_back = 8192 * 6, 2 * 2048 * 2
  rows = 15 / 16 * choices * there_and_back
  assert rows + 15 * 4 * choices < sent.forward < rows + 15 * 4 * (choices + 16 * 5 + 1)
  room = 1.25 * choices + 5 * 256
  assert rows + 15 * 4 * room <= sent.backward < rows + 15 * 4 * (room + 2 * 256)
  assert max(sent.forward, sent.backward) < 1.0101 * rows


def test_wire_bytes_of_the_merged_exchange_are_within_five_percent_of_a_row_for_every_device():
  """A token meets a device of 5 among 80 experts with probability 1 - C(75, 6) / C(80, 6)."""
  for num_tokens, k, e, g in ((8192, 6, 80, 16), (8192, 6, 80, 8), (5000, 3, 78, 4)):
    sent = wire_bytes("merged", Shape(num_tokens, k, e, g), d_model=2048, itemsize=2)
    here = -(-e // g)
    rows = (g - 1) * num_tokens * (1 - math.comb(e - here, k) / math.comb(e, k))
    assert rows < sent.forward / (2 * 2048 * 2) < 1.03 * rows
    assert rows < sent.backward / (2 * 2048 * 2) < 1.03 * rows


def test_gathered_is_taken_where_most_tokens_go_to_most_devices():
  take = dict(num_experts=64, experts_per_token=8)
  assert default_exchange("tpu", num_devices=2, **take) == "gathered"
  assert default_exchange("tpu", num_devices=16, **take) == "ragged"
  assert default_exchange("tpu", num_devices=16, has_ragged=False, **take) == "padded"
  assert default_exchange("gpu", num_devices=16, **take) == "padded"
  assert default_exchange("cpu", num_devices=8, num_experts=78, experts_per_token=2) == "padded"


def check(exchange="padded", platform="cpu", num_experts=9, num_devices=4, **options):
  check_exchange(exchange, platform, num_experts=num_experts, num_devices=num_devices, **options)


def test_what_can_run_is_let_through():
  check()
  check("ragged", "tpu")
  check("gathered", capacity_factor=1.25)


def test_what_cannot_run_is_refused_with_value_rule_and_way_out():
  with pytest.raises(UserError, match="exchange='ring' is not one of padded, merged, ragged"):
    check("ring")
  for exchange in ("ragged", "merged"):
    with pytest.raises(UserError, match=f"exchange='{exchange}' needs a TPU or GPU.*use 'padded'"):
      check(exchange)
  with pytest.raises(UserError, match="16 devices on the expert axis share 9 experts.*at most 9"):
    check(num_devices=16)
  for wrong in (-0.5, math.inf, math.nan):
    with pytest.raises(UserError, match=f"capacity_factor={wrong} must be 0"):
      check(capacity_factor=wrong)
