"""Tuned learning rates on made-up training: who tries what, what is taken, what is said of it."""

import dataclasses
import json
import math
import pathlib

import pytest

from moe_parity.errors import NotFiniteError, UserError
from moe_parity.files import write_json
from moe_parity.report.page import write_report
from moe_parity.study.analysis import compare
from moe_parity.study.certificate import certify_study
from moe_parity.study.comparisons import Results, plan_comparisons
from moe_parity.study.reading import read_study
from moe_parity.study.tuning import best_rate
from moe_parity.study.workers import leaving
from moe_parity.study.workers.runner import run_study
from tests.helpers import fake_training

GRID = (0.002, 0.004, 0.008)


def config(**study):
  made = fake_training.config(rates=(0.2, 0.4)).copy_and_resolve_references()
  made.unlock()
  for name in ("dense", "moe_20", "moe_40"):
    made.arms[name].seeds = (0, 1)
  made.arms.dense_small = made.arms.dense.copy_and_resolve_references()
  made.arms.dense_small.params_multiple = 0.5
  made.arms.dense_small.seeds = (0, 1)
  made.arms.dense_active = made.arms.dense.copy_and_resolve_references()
  made.arms.dense_active.update({"active_of": "moe_20", "d_head": 0, "seeds": (0, 1)})
  made.study.learning_rate_grid, made.study.tuning_seeds = GRID, (9,)
  for name, value in study.items():
    made.study[name] = value
  return made.lock()


def truth(best, diverging=()):
  """Each arm is lowest at its rate of `best` (0.004 if it is not there); off it, worse by far."""

  def bpc(arm):
    if (arm.tunes, arm.peak_learning_rate) in diverging:
      raise NotFiniteError("the loss of step 3 is nan")
    off = abs(math.log(arm.peak_learning_rate / best.get(arm.tunes or arm.name, 0.004)))
    return 2.0 + 0.1 * arm.activation_rate + off + 0.001 * arm.seed

  return bpc


def run(folder, made, bpc, only=()):
  study = fake_training.open_study(folder, made)
  run_study(study, only=only, log=lambda line: None, actions=fake_training.actions(truth=bpc))
  return study


def rates(study):
  (comparison,) = study.comparisons
  return {arm.name: arm.peak_learning_rate for arm in comparison.plan.arms if not arm.tunes}


def test_every_arm_and_control_trains_at_its_own_best_rate(tmp_path):
  best = {"dense": 0.004, "moe_20": 0.008, "dense_active": 0.004, "dense_small": 0.002}
  study = run(tmp_path, config(grid_extensions=0), truth(best))
  assert rates(study) == {"moe_40": 0.004, **best}
  ran = fake_training.ran(tmp_path)
  tries = [name for name, seed in ran if seed == 9]
  assert len(tries) == len(set(tries)) == 5 * 3
  for at, (name, seed) in enumerate(ran):
    assert seed == 9 or set(tries_of(name)) <= set(ran[:at])
  tokens = {arm.tunes or arm.name: set() for arm in study.comparisons[0].plan.arms}
  for arm in study.comparisons[0].plan.arms:
    tokens[arm.tunes or arm.name].add((arm.num_tokens, arm.num_params))
  assert {len(of) for of in tokens.values()} == {1}


def tries_of(name):
  return [(f"{name}_lr0p00{n}", 9) for n in (2, 4, 8)]


def trained(name):
  return tries_of(name) + [(name, 0), (name, 1)]


def test_an_arm_named_alone_is_tried_then_trained(tmp_path):
  """It waited for the tries of all others, and nobody was there to do them."""
  made, bpc = config(grid_extensions=0), truth({"dense": 0.002, "moe_20": 0.008})
  study = run(tmp_path, made, bpc, only=["dense"])
  assert fake_training.ran(tmp_path) == trained("dense")
  assert rates(study) == {"dense": 0.002}
  asked, to_come = leaving.asked_for(study, study.write(), ["dense"], [])
  assert [arm.status for arm in asked] == ["done"] * 5 and to_come == []
  study = run(tmp_path, made, bpc, only=["dense_active"])  # it has the shape of moe_20's tries
  assert fake_training.ran(tmp_path)[5:] == trained("dense_active")
  others = ["moe_20", "moe_40", "dense_small"]
  study = run(tmp_path, made, bpc, only=others)
  assert set(fake_training.ran(tmp_path)[10:]) == {row for name in others for row in trained(name)}
  assert rates(study)["moe_20"] == 0.008 and certify_study(tmp_path)["passed"]
  with pytest.raises(UserError, match="--only=dens: the plan's arms are dense, dense_active, "):
    run(tmp_path, made, bpc, only=["dens"])


