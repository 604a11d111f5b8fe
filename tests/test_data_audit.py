import itertools
import json
import shutil

import numpy as np
import pytest

from moe_parity.data.audit import audit_run, compare_runs
from moe_parity.data.ledger import Ledger
from moe_parity.data.loader import Loader
from moe_parity.errors import UserError
from tests.helpers.small_store import small_store

S, B = 24, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  return small_store(tmp_path_factory.mktemp("audit"))


def run(folder, store, steps, unique=0, seed=1, skip=(), plan=None):
  folder.mkdir()
  loader = Loader(store.train, B, S, unique * S, seed, prefetch=0)
  ledger = Ledger.for_loader(loader)
  for step, batch in enumerate(itertools.islice(iter(loader), steps)):
    window = batch["window"].copy()
    if step in skip:
      window[0] = window[1]
    ledger.update(window)
  ledger.save(folder / "ledger.npz")
  if plan:
    (folder / "plan.json").write_text(json.dumps(plan))
  return folder


def test_tokens_of_each_domain_are_those_counted_one_by_one(tmp_path, store):
  found = audit_run(run(tmp_path / "a", store, 30, unique=50))
  ledger = Ledger.load(tmp_path / "a" / "ledger.npz")
  train = store.train
  owner = np.repeat(train.documents.domain, train.documents.num_tokens)
  for number, domain in enumerate(train.documents.domains):
    seen = unique = 0
    for window, count in enumerate(ledger.counts.tolist()):
      here = int(np.sum(owner[window * S + 1 : (window + 1) * S + 1] == number))
      seen += here * count
      unique += here * (count > 0)
    entry = found["by_domain"][domain]
    assert (entry["num_tokens"], entry["num_unique_tokens"]) == (seen, unique)
  for grouped in ("by_domain", "by_origin"):
    for field in ("num_tokens", "num_unique_tokens"):
      assert sum(entry[field] for entry in found[grouped].values()) == found[field]
  assert found["passed"] and found["num_tokens"] == 30 * B * S
  assert found["num_unique_tokens"] == 50 * S


def test_a_run_that_read_another_window_fails_its_audit(tmp_path, store):
  found = audit_run(run(tmp_path / "a", store, 10, skip=(7,)))
  failed = {check["name"] for check in found["checks"] if not check["passed"]}
  assert not found["passed"]
  assert failed >= {"windows in the order of the plan",
                    "windows read another number of times than planned"}  # fmt: skip


def test_a_run_is_held_to_its_plan(tmp_path, store):
  plan = {"num_tokens": 10 * B * S, "num_unique_tokens": 30 * S, "batch_sequences": B}
  assert audit_run(run(tmp_path / "a", store, 10, 30, plan=plan))["passed"]
  assert audit_run(run(tmp_path / "d", store, 11, 30, plan=plan))["passed"]  # within a step
  assert not audit_run(run(tmp_path / "b", store, 12, 30, plan=plan))["passed"]
  assert not audit_run(run(tmp_path / "c", store, 10, 31, plan=plan))["passed"]


def test_runs_with_one_seed_share_their_order_while_both_go(tmp_path, store):
  run(tmp_path / "a", store, 9, 20), run(tmp_path / "b", store, 14, 20)
  found = compare_runs(tmp_path / "a", tmp_path / "b")
  assert found["same_stream"] and found["same_order"] and found["same_windows"]
  assert found["rows_compared"] == 9 * B and found["windows_in_both"] == 20
  assert found["verdict"] == "the same windows, in the same order over the 36 rows that both read"


def test_nested_budgets_agree_until_the_smaller_is_used_up(tmp_path, store):
  run(tmp_path / "a", store, 9, 22), run(tmp_path / "b", store, 9, 36)
  found = compare_runs(tmp_path / "a", tmp_path / "b")
  assert not found["same_order"] and found["first_difference"] == 22
  assert found["windows_only_in_a"] == 0 and found["windows_only_in_b"] == 14


def test_runs_with_other_seeds_or_orders_are_told_apart(tmp_path, store):
  run(tmp_path / "a", store, 9, 20), run(tmp_path / "b", store, 9, 20, seed=2)
  found = compare_runs(tmp_path / "a", tmp_path / "b")
  assert found["same_stream"] and not found["same_order"] and not found["same_windows"]
  run(tmp_path / "c", store, 9, 20, skip=(3,))
  found = compare_runs(tmp_path / "a", tmp_path / "c")
  assert not found["same_order"] and "run b did not read" in found["verdict"]


def test_a_store_of_another_stream_is_refused(tmp_path, store):
  (tmp_path / "other").mkdir()
  other = small_store(tmp_path / "other", seed=5)
  run(tmp_path / "a", store, 3)
  with pytest.raises(UserError, match="give the store the run was trained on"):
    audit_run(tmp_path / "a", store=other.folder)
  run(tmp_path / "b", other, 3)
  assert compare_runs(tmp_path / "a", tmp_path / "b")["verdict"].startswith("the runs read diff")


@pytest.mark.parametrize("part", ["sha256", "order"])
def test_a_run_that_does_not_name_its_data_is_not_compared(tmp_path, store, part):
  run(tmp_path / "a", store, 3), run(tmp_path / "b", store, 3)
  ledger = Ledger.load(tmp_path / "b" / "ledger.npz")
  del ledger.data[part]
  ledger.save(tmp_path / "b" / "ledger.npz")
  with pytest.raises(UserError, match=f"b/ledger.npz does not state its {part}"):
    compare_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("mixture", [[1], {"prose": {}}, {"prose": {"num_tokens": "x"}}])
def test_a_plan_with_a_damaged_mixture_is_one_line(tmp_path, store, mixture):
  run(tmp_path / "a", store, 3, plan={"mixture": mixture})
  with pytest.raises(UserError, match="plan.json is damaged .mixture"):
    audit_run(tmp_path / "a")


def test_a_plan_may_leave_fields_null(tmp_path, store):
  plan = {"mixture": None, "num_tokens": 3 * B * S, "batch_sequences": None}
  assert audit_run(run(tmp_path / "a", store, 3, plan=plan))["passed"]


def test_a_store_that_moved_is_found_by_argument(tmp_path, store):
  run(tmp_path / "away", store, 3)
  ledger = Ledger.load(tmp_path / "away" / "ledger.npz")
  ledger.data["store"] = str(tmp_path / "gone")
  ledger.save(tmp_path / "away" / "ledger.npz")
  with pytest.raises(UserError, match="gone, which is not there; if it has moved, --store"):
    audit_run(tmp_path / "away")
  assert audit_run(tmp_path / "away", store=store.folder)["passed"]
  run(tmp_path / "a", store, 3)
  shutil.copytree(store.folder, tmp_path / "moved")
  assert audit_run(tmp_path / "a", store=tmp_path / "moved", verify=True)["passed"]
  with pytest.raises(UserError, match="ledger.npz does not exist"):
    audit_run(tmp_path)
