import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity import config
from moe_parity.errors import UserError
from moe_parity.planning.domain_shares import LONGEST_CYCLE, Shares, plan_mixture, read_shares
from moe_parity.planning.plan import make_plan

ROOT = pathlib.Path(__file__).resolve().parent.parent

counts = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda found: sum(found) > 0)


def shares_of(found):
  return Shares(tuple(f"d{i}" for i in range(len(found))), tuple(found))


@given(found=counts)
@settings(max_examples=60)
def test_a_cycle_has_domains_by_weight_and_every_stretch_nearly(found):
  shares = shares_of(found)
  assert [shares.pattern.count(i) for i in range(len(found))] == found
  total, m = sum(found), sum(count > 0 for count in found)
  so_far = [0] * len(found)
  for place, number in enumerate(shares.pattern, 1):
    so_far[number] += 1
    for count, here in zip(found, so_far, strict=True):
      assert abs(here - place * count / total) <= (1 + count / total * m) / 2 + 1e-9


@given(found=counts, num_rows=st.integers(0, 500))
@settings(max_examples=60)
def test_rows_are_those_of_walking_along_the_pattern(found, num_rows):
  shares = shares_of(found)
  walked = [shares.pattern[i % len(shares.pattern)] for i in range(num_rows)]
  assert shares.rows(num_rows) == [walked.count(i) for i in range(len(found))]


@pytest.mark.parametrize(
  "text, expected",
  [
    ("prose=2,code=1", {"prose": 2, "code": 1}),
    ("a=0.5, b=0.3,c=0.2", {"a": 5, "b": 3, "c": 2}),
    ("a=1/3,b=2/3", {"a": 1, "b": 2}),
    ("x=y=4,z=0", {"x=y": 1, "z": 0}),
  ],
)
def test_weights_become_the_fewest_whole_rows_in_proportion(text, expected):
  shares = read_shares(text)
  assert dict(zip(shares.names, shares.counts, strict=True)) == expected
  assert read_shares("") is None


@pytest.mark.parametrize(
  "text, words",
  [
    ("prose", "'prose' is not <name>=<weight"),
    ("a=1,a=2", "'a=2' is not"),
    ("a=-1,b=1", "'a=-1' is not"),
    ("a=nan,b=1", "'a=nan' is not"),
    ("a=0,b=0", "are all 0"),
    ("a=0.33333,b=0.66667", f"every 100,000 rows, over {LONGEST_CYCLE:,}"),
  ],
)
def test_weights_that_name_no_shares_are_refused(text, words):
  with pytest.raises(UserError, match=words):
    read_shares(text)


def planned(num_tokens, unique, available=None, max_epochs=0, reuse="strict", weights="a=3,b=1"):
  shares = read_shares(weights)
  return plan_mixture("moe", reuse, shares, num_tokens, unique, 8, available, max_epochs)


def test_domains_that_hold_their_share_repeat_as_the_whole_does():
  found = planned(8 * 400, 8 * 160, {"a": 8 * 120, "b": 8 * 40})
  assert found["a"] == {
    "share": 3, "num_tokens": 8 * 300, "num_unique_tokens": 8 * 120, "epochs": 2.5,
  }  # fmt: skip
  assert found["b"]["epochs"] == 2.5 and found["b"]["num_unique_tokens"] == 8 * 40


def test_a_scarce_domain_is_read_more_often_up_to_the_bound():
  scarce = {"a": 8 * 500, "b": 8 * 20}
  found = planned(8 * 400, 8 * 160, scarce, max_epochs=5)
  assert found["a"]["epochs"] == 2.5 and found["b"]["epochs"] == 5.0
  assert found["b"]["num_unique_tokens"] == 8 * 20
  with pytest.raises(UserError, match="arm 'moe' would read 'b' 5.00 times, data.max_epochs=4.9"):
    planned(8 * 400, 8 * 160, scarce, max_epochs=4.9)


@pytest.mark.parametrize(
  "arguments, words",
  [
    ({"available": {"a": 960, "b": 312}}, "'b' holds 312 tokens, its part of 1,280 .* is 320;"),
    ({"available": {"a": 960, "b": 312}, "max_epochs": 9, "reuse": "unique"}, "more text$"),
    ({"available": {"a": 960, "b": 0}, "max_epochs": 9}, "'b' has no whole window of 8 tokens"),
    ({"max_epochs": 2}, "would read 'a' 2.50 times, data.max_epochs=2;"),
  ],
)  # fmt: skip
def test_a_mixture_that_cannot_keep_its_promise_is_refused(arguments, words):
  with pytest.raises(UserError, match=words):
    planned(8 * 400, 8 * 160, **arguments)


def test_a_domain_of_weight_zero_needs_no_text():
  found = planned(80, 80, {"a": 80, "b": 0}, weights="a=1,b=0")
  assert found["b"] == {"share": 0, "num_tokens": 0, "num_unique_tokens": 0, "epochs": 0.0}


@given(found=counts, small=st.integers(0, 300), more=st.integers(0, 300))
@settings(max_examples=40)
def test_unique_rows_are_read_once_and_grow_with_the_budget(found, small, more):
  shares = shares_of(found)
  first = plan_mixture("a", "unique", shares, 8 * small, 8 * small, 8, None, 0)
  assert all(entry["epochs"] in (0.0, 1.0) for entry in first.values())
  assert sum(entry["num_unique_tokens"] for entry in first.values()) == 8 * small
  larger = plan_mixture("a", "unique", shares, 8 * (small + more), 8 * (small + more), 8, None, 0)
  for name in shares.names:
    assert first[name]["num_unique_tokens"] <= larger[name]["num_unique_tokens"]


def demo_plan(*overrides, **held):
  loaded = config.load(str(ROOT / "configs" / "demo.py:tiny"), overrides)
  return make_plan(loaded, available_by_domain=held or None)


def test_a_scarce_domain_shrinks_all_arms_data_and_is_named():
  weights = "--config.data.weights=prose=3,code=1"
  enough = demo_plan(weights)
  scarce = demo_plan(weights, "--config.data.max_epochs=9", prose=10**6, code=40 * 64)
  asked = enough.arms[0].mixture["code"]["num_unique_tokens"]
  assert asked > 40 * 64
  missing = asked - 40 * 64
  for before, after in zip(enough.arms, scarce.arms, strict=True):
    assert after.mixture["code"]["num_unique_tokens"] == 40 * 64
    assert after.num_unique_tokens == before.num_unique_tokens - missing
    assert after.epochs == after.num_tokens / after.num_unique_tokens
    assert after.num_tokens == before.num_tokens
  assert scarce.budget["equal_data"]
  assert scarce.budget["num_unique_tokens"] == scarce.arms[0].num_unique_tokens
  (note,) = (note for note in scarce.notes if "less than its share" in note)
  assert note.startswith("'code' holds less than its share: 2,560 unique tokens, read")
  assert not [note for note in enough.notes if "less than its share" in note]
  rows = scarce.mixture_rows()
  assert [row["share %"] for row in rows[:2]] == pytest.approx([75, 25], abs=0.5)


def test_without_the_bound_the_same_scarcity_is_refused():
  with pytest.raises(UserError, match="arm 'dense': 'code' holds 2,560 tokens, its part of"):
    demo_plan("--config.data.weights=prose=3,code=1", prose=10**6, code=40 * 64)