def test_an_arm_whose_grid_may_grow_says_what_it_waits_for(tmp_path, monkeypatch):
  monkeypatch.setattr(leaving, "POLL_SECONDS", 0)
  made, bpc = config(grid_extensions=1), truth({})
  study = run(tmp_path, made, bpc, only=["dense"])
  assert fake_training.ran(tmp_path) == tries_of("dense")
  asked, to_come = leaving.asked_for(study, study.write(), ["dense"], [])
  assert [arm.status for arm in asked] == ["done"] * 3 and to_come == ["dense"]
  others = "dense_active,dense_small,moe_20,moe_40"
  words, is_alone = leaving.awaiting(study, to_come)
  assert is_alone and leaving.awaiting(study, []) == ("", False)
  assert f"12 tries of {others.replace(',', ', ')} are left, which no worker is at" in words
  assert f"--only=dense,{others}, or with --config.study.grid_extensions=0" in words
  lease = study.leases.acquire("runs/moe_20_lr0p002-s9")  # as another worker would
  words, is_alone = leaving.awaiting(study, to_come)
  assert not is_alone and "are left to other workers; run the same command again" in words
  lease.release("stopped")
  begun = compare.analyze(tmp_path)["certificate"]
  assert begun["passed"] is None and begun["missing"][0] == "the study"  # nothing is unequal yet
  check = {"name": "one token stream", "planned": 1, "measured": 2, "difference_pct": None}
  value = {"passed": False, "checks": [check | {"passed": False}]}
  write_json(tmp_path / "certificate.json", value, seal=True)
  assert compare.analyze(tmp_path)["certificate"]["failures"][0].startswith("the study: one token ")
  run(tmp_path, config(grid_extensions=0), bpc, only=["dense"])  # as the words advise
  assert fake_training.ran(tmp_path) == trained("dense")
  run(tmp_path, made, bpc, only=["dense", *others.split(",")])  # and their other advice
  assert len(fake_training.ran(tmp_path)) == 25


def test_a_best_at_an_end_grows_the_grid_for_all_arms(tmp_path):
  study = run(tmp_path, config(grid_extensions=1), truth({"moe_20": 0.03, "dense": 0.0005}))
  tried = {}
  for arm in study.comparisons[0].plan.arms:
    if arm.tunes:
      tried.setdefault(arm.tunes, []).append(arm.peak_learning_rate)
  assert len(tried) == 5
  assert all(sorted(of) == [0.001, 0.002, 0.004, 0.008, 0.016] for of in tried.values())
  found = compare.analyze(tmp_path)
  assert {row["name"]: row["edge"] for row in found["tuning"]["arms"] if row["edge"]} == {
    "moe_20": "highest", "dense": "lowest",
  }  # fmt: skip
  assert any("moe_20 at the highest, 0.016" in line for line in found["verdict"]["against"])


def test_a_staged_methods_later_controls_try_the_same_grid(tmp_path):
  made = config(seeds=(0, 1)).copy_and_resolve_references()
  made.unlock()
  made.arms.moe = made.arms.moe_20
  for name in ("moe_20", "moe_40", "dense_small", "dense_active"):
    del made.arms[name]
  for arm in made.arms.values():
    arm.seeds = ()
  made.study.method, made.study.activation_rates = "activation_rate", (0.2, 0.3, 0.4)
  made.study.small_multiples = (0.5,)
  study = run(tmp_path, made.lock(), truth({"moe_40": 0.008, "dense_small_0p5": 0.0001}))
  tries = {}
  for arm in study.comparisons[0].plan.arms:
    if arm.tunes:
      tries.setdefault(arm.tunes, []).append(arm.peak_learning_rate)
  assert set(tries) == {
    "dense", "dense_2c", "moe_20", "moe_30", "moe_40", "dense_active", "dense_small_0p5",
  }  # fmt: skip
  assert {tuple(sorted(of)) for of in tries.values()} == {(0.002, 0.004, 0.008, 0.016)}
  assert rates(study)["dense_small_0p5"] == 0.002
  assert study.summarize()["sweeps"][0]["not_done"] == []


