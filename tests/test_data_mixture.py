import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.corpus import Source
from moe_parity.data.loader import Loader
from moe_parity.data.mixture import CYCLE, groups_of, order_from, plan_mixture, shares_of
from moe_parity.data.prepare import prepare
from moe_parity.errors import UserError
from tests.small_store import records, write_jsonl

GROUPS = [(0, 40), (40, 700), (740, 130)]


def owner(windows):
  return np.searchsorted([40, 740], windows, side="right")


@given(weights=st.tuples(*[st.floats(0.01, 9)] * 3), seed=st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_every_cycle_holds_each_source_by_its_share(weights, seed):
  order = plan_mixture(GROUPS, weights, seed, num_windows=870)
  cycles = owner(order.windows(0, 4 * CYCLE)).reshape(4, CYCLE)
  for cycle in cycles:
    assert np.bincount(cycle, minlength=3).tolist() == shares_of(weights)
  assert not np.array_equal(cycles[0], cycles[1])
  for share, weight in zip(shares_of(weights), weights, strict=True):
    assert abs(share - weight / sum(weights) * CYCLE) < 1


def test_each_source_has_its_own_epochs_over_its_own_budget():
  order = plan_mixture(GROUPS, (0.1, 0.7, 0.2), 5, num_windows=870, num_unique=350)
  windows = order.windows(0, 3000)
  for number, (share, unique) in enumerate(((100, 35), (700, 245), (200, 70))):
    mine = windows[owner(windows) == number]
    assert mine.size == 3 * share
    epochs = mine[: mine.size // unique * unique].reshape(-1, unique)
    assert all(sorted(epoch) == sorted(epochs[0].tolist()) for epoch in epochs.tolist())
    assert len(set(mine.tolist())) == unique
  assert order.num_unique == 350


def test_a_mixture_is_read_the_same_from_anywhere():
  order = plan_mixture(GROUPS, (1, 2, 3), 8, num_windows=870)
  again = order_from(order.to_dict())
  whole = order.windows(0, 2500)
  assert np.array_equal(again.windows(0, 2500), whole)
  assert np.array_equal(order.windows(777, 1444), whole[777:1444])


def test_a_source_of_weight_zero_is_never_read():
  order = plan_mixture(GROUPS, (0, 1, 1), 8, num_windows=870)
  assert set(owner(order.windows(0, 2000)).tolist()) == {1, 2}


@pytest.mark.parametrize(
  "weights, arguments, words",
  [
    ((1, 1), {}, "for 3 sources"),
    ((0, 0, 0), {}, "not all of them 0"),
    ((1, -1, 1), {}, "at least 0"),
    ((8, 1, 1), {"num_unique": 100}, "source 0 has 40 windows, its share 0.800 .* is 80"),
    ((1, 1, 1), {"num_rows": 1000, "max_epochs": 4}, "source 0 would be read 8.35 times"),
  ],
)
def test_a_mixture_that_cannot_keep_its_promise_is_refused(weights, arguments, words):
  with pytest.raises(UserError, match=words):
    plan_mixture(GROUPS, weights, 0, num_windows=870, **arguments)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mixture")
  sources = [
    Source(write_jsonl(folder / f"{n}.jsonl", records(30 + 9 * n, seed=n))) for n in range(3)
  ]
  return prepare(sources, store=str(folder / "s"), held_out="hash:0.2").train


@pytest.mark.parametrize("seq_len", [7, 24, 61])
def test_windows_belong_to_the_source_of_their_first_target(train, seq_len):
  starts, origin = train.document_starts, train.documents.origin
  groups = groups_of(train, seq_len)
  found = [number for number, (_, count) in enumerate(groups) for _ in range(count)]
  expected = []
  for window in range(train.num_windows(seq_len)):
    place = window * seq_len + 1
    document = max(i for i in range(train.num_documents) if starts[i] <= place)
    expected.append(int(origin[document]))
  assert found == expected
  assert [first for first, _ in groups] == [expected.index(n) for n in range(3)]


def test_a_loader_mixes_the_sources_of_a_store(train):
  groups = groups_of(train, 24)
  loader = Loader(train, 10, 24, seed=3, weights=(2, 1, 1), prefetch=0)
  batches = iter(loader)
  windows = np.concatenate([next(batches)["window"] for _ in range(100)])
  shares = [np.sum((windows >= first) & (windows < first + count)) for first, count in groups]
  assert shares == [500, 250, 250]
  with pytest.raises(UserError, match="would be read"):
    Loader(train, 10, 24, weights=(2, 1, 1), max_epochs=1, num_tokens=24 * 3000)
