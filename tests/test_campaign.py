"""The campaign in short, and that it can fail: a judge that calls everything good finds nothing."""

import argparse
import json

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign.outcomes import (
  LOST,
  NAMED,
  SURVIVED,
  TRACEBACK,
  WRONG,
  Done,
  Injection,
  judge,
  table,
  worst,
  write,
)


@pytest.mark.slow
def test_no_fault_of_a_short_campaign_goes_unnoticed(tmp_path, monkeypatch):
  """At e810754 flipped checkpoints were used, lost metrics certified and train_cross_entropy
  depended on kills."""
  counts = dict.fromkeys(campaign.COUNTS, 0) | {"damage": 14, "resumed": 5, "store": 2, "names": 3}
  args = argparse.Namespace(seed=20, recover=0.2, **counts)
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  found = [one for injections in campaign.faults(args, tmp_path) for one in injections]
  assert len(found) == sum(counts.values())
  assert [one for one in found if one.outcome not in (SURVIVED, NAMED)] == []
  assert {one.outcome for one in found} == {SURVIVED, NAMED}


@pytest.mark.parametrize(
  "done, is_same, expected",
  [
    (Done(0, "all: 4.57"), True, SURVIVED),
    (Done(0, "all: 4.57"), False, WRONG),
    (Done(0, "ledger.npz was\nchanged"), False, NAMED),
    (Done(2, "error: ledger.npz is damaged"), False, NAMED),
    (Done(2, "error: something is damaged"), False, TRACEBACK),
    (Done(1, "", "Traceback: KeyError"), True, TRACEBACK),
    (Done(0, "Traceback (most recent call last): in a thread"), True, TRACEBACK),
  ],
)
def test_an_outcome_is_good_only_where_it_is_whole_or_named(done, is_same, expected):
  assert judge(done, lambda: is_same, ["ledger.npz"])[0] == expected


def test_the_worst_outcome_counts_and_failures_are_listed(tmp_path):
  assert worst((SURVIVED, ""), (WRONG, "a"), (NAMED, "b")) == (WRONG, "a")
  injections = [Injection("runs", "plan.json", "cut", outcome) for outcome in (NAMED, NAMED, LOST)]
  row, whole = table(injections)
  assert (row["injected"], row[NAMED], row[LOST]) == (whole["injected"], 2, 1) == (3, 2, 1)
  write(tmp_path / "t.json", 3, injections)
  (failure,) = json.loads((tmp_path / "t.json").read_text())["failures"]
  assert failure["outcome"] == LOST