def test_a_try_that_diverged_counts_and_is_not_taken(tmp_path):
  diverging = {("moe_20", 0.004), ("moe_20", 0.008)}
  study = run(tmp_path, config(grid_extensions=0), truth({}, diverging))
  assert rates(study)["moe_20"] == 0.002
  info = json.loads((tmp_path / "study.json").read_text())
  kinds = {arm["name"]: arm["failure"] for arm in info["arms"] if arm["status"] == "failed"}
  assert kinds == dict.fromkeys(("moe_20_lr0p004", "moe_20_lr0p008"), NotFiniteError.__name__)
  assert {arm["failure"] for arm in info["arms"] if arm["status"] == "done"} == {""}
  for arm in info["arms"]:
    arm["error"] = arm["error"] and "in other words"
  write_json(tmp_path / "study.json", info, seal=True)
  found = compare.analyze(tmp_path)
  assert found["not_done"] == [] and certify_study(tmp_path)["passed"]
  (row,) = (row for row in found["tuning"]["arms"] if row["name"] == "moe_20")
  assert [t["bpc"] for t in row["tries"]][1:] == [None, None] and row["num_tries"] == 3


@pytest.mark.parametrize(
  "failure, error, diverged",
  [
    ("NotFiniteError", "its loss became infinite", True),  # whatever the words are
    ("OSError", "a note: the loss of step 3 is nan", False),
    ("", "arm 'a': the gradient norm of step 30 is -inf; lower it", True),  # an earlier version
    ("", "no space left", False),
  ],
)
def test_a_run_diverged_by_its_kind_of_failure(tmp_path, failure, error, diverged):
  entry = {"name": "a", "seed": 0, "status": "failed", "error": error}
  entry |= {"failure": failure} if failure else {}
  write_json(tmp_path / "study.json", {"name": "s", "config": {}, "arms": [entry]}, seal=True)
  (record,) = read_study(tmp_path).runs
  assert record.diverged == diverged
  assert not dataclasses.replace(record, status="pending").diverged


def test_tries_take_no_part_in_what_is_compared(tmp_path):
  run(tmp_path, config(grid_extensions=0), truth({}))
  found = compare.analyze(tmp_path)
  assert {group["name"] for group in found["groups"]} == {
    "dense", "moe_20", "moe_40", "dense_small", "dense_active",
  }  # fmt: skip
  assert found["noise"]["max_seeds"] == 2 and len(found["resources"]["rows"]) == 5
  assert "not tuned for them" not in " ".join(found["verdict"]["sentences"])
  assert any("own best of the same learning rates" in s for s in found["verdict"]["sentences"])


def test_the_page_shows_every_rate_and_its_score(tmp_path):
  run(tmp_path, config(grid_extensions=0), truth({}))
  page = write_report(tmp_path).read_text()
  table = (tmp_path / "report" / "learning_rates.csv").read_text().splitlines()
  assert "Learning rates" in page and len(table) == 6
  assert 'class="verdict open"' in page  # six documents count as few, whoever leads


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_a_try_that_is_not_whole_is_not_done(tmp_path, damage):
  """A try cut short ended the page of all arms; one that was lost was said to have diverged."""
  run(tmp_path, config(grid_extensions=0), truth({}))
  assert compare.analyze(tmp_path)["not_done"] == []
  path = tmp_path / "runs" / "dense_lr0p008-s9" / "result.json"
  if damage == "cut":
    path.write_bytes(path.read_bytes()[:99])
  else:
    path.unlink()
    info = json.loads((tmp_path / "study.json").read_text())
    for arm in info["arms"]:
      if arm["name"] == "dense_lr0p008":
        arm.update(status="failed", error="OSError: no space left")
    write_json(tmp_path / "study.json", info, seal=True)
  found = compare.analyze(tmp_path)
  assert [row["name"] for row in found["not_done"]] == ["dense_lr0p008"]
  assert not found["verdict"]["conclusive"]
  assert certify_study(tmp_path)["passed"] == (damage == "lost")


