import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.ledger import BudgetOverrun, Ledger, order_digest
from moe_parity.data.loader import Loader
from moe_parity.errors import UserError
from tests.helpers.small_store import small_store

S = 24


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  return small_store(tmp_path_factory.mktemp("ledger")).train


def consume(loader, steps, ledger=None):
  ledger = ledger or Ledger.for_loader(loader)
  for batch in itertools.islice(iter(loader), steps):
    ledger.update(batch["window"])
  return ledger


def test_counts_are_what_was_handed_out(train):
  loader = Loader(train, 6, S, num_unique_tokens=20 * S, seed=5, prefetch=0)
  seen = np.concatenate([b["window"] for b in itertools.islice(iter(loader), 11)]).tolist()
  summary = consume(loader, 11).summary()
  assert summary["num_tokens"] == 66 * S
  assert summary["num_unique_tokens"] == len(set(seen)) * S == 20 * S
  assert (summary["min_epochs"], summary["max_epochs"], summary["epochs"]) == (3, 4, 3.3)
  assert summary["sha256"] == train.fingerprint


@given(
  windows=st.lists(st.integers(0, 30), min_size=1, max_size=40),
  cuts=st.lists(st.integers(0, 40), max_size=5),
)
@settings(max_examples=60)
def test_the_ledger_does_not_depend_on_batch_size(windows, cuts):
  whole, pieces = Ledger(31, S), Ledger(31, S)
  whole.update(np.array(windows))
  edges = [0, *sorted(min(c, len(windows)) for c in cuts), len(windows)]
  for a, b in itertools.pairwise(edges):
    pieces.update(np.array(windows[a:b], np.int64))
  assert pieces.summary() == whole.summary()
  assert pieces.counts.tolist() == np.bincount(windows, minlength=31).tolist()


@given(windows=st.lists(st.integers(0, 9), min_size=2, max_size=12), data=st.data())
@settings(max_examples=60)
def test_another_order_has_another_digest(windows, data):
  other = data.draw(st.permutations(windows))
  same = order_digest(np.array(windows)) == order_digest(np.array(other))
  assert same == (windows == other)


@given(
  hosts=st.sampled_from([2, 3]),
  hosts_after=st.sampled_from([1, 2, 6]),
  stops=st.lists(st.integers(0, 9), max_size=3),
)
@settings(max_examples=15)
def test_hosts_in_any_number_collect_the_ledger_of_one(train, hosts, hosts_after, stops):
  """Hosts run one after another here, so what each is to gather is gathered beforehand."""
  one = consume(Loader(train, 6, S, seed=1, prefetch=0), 9)
  state = Ledger.for_loader(Loader(train, 6, S, seed=1)).state()
  edges = [0, *sorted(stops), 9]
  for part, (first, last) in enumerate(itertools.pairwise(edges)):
    count = hosts if part % 2 == 0 else hosts_after
    parts = [
      Loader(train, 6, S, seed=1, start_row=6 * first, host_index=h, num_hosts=count, prefetch=0)
      for h in range(count)
    ]
    of_all = np.array(
      [[b["window"] for b in itertools.islice(iter(loader), last - first)] for loader in parts]
    )
    ledgers = []
    for host, loader in enumerate(parts):
      ledgers.append(Ledger.for_loader(loader))
      ledgers[-1].restore(state)
      consume(loader, last - first, ledgers[-1])

      def gather(mine, host=host, of_all=of_all):
        assert np.array_equal(mine, of_all[host])
        return of_all

      ledgers[-1].collect(gather)
    assert len({json.dumps(ledger.summary()) for ledger in ledgers}) == 1
    state = ledgers[0].state()
  assert ledgers[0].summary() == one.summary()
  assert ledgers[0].counts.tolist() == one.counts.tolist()


def test_a_ledger_that_was_not_collected_is_not_saved(train):
  ledger = consume(Loader(train, 6, S, host_index=1, num_hosts=2), 3)
  with pytest.raises(AssertionError, match="rows of other hosts are missing"):
    ledger.state()


def test_a_step_over_the_planned_tokens_is_not_recorded(train):
  ledger = Ledger.for_loader(Loader(train, 4, S, num_tokens=10 * S))
  ledger.update(np.arange(4)), ledger.update(np.arange(4))
  before = ledger.summary()
  with pytest.raises(BudgetOverrun, match=f"make {12 * S} tokens seen, the plan allows {10 * S}"):
    ledger.update(np.arange(4))
  assert ledger.summary() == before


def test_windows_beyond_the_unique_budget_are_refused(train):
  ledger = Ledger.for_loader(Loader(train, 4, S, num_unique_tokens=5 * S))
  ledger.update(np.array([7, 8, 9, 7]))
  resumed = Ledger.for_loader(Loader(train, 4, S, num_unique_tokens=5 * S))
  resumed.restore(ledger.state())
  for here in (ledger, resumed):
    before = here.summary()
    with pytest.raises(BudgetOverrun, match=f"{6 * S} unique tokens seen, the plan allows {5 * S}"):
      here.update(np.array([1, 2, 3, 3]))
    assert here.summary() == before
    here.update(np.array([1, 2, 2, 9]))


def test_a_ledger_goes_through_a_file_and_continues(train, tmp_path):
  whole = consume(Loader(train, 4, S, seed=7), 12)
  consume(Loader(train, 4, S, seed=7), 5).save(tmp_path / "ledger.npz")
  loaded = Ledger.load(tmp_path / "ledger.npz")
  assert loaded.row == 20
  resumed = consume(Loader(train, 4, S, seed=7, start_row=loaded.row), 7, loaded)
  assert resumed.summary() == whole.summary()


def test_a_ledger_goes_through_checkpoint_arrays(train):
  saved = consume(Loader(train, 4, S, seed=7), 5)
  fresh = Ledger.for_loader(Loader(train, 4, S, seed=7))
  fresh.restore({name: np.array(value) for name, value in saved.state().items()})
  assert fresh.summary() == saved.summary()


def test_saved_arrays_do_not_see_later_updates(train):
  ledger = consume(Loader(train, 4, S, seed=7), 5)
  state = ledger.state()
  ledger.update(np.array([0, 1, 2, 3]))
  assert state["counts"].sum() == state["row"] == 20


def test_ledgers_that_do_not_belong_together_are_refused(train, tmp_path):
  with pytest.raises(UserError, match="covers 3 windows"):
    Ledger.for_loader(Loader(train, 6, S)).restore(Ledger(3, S).state())
  (tmp_path / "ledger.npz").write_bytes(b"PK\x03\x04 not a ledger")
  with pytest.raises(UserError, match="is damaged"):
    Ledger.load(tmp_path / "ledger.npz")
  with pytest.raises(UserError, match="does not exist"):
    Ledger.load(tmp_path / "missing.npz")
