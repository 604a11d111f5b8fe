import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.window_order import Order, key, permute, splitmix64, unique_windows
from moe_parity.errors import UserError

seeds = st.integers(-(2**40), 2**63)
GOLDEN = [
  634, 64, 297, 661, 346, 784, 843, 84, 509, 430, 64, 784,
  509, 346, 297, 84, 634, 843, 430, 661, 84, 784, 661, 64,
]  # fmt: skip


def test_splitmix64_gives_the_published_sequence():
  # First outputs of the reference generator from state 1234567 (Vigna's splitmix64.c).
  states = np.array([1234567], np.uint64)
  found = []
  for _ in range(3):
    found.append(int(splitmix64(states)[0]))
    states = states + np.uint64(0x9E3779B97F4A7C15)
  assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(size=st.integers(1, 700), seed=seeds)
@settings(max_examples=60)
def test_permute_is_a_permutation(size, seed):
  assert sorted(permute(np.arange(size), size, key(seed)).tolist()) == list(range(size))


def test_permute_reaches_any_index_without_the_others():
  size = 10**12 + 39
  index = np.array([0, 17, 10**11, size - 1])
  together = permute(index, size, key(5))
  alone = [int(permute(index[i : i + 1], size, key(5))[0]) for i in range(4)]
  assert together.tolist() == alone
  assert len(set(alone)) == 4 and max(alone) < size


def test_every_window_is_equally_likely_at_every_place():
  size, draws = 7, 800
  counts = np.zeros((size, size))
  for seed in range(draws):
    counts[np.arange(size), permute(np.arange(size), size, key(seed, 9))] += 1
  expected = draws / size
  statistic = ((counts - expected) ** 2 / expected).sum()
  # chi-square with 36 degrees of freedom passes 75.9 once in 10,000 draws of a fair shuffle.
  assert statistic < 75.9


def test_the_order_is_the_same_for_ever():
  # Written down once: a change here breaks the resume of every run there is.
  assert Order(1000, 10, 42).windows(0, 24).tolist() == GOLDEN


@given(
  num_windows=st.integers(2, 400), share=st.floats(0.01, 1), seed=seeds, epochs=st.integers(1, 4)
)
@settings(max_examples=50)
def test_each_epoch_reads_the_same_windows_once_in_another_order(num_windows, share, seed, epochs):
  num_unique = max(1, int(num_windows * share))
  order = Order(num_windows, num_unique, seed)
  passes = order.windows(0, epochs * num_unique).reshape(epochs, num_unique)
  first = sorted(passes[0].tolist())
  assert len(set(first)) == num_unique
  for later in passes[1:]:
    assert sorted(later.tolist()) == first
  if num_unique > 30:
    assert all(a.tolist() != b.tolist() for a, b in zip(passes, passes[1:], strict=False))


@given(small=st.integers(1, 200), large=st.integers(1, 200), seed=seeds)
@settings(max_examples=40)
def test_a_smaller_budget_is_a_prefix_of_a_larger_one(small, large, seed):
  small, large = sorted((small, large))
  assert (
    Order(200, small, seed).windows(0, small).tolist()
    == Order(200, large, seed).windows(0, large)[:small].tolist()
  )


@given(cuts=st.lists(st.integers(0, 500), max_size=6), seed=seeds)
@settings(max_examples=40)
def test_the_order_does_not_depend_on_how_it_is_read(cuts, seed):
  order = Order(90, 70, seed)
  edges = [0, *sorted(cuts), 500]
  pieces = [order.windows(a, b) for a, b in zip(edges, edges[1:], strict=False)]
  assert np.concatenate(pieces).tolist() == order.windows(0, 500).tolist()


def test_seeds_give_different_subsets():
  first = set(Order(1000, 100, 1).windows(0, 100).tolist())
  second = set(Order(1000, 100, 2).windows(0, 100).tolist())
  assert 0 < len(first & second) < 40  # 10 expected by chance


def test_a_budget_of_tokens_is_rounded_down_to_windows():
  assert unique_windows(1000, 50, 64) == 15
  assert unique_windows(0, 50, 64) == 50


@pytest.mark.parametrize(
  "budget, windows, words",
  [(64 * 51, 50, "needs 51 windows"), (63, 50, "under one window"), (100, 0, "no whole window")],
)
def test_an_impossible_budget_is_refused_with_its_numbers(budget, windows, words):
  with pytest.raises(UserError, match=words):
    unique_windows(budget, windows, 64)
