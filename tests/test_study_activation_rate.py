"""The second step on made-up training with a known truth: which arms, where the optimum is said."""

import dataclasses
import inspect
import json
import math
import pathlib

import numpy as np
import pytest

from moe_parity import config as configs
from moe_parity.errors import UserError
from moe_parity.fields.table import rows_of
from moe_parity.planning.plan import make_plan
from moe_parity.study.comparisons import Results, plan_comparisons, with_arms
from moe_parity.study.methods import (
  activation_rate,
  activation_rate_summary,
  architecture,
  data_reuse,
)
from moe_parity.study.methods.method import FIELDS_OF_ALL
from moe_parity.study.reading import RunRecord
from moe_parity.study.workers.runner import run_study
from tests.helpers import fake_training

RATES = (0.2, 0.25, 0.3, 0.4, 0.55)


def config(**study):
  return fake_training.sweep_config("activation_rate", RATES, 20_000, **study)


def run(folder, made, **kwargs):
  study = fake_training.open_study(folder, made)
  kwargs.setdefault("actions", fake_training.actions())
  arms = run_study(study, log=lambda line: None, **kwargs)
  return study, arms


def test_seeds_go_to_dense_to_the_best_rate_and_to_its_neighbors(tmp_path):
  study, arms = run(tmp_path, config(more_seeds=(1, 2)))
  seeds = {}
  for arm in arms:
    seeds.setdefault(arm.name, []).append(arm.seed)
  best = [0, 1, 2]
  assert seeds == {
    "dense": best, "moe_20": [0], "moe_25": best, "moe_30": best, "moe_40": best, "moe_55": [0],
    "dense_2c": [0], "dense_active": best, "dense_small_0p5": best, "dense_small_0p25": best,
    "dense_small_0p125": best,
  }  # fmt: skip
  assert {arm.status for arm in arms} == {"done"} and len(fake_training.ran(tmp_path)) == len(arms)
  assert study.summarize()["sentences"][-1] == "11 MoE runs and 16 dense runs are done."


def test_controls_to_come_are_announced_by_number(tmp_path):
  made = config(more_seeds=(1, 2), small_multiples=(0.5, 0.25))

  def notes(comparisons):
    found = activation_rate.pending_notes(made, comparisons)
    return [note for note in found if "control" in note]

  (note,) = notes(plan_comparisons(made, Results(None)))
  study, arms = run(tmp_path, made)
  trained = [arm for arm in arms if arm.name.startswith(("dense_active", "dense_small"))]
  assert note.startswith(f"then {len(trained)} runs more: dense controls") and len(trained) == 9
  assert note.endswith("N_a of the best MoE arm and with 0.5, 0.25 times N")
  assert notes(study.comparisons) == []
  made = config(controls=False)
  assert notes(plan_comparisons(made, Results(None))) == []
  made = config(learning_rate_grid=(0.01, 0.02, 0.04), tuning_seeds=(7, 8), small_multiples=())
  (note,) = notes(plan_comparisons(made, Results(None)))
  assert note == "then 1 run more and 6 tries: dense controls with the N_a of the best MoE arm"


def test_a_rate_made_best_by_more_seeds_gets_its_neighbors_too():
  bpc = {(rate, 0): value for rate, value in zip(RATES, (3.2, 3.1, 3.3, 3.4, 3.5), strict=True)}

  class Known(Results):
    def bpc(self, name, seed, comparison=""):
      return next((v for (r, s), v in bpc.items() if (f"moe_{100 * r:g}", s) == (name, seed)), None)

  def seeded():
    arms = activation_rate.derive(config(more_seeds=(1,)), Known(None))[""].arms
    return [rate for rate in RATES if 1 in arms[activation_rate.name_of(rate)].seeds]

  assert seeded() == [0.2, 0.25, 0.3]
  bpc |= {(0.2, 1): 3.2, (0.25, 1): 3.5}
  assert seeded() == [0.2, 0.25, 0.3]  # not before all of them are known
  bpc[0.3, 1] = 2.9
  assert seeded() == [0.2, 0.25, 0.3, 0.4]
  bpc[0.4, 1] = 2.2
  assert seeded() == [0.2, 0.25, 0.3, 0.4, 0.55]


def test_a_stopped_and_resumed_study_trains_the_same_arms_once(tmp_path):
  made = config(more_seeds=(1,), learning_rates=(0.5,))
  run(tmp_path / "whole", made)

  class Stop(BaseException):
    pass

  for stop in range(1, len(fake_training.ran(tmp_path / "whole"))):
    folder = tmp_path / f"stopped_{stop}"
    actions = fake_training.actions()

    def train(*args, left=[stop], actions=actions):  # noqa: B006 - counts down
      if not left[0]:
        raise Stop
      left[0] -= 1
      actions.train(*args)

    if stop % 3:  # every third suffices, and the machine has other work
      continue
    with pytest.raises(Stop):
      run(folder, made, actions=dataclasses.replace(actions, train=train))
    run(folder, made)
    assert sorted(fake_training.ran(folder)) == sorted(fake_training.ran(tmp_path / "whole"))
    assert (folder / "plan.json").read_text() == (tmp_path / "whole/plan.json").read_text()


