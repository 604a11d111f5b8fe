import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.data.corpus import Source
from moe_parity.data.ledger import Ledger
from moe_parity.data.loader import Loader
from moe_parity.data.mixture import Mixture, available_tokens, order_from, window_domain_ids
from moe_parity.data.prepare import prepare
from moe_parity.errors import UserError
from moe_parity.planning.domain_shares import Shares, plan_mixture, read_shares
from tests.helpers.small_store import records, write_jsonl

S = 24


def mixture(seed=5, counts=(1, 7, 2), unique=(35, 245, 70), runs=9):
  """Three groups whose windows lie scattered in `runs` runs of neighbors."""
  domain_ids = np.repeat(np.random.default_rng(runs).integers(0, 3, runs), 100).astype(np.uint8)
  domain_ids[:3] = (0, 1, 2)
  sizes = np.bincount(domain_ids, minlength=3).tolist()
  unique = [min(n, size) for n, size in zip(unique, sizes, strict=True)]
  return Mixture(domain_ids, Shares(("a", "b", "c"), tuple(counts)), unique, seed)


@given(runs=st.integers(3, 12), seed=st.integers(0, 2**40))
@settings(max_examples=25)
def test_each_group_is_read_by_its_share_in_epochs_of_its_own(runs, seed):
  order = mixture(seed, runs=runs)
  windows = order.windows(0, 1000)
  assert order.domain_ids[windows].tolist() == [order.shares.pattern[i % 10] for i in range(1000)]
  for number, unique in enumerate(order.unique_by_group):
    mine = windows[order.domain_ids[windows] == number]
    whole = mine[: mine.size // unique * unique].reshape(-1, unique)
    assert all(sorted(epoch) == sorted(whole[0].tolist()) for epoch in whole.tolist())
    assert len(set(mine.tolist())) == min(unique, mine.size)


@given(start=st.integers(0, 900), size=st.integers(1, 400))
@settings(max_examples=25)
def test_a_mixture_is_read_the_same_from_anywhere(start, size):
  order = mixture()
  again = order_from(order.to_dict(), order.domain_ids)
  whole = order.windows(0, start + size)
  assert np.array_equal(again.windows(start, start + size), whole[start:])


def test_a_smaller_budget_of_a_group_is_a_prefix_of_a_larger_one():
  small, large = (mixture(counts=(1, 1, 1), unique=(n, n, n)) for n in (20, 60))
  assert np.array_equal(small.windows(0, 60), large.windows(0, 60))
  assert set(small.windows(0, 600)) < set(large.windows(0, 600))


def test_a_group_of_share_zero_is_never_read_and_may_be_empty():
  domain_ids = np.repeat(np.array([0, 2], np.uint8), 50)
  order = Mixture(domain_ids, Shares(("a", "b", "c"), (3, 0, 1)), (30, 0, 10), 1)
  assert set(domain_ids[order.windows(0, 400)]) == {0, 2}


def test_a_plan_that_the_store_cannot_feed_is_refused():
  domain_ids = np.repeat(np.array([0, 1], np.uint8), 50)
  with pytest.raises(UserError, match="51 unique windows of 'b' do not fit the 50 there are"):
    Mixture(domain_ids, Shares(("a", "b"), (1, 1)), (30, 51), 1)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  """Documents of two sources; the first holds two domains that alternate."""
  folder = tmp_path_factory.mktemp("mixture")
  first = write_jsonl(folder / "x.jsonl", records(60, seed=1, domains=("prose", "code")))
  second = write_jsonl(folder / "y.jsonl", records(30, seed=2, domains=("math",)))
  return prepare(
    [Source(first), Source(second)], store=str(folder / "s"), held_out="hash:0.2"
  ).train


@pytest.mark.parametrize("seq_len", [7, 24, 61])
def test_windows_belong_to_the_domain_of_their_first_target(train, seq_len):
  names = ("math", "code", "prose")
  found = window_domain_ids(train, seq_len, names)
  owner = np.repeat(train.documents.domain, train.documents.num_tokens)
  for window, label in enumerate(found):
    assert names[label] == train.documents.domains[owner[window * seq_len + 1]]
  assert len(found) == train.num_windows(seq_len)
  tokens = available_tokens(train, seq_len, names)
  assert [tokens[name] // seq_len for name in names] == np.bincount(found).tolist()


@pytest.mark.parametrize("names", [("math", "code"), ("math", "code", "prose", "poems")])
def test_weights_must_name_every_domain_and_no_other(train, names):
  with pytest.raises(UserError, match="the store has the domains .*: name each"):
    window_domain_ids(train, S, names)


@pytest.mark.parametrize("weights", ["prose=2,code=1,math=1", "math=5,prose=3,code=0"])
def test_what_a_run_reads_of_each_domain_is_what_was_planned(train, weights):
  shares = read_shares(weights)
  available = available_tokens(train, S, shares.names)
  rows, unique = 5 * 60, 240
  planned = plan_mixture("arm", "strict", shares, rows * S, unique * S, S, available, 20)
  loader = Loader(train, 5, S, seed=3, mixture=planned, num_tokens=rows * S, prefetch=0)
  ledger = Ledger.for_loader(loader)
  for row in range(0, rows, 5):
    ledger.update(loader.batch(row)["window"])
  found = ledger.by_domain()
  for name, entry in planned.items():
    assert found[name] == {k: pytest.approx(entry[k]) for k in found[name]}
  assert ledger.num_unique_tokens == loader.num_unique_tokens
  assert any(e["num_unique_tokens"] == available[name] for name, e in planned.items()), available
