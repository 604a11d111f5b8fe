"""The campaign in short, and that it can fail: a judge that calls everything good finds nothing."""

import json
import random
import signal
import subprocess

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign.forks import Forks
from tests.campaign.hostile import MARK, foreign_markup, leaves, put
from tests.campaign.injector import Injector
from tests.campaign.journal import Journal
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

SHORT = {"damage": 14, "resumed": 5, "store": 2, "names": 3, "stores": 8, "studies": 8,
         "buckets": 20}  # fmt: skip


@pytest.mark.slow
def test_no_fault_of_a_short_campaign_goes_unnoticed(tmp_path, monkeypatch):
  """At e810754 flipped checkpoints were used, lost metrics certified and train_cross_entropy
  depended on kills."""
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  found = []
  with Injector(tmp_path, set(SHORT), recover=0.2) as injector:
    for option, count in SHORT.items():
      for i in range(count):
        found += injector.inject(option, random.Random(f"20 {option} {i}"), i)
  assert len(found) == sum(SHORT.values())
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
  journal = Journal(tmp_path / "injections.jsonl")
  journal.add(("damage", 3, 0), 2.0, injections)
  write(tmp_path / "t.json", journal)
  told = json.loads((tmp_path / "t.json").read_text())
  assert told["failures"][0]["outcome"] == LOST and told["seeds"] == [3]
  assert told["seconds"] == {"damage": 0.67}


def test_a_stopped_campaign_resumes_and_repeats_what_failed(tmp_path):
  journal = Journal(tmp_path / "j")
  for index, outcome in enumerate((NAMED, WRONG)):
    one = Injection("a study", "plan.json", "cut", outcome)
    journal.add(("damage", 1, index), 1.0, [one])
  again = Journal(tmp_path / "j")
  assert ("damage", 1, 0) in again and ("damage", 2, 0) not in again
  assert again.failed() == [("damage", 1, 1)]
  again.add(("damage", 1, 1), 1.0, [Injection("a study", "plan.json", "cut", NAMED)])
  assert Journal(tmp_path / "j").failed() == [] and len(again.injections()) == 2


def test_the_kinds_of_a_campaign_keep_pace():
  args = campaign._arguments(["--others=0", "--damage=6", "--kills=2", "--seed=4"])
  keys = campaign.order(args)
  assert [name for name, _, _ in keys] == [
    "damage", "damage", "kills", "damage", "damage", "damage", "kills", "damage"
  ]  # fmt: skip
  assert keys[0] == ("damage", 4, 0)


def test_a_name_is_put_where_a_string_or_a_key_was():
  value = {"a": [{"name": "x"}], "files": {"b": 1}}
  places = sorted(leaves(value), key=str)
  assert (("a", 0, "name"), False) in places and (("files", "b"), True) in places
  put(value, ("a", 0, "name"), False, "../x")
  put(value, ("files", "b"), True, "y")
  assert value == {"a": [{"name": "../x"}], "files": {"y": 1}}


@pytest.mark.parametrize(
  "page, is_foreign",
  [
    (f"<script>own()</script><p>{MARK}", True),
    ("<script>own()</script><b onclick='x()'>", True),
    ("<script>own()</script><script>alert(1)</script>", True),
    ("<script>own()</script><b title='x y'>&lt;img src=x onerror=alert(1)&gt;</b>", False),
  ],
)
def test_markup_that_a_name_brought_is_seen(page, is_foreign):
  assert bool(foreign_markup(page)) == is_foreign


@pytest.mark.slow
def test_a_forked_command_is_a_process_that_signals_end(tmp_path):
  forks = Forks(tmp_path / "cache", tmp_path / "output")
  try:
    failing, shown = forks.start("report", str(tmp_path / "none")), forks.start("--help")
    killed = forks.start("plan", "--config=configs/demo.py")
    with pytest.raises(subprocess.TimeoutExpired):  # as Popen; it is still there
      killed.communicate(0)
    assert killed.send_signal(signal.SIGKILL)
    assert "error: " in failing.communicate(60)[0] and failing.returncode == 2
    assert "moe-parity demo" in shown.communicate(60)[0] and shown.returncode == 0
    killed.communicate(60)
    assert killed.returncode == -signal.SIGKILL and not killed.send_signal(signal.SIGTERM)
  finally:
    forks.close()