def test_both_sides_get_equal_checks_outside_the_comparison(tmp_path):
  def truth(arm):
    better = 0.3 if arm.name == "dense_lr2" else 0.0
    return fake_training.bpc_of(arm) - better

  made = config(learning_rates=(0.5, 2.0))
  study, arms = run(tmp_path, made, actions=fake_training.actions(truth=truth))
  checks = [a for a in study.comparisons[0].plan.arms if a.role == "check"]
  names = ["dense_lr0p5", "dense_lr2", "moe_30_lr0p5", "moe_30_lr2"]
  assert [a.name for a in checks] == names
  plain = {a.name: a for a in study.comparisons[0].plan.arms}
  assert checks[2].peak_learning_rate == pytest.approx(plain["moe_30"].peak_learning_rate / 2)
  value = study.summarize()
  assert value["tuning"]["num_arms"] == {"moe": 3, "dense": 3}
  assert value["tuning"]["sides"][1]["best"] == "dense_lr2"
  assert value["tuning"]["difference_tuned"] > 0 > value["tuning"]["difference_at_law"]
  found = json.loads((tmp_path / "activation_rate.json").read_text())
  assert found["sweeps"][0]["optimum"]["bracketed"] in (True, False)
  from moe_parity.study.analysis import compare

  report = compare.analyze(tmp_path)
  assert {row["name"] for row in report["comparisons"]} == {f"moe_{100 * r:.0f}" for r in RATES}
  assert report["baseline"] == "dense"


def test_at_fixed_data_loss_falls_as_a_power_of_the_rate(tmp_path):
  def truth(arm):
    return 3.0 * arm.activation_rate**-0.05

  made = config(fixed_data=True)
  study, _ = run(tmp_path, made, actions=fake_training.actions(truth=truth))
  comparison = study.comparisons[1]
  assert comparison.name == "fixed_data" and comparison.plan.budget["held_fixed"] == "tokens"
  tokens = [arm.num_tokens for arm in comparison.plan.arms]
  assert max(tokens) / min(tokens) < 1.01
  assert {arm.role for arm in comparison.plan.arms} == {"arm"}
  dense = next(
    run
    for arm, run in zip(comparison.plan.arms, comparison.runs, strict=True)
    if arm.name == "dense"
  )
  assert dense == "runs/dense-s0"  # the same run as in the main comparison, trained once
  sweep = study.summarize()["sweeps"][1]
  fit = sweep["log_log"]
  assert fit["slope"] == pytest.approx(-0.05, abs=1e-4) and fit["monotone"]
  assert fit["interval"][0] <= fit["slope"] <= fit["interval"][1]
  assert sweep["train_flops"] is None and sweep["held"] == "tokens"
  assert json.loads((tmp_path / "parts/fixed_data/certificate.json").read_text())["passed"]


def test_sizes_with_one_optimum_transfer_and_others_differ(tmp_path):
  def run_with(folder, optima):
    def truth(arm):
      if arm.kind == "dense":
        return 2.5
      optimum = optima[arm.num_params > 140_000]
      wiggle = 1e-4 * math.sin(1000 * arm.activation_rate + arm.num_params)
      return 2 + 0.5 * math.log(arm.activation_rate / optimum) ** 2 + wiggle

    made = config(sizes=(200_000,), compute_multiples=())
    study, _ = run(folder, made, actions=fake_training.actions(truth=truth))
    return study.summarize()["transfer"]

  same = run_with(tmp_path / "same", (0.28, 0.28))
  assert same["sizes"] == [100_000, 200_000]
  assert same["pairs"][0]["verdict"] == "not distinguishable"
  for optimum in same["optima"]:
    assert optimum["bracketed"] and optimum["activation_rate"] == pytest.approx(0.28, rel=0.03)
  other = run_with(tmp_path / "other", (0.24, 0.36))["pairs"][0]
  assert other["verdict"] == "differs"
  assert other["log_ratio"] == pytest.approx(math.log(0.36 / 0.24), rel=0.15)


def test_m_is_linear_in_r_a_at_one_depth_and_width():
  (comparison,) = plan_comparisons(config(), Results(None))
  from moe_parity.study.methods.activation_rate_summary import _flops_linear

  fit = _flops_linear(comparison)
  arm = next(arm for arm in comparison.plan.arms if arm.kind == "moe")
  # arXiv 2506.12119 Eq. (8), three times forward: 6 N r_a + 12 L d S.
  assert fit["slope"] == pytest.approx(6 * arm.num_params, rel=0.01)
  attention = 12 * arm.architecture.num_layers * arm.architecture.d_model * arm.seq_len
  assert fit["intercept"] == pytest.approx(attention, rel=0.02)
  assert fit["r2"] > 0.9999