@pytest.mark.parametrize(
  "damage", ["fewer tries", "another rate", "fewer tokens", "rate of its own", "other warm-up"]
)
def test_unequal_effort_fails_the_certificate_and_is_named(tmp_path, damage):
  run(tmp_path, config(grid_extensions=0), truth({}))
  assert certify_study(tmp_path)["passed"]
  path = tmp_path / "plan.json"
  plan = json.loads(path.read_text())
  tries = [arm for arm in plan["arms"] if arm["tunes"] == "dense_small"]
  if damage == "fewer tries":
    plan["arms"].remove(tries[0])
  elif damage == "another rate":
    result = tmp_path / "runs" / f"{tries[0]['name']}-s9" / "result.json"
    result.write_text(result.read_text().replace('"bpc": 2.', '"bpc": 1.'))
  elif damage == "rate of its own":
    tries[0]["peak_learning_rate"] = 0.003
  elif damage == "other warm-up":
    tries[0]["warmup_steps"] += 1
  else:
    tries[0]["num_tokens"] //= 2
  del plan["content_sha256"]  # a forger's plan: what contradicts it must fail
  path.write_text(json.dumps(plan))
  failed = [check["name"] for check in certify_study(tmp_path)["checks"] if not check["passed"]]
  wanted = {
    "fewer tries": "dense_small: tries of its learning rate",
    "another rate": "dense_small: learning rate of its best try",
    "fewer tokens": "dense_small: tokens of each try",
    "rate of its own": "dense_small: learning rates tried",
    "other warm-up": "dense_small: shape and steps of each try",
  }[damage]
  assert wanted in failed


@pytest.mark.parametrize(
  "study, words",
  [
    (dict(learning_rate_grid=(0.004,)), "at least two rates"),
    (dict(learning_rate_grid=(0.008, 0.004)), "rising order"),
    (dict(tuning_seeds=(1,)), "keeps for trying"),
    (dict(tuning_seeds=()), "tuning_seeds"),
    (dict(grid_extensions=-1), "below 0"),
    (dict(learning_rates=(0.5,)), "leave them out"),
  ],
)
def test_a_grid_against_a_rule_is_refused_before_anything(study, words):
  with pytest.raises(UserError, match=words):
    plan_comparisons(config(**study), Results(None))


def test_the_lower_rate_of_two_equally_good_ones_is_taken():
  assert best_rate((0.1, 0.2, 0.3), (2.0, 1.0, 1.0)) == 0.2
  assert best_rate((0.1, 0.2), (1.0, None)) is None
  assert best_rate((0.1, 0.2), (math.inf, math.inf)) == 0.1


def test_a_plan_on_paper_says_what_tries_will_cost(capsys):
  from moe_parity import cli

  root = pathlib.Path(__file__).parents[1]
  assert cli.main(["plan", f"--config={root}/configs/demo.py"]) == 0
  assert "first 21 runs more" in " ".join(capsys.readouterr().out.split())


def test_one_dense_arm_sets_c_before_and_after_tuning(tmp_path):
  # "dense_1_lr0p002" sorts before "dense_lr0p002", and "dense" before "dense_1".
  made = config().copy_and_resolve_references()
  made.unlock()
  made.arms.dense_1 = made.arms.dense.copy_and_resolve_references()
  made.arms.dense_1.update({"num_layers": 2, "d_model": 64, "multiple_of": 1})
  (tries,) = plan_comparisons(made, Results(None))
  study = run(tmp_path, made.lock(), truth({}))
  (comparison,) = study.comparisons
  assert comparison.plan.budget["train_flops"] == tries.plan.budget["train_flops"]
  assert {"dense", "dense_1", "moe_20"} < set(rates(study))