@pytest.mark.parametrize(
  "values, expected", [((3, 1, 2, 5), [0, 1, 2]), ((1, 2, 3), [0, 1]), ((4, 3, 1), [1, 2])]
)
def test_neighbors_stay_inside_the_sweep(values, expected):
  assert list(activation_rate.neighborhood(values)) == expected


@pytest.mark.parametrize(
  "study, words",
  [
    ({"activation_rates": (0.2, 0.4)}, "at least three"),
    ({"activation_rates": (0.4, 0.3, 0.2)}, "rising"),
    ({"more_seeds": (0, 1)}, "must be there and differ"),
    ({"sizes": (100_000,)}, "which the main comparison has"),
    ({"method": "activation_rat"}, "study.method='activation_rat' is not known"),
  ],
)
def test_an_impossible_sweep_is_refused_before_training(study, words):
  with pytest.raises(UserError, match=words):
    plan_comparisons(config(**study), Results(None))


@pytest.mark.parametrize(
  "study, words",
  [
    (
      {"method": "arms", "seeds": (0, 1), "activation_rates": ()},
      r"study.seeds=\(0, 1\) has no effect with study.method='arms'; leave it at \(0,\), and give"
      r" each arm its own, as arms.NAME.seeds, or use method='activation_rate' or 'architecture'",
    ),
    ({"method": "arms"}, r"study.activation_rates=.* leave it at \(\), or use method='activation"),
    ({"layouts": ("full",)}, r"study.layouts=\('full',\) has no effect .* method='architecture'$"),
    ({"epochs": (4.0,)}, r"study.epochs=\(4.0,\) has no effect .* use method='data_reuse'$"),
    ({"method": "data_reuse", "more_seeds": (1,)}, r"study.more_seeds=\(1,\) has no effect"),
    ({"method": "data_reuse", "fixed_data": True}, "study.fixed_data=True has no .* at False, or"),
  ],
)
def test_a_field_that_the_method_does_not_read_is_refused(study, words):
  with pytest.raises(UserError, match=words):
    plan_comparisons(config(**study), Results(None))


def test_every_field_of_a_study_is_read_by_a_method_or_by_all():
  modules = activation_rate, architecture, data_reuse
  read = {*FIELDS_OF_ALL}.union(*(module.FIELDS for module in modules))
  assert read == set(rows_of("study"))
  for module in modules:
    source = inspect.getsource(module) + inspect.getsource(activation_rate.sweep_arms)
    assert all(f"study.{name}" in source for name in module.FIELDS)


def test_arms_that_are_no_templates_are_refused():
  made = fake_training.config()
  with made.unlocked():
    made.study.method = "activation_rate"
    made.study.activation_rates = RATES
  with pytest.raises(UserError, match="derives its arms from config.arms.dense and"):
    plan_comparisons(made, Results(None))


def small_controls(multiples):
  """The shapes of dense and of its small controls, of a sweep whose dense arm has a given shape."""
  study = configs.load("configs/depth.py")
  with study.unlocked():
    study.study.small_multiples = multiples
  arms = activation_rate.sweep_arms(study) | activation_rate.controls(study, "moe_20", (0,))
  return {arm.name: arm.architecture for arm in make_plan(with_arms(study, arms)).arms}


def test_small_controls_are_as_wide_for_their_depth_as_dense():
  shapes = small_controls((0.5, 0.25))
  for name in ("dense_small_0p5", "dense_small_0p25"):
    assert shapes[name].aspect_ratio == pytest.approx(80 / 3, rel=0.35)
    assert shapes[name].num_layers < shapes["dense"].num_layers


def test_a_small_control_that_cannot_be_as_wide_has_a_shape():
  assert small_controls((0.01,))["dense_small_0p01"].aspect_ratio < 80 / 3 / 1.35


def test_seeds_move_dense_against_moe_in_the_tuned_difference():
  """What a seed does to dense arms alone is in MoE minus dense, and in no side's own gain."""
  rng = np.random.default_rng(0)

  def one(kind):
    nats = rng.normal(1400, 9, 30).tolist()
    rows = [{"domain": "a", "num_chars": 1000, "nats": value} for value in nats]
    value = sum(nats) / 30_000 / math.log(2)
    result = {"validation": {"bpc": value, "documents": rows}}
    return [RunRecord(kind, 0, "done", "", pathlib.Path(), {"kind": kind}, result, {})]

  names = {"moe": ("moe", "moe_double"), "dense": ("dense", "dense_double")}
  sides = [{"kind": kind, "arm": of[0], "arms": [{"name": name} for name in of], "best": of[1]}
           for kind, of in names.items()]  # fmt: skip
  runs = [one(kind) for kind, of in names.items() for _ in of]
  noise = {"sd": 0.003, "df": 6, "kind_sd": None, "kind_df": 0}
  without, counted = (
    activation_rate_summary._tuned_intervals(sides, runs, noise | kinds)
    for kinds in ({}, {"kind_sd": 0.1, "kind_df": 2})
  )
  assert np.ptp(counted["tuned"]) > 5 * np.ptp(without["tuned"])
  for kind in names:
    assert counted[kind] == pytest.approx(without[kind])
