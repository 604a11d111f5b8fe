"""The third step on made-up training that follows Muennighoff's law with a known R*."""

import json
import math

import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.planning.scaling_laws import DataConstrainedLaw
from moe_parity.study.comparisons import Results, plan_comparisons
from moe_parity.study.methods import reuse_law
from moe_parity.study.workers.runner import run_study
from tests.helpers import fake_training

RATES = (0.2, 0.3, 0.45)


def config(**study):
  fields = {"compute_multiples": (), "epochs": (2.0, 4.0, 8.0)} | study
  return fake_training.sweep_config("data_reuse", RATES, 6_400, **fields)


def law(arm, decay):
  """bpc such that cross-entropy a token (2 ln 2 x bpc in fake results) follows the law."""
  worth = arm.num_unique_tokens * (1 + decay * (1 - math.exp(-(arm.epochs - 1) / decay)))
  level = 1.0 + 0.1 * arm.activation_rate
  return (level + 80 * worth**-0.3526596) / (2 * math.log(2))


def run(folder, made, truth):
  study = fake_training.open_study(folder, made)
  arms = run_study(study, log=lambda line: None, actions=fake_training.actions(truth=truth))
  return study, arms


def test_every_scheme_is_a_part_and_shared_runs_are_trained_once(tmp_path):
  study, arms = run(tmp_path, config(), lambda arm: law(arm, 6.0))
  names = [comparison.name for comparison in study.comparisons]
  assert names == ["", "unique", "loose", "epochs_2", "epochs_4", "epochs_8"]
  # dense once; per rate strict, unique, loose (= two epochs), four and eight epochs.
  assert len(arms) == 1 + 3 * 5 and {arm.status for arm in arms} == {"done"}
  assert len(fake_training.started(tmp_path)) == len(arms)
  listed = json.loads((tmp_path / "parts/unique/study.json").read_text())["arms"]
  assert {a["name"]: a["folder"] for a in listed}["dense"] == "../../runs/dense-s0"
  for comparison in study.comparisons:
    for arm in comparison.plan.arms:
      assert abs(arm.num_params / 100_000 - 1) <= 0.003 and abs(arm.residual_flops_pct) <= 0.5
      if comparison.name.startswith("epochs_"):
        assert arm.epochs == pytest.approx(float(comparison.name[7:]), rel=0.02)
    certificate = json.loads((tmp_path / comparison.folder / "certificate.json").read_text())
    assert certificate["passed"], comparison.name


def test_the_fitted_law_has_the_decay_the_runs_were_made_with(tmp_path):
  study, _ = run(tmp_path, config(), lambda arm: law(arm, 6.0))
  fitted = study.summarize()["law"]
  assert fitted["token_decay"] == pytest.approx(6.0, rel=0.1)
  assert fitted["interval"][0] <= 6.3 and fitted["interval"][1] >= 5.7
  assert fitted["rmse"] < fitted["rmse_published"] and fitted["num_runs"] == 15
  assert json.loads((tmp_path / "data_reuse.json").read_text())["law"] == fitted
  for curve in fitted["curves"]:
    assert (np.diff(curve["cross_entropy"]) > 0).all()  # at one D, more epochs is less text


def test_a_lead_lost_to_repetition_is_told_scheme_by_scheme(tmp_path):
  def truth(arm):
    wiggle = 0.002 * (arm.seed - 0.5)
    return wiggle + (2.0 if arm.kind == "dense" else 1.9 + 0.03 * arm.epochs)

  study, _ = run(tmp_path, config(seeds=(0, 1)), truth)
  value = study.summarize()
  verdicts = {s["part"]: {row["verdict"] for row in s["comparisons"]} for s in value["schemes"]}
  assert verdicts["unique"] == verdicts["loose"] == {"MoE better"}
  assert verdicts["epochs_4"] == verdicts["epochs_8"] == {"dense better"}
  assert any(s.startswith("unique: 3 of 3 MoE arms are significantly") for s in value["sentences"])
  costs = [row for row in value["costs"] if row["name"] == "moe_20"]
  assert [round(row["epochs"]) for row in costs] == sorted(round(row["epochs"]) for row in costs)
  assert {row["part"] for row in costs} == {"", "loose", "epochs_4", "epochs_8"}  # loose is two
  for row in costs:  # the truth's 0.03 an epoch
    assert row["difference"] == pytest.approx(0.03 * (row["epochs"] - 1), abs=0.004)
    # Seeds differ by their level alone, which pairing takes out: nothing is left of an interval.
    assert row["interval"] == pytest.approx([row["difference"]] * 2, abs=1e-9)
  sentence = next(s for s in value["sentences"] if s.startswith("What repetition costs moe_20"))
  assert sentence.count(" at ") == len(costs) and "not distinguishable" not in sentence


def test_one_seed_is_said_to_prove_nothing(tmp_path):
  study, _ = run(tmp_path, config(), lambda arm: law(arm, 6.0))
  value = study.summarize()
  assert value["headline"].startswith("One seed proves nothing")
  verdicts = {row["verdict"] for s in value["schemes"] for row in s["comparisons"]}
  assert verdicts == {"one seed"} and not any("better" in s for s in value["sentences"])
  assert any("one seed" in sentence for sentence in value["sentences"])


def test_the_laws_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(11)
  decay, inside, trials = 8.0, 0, 40
  for _ in range(trials):
    points = []
    for rate in RATES:
      for epochs in (1.0, 2.0, 4.0, 8.0, 16.0):
        tokens = int(1e6 / rate)
        arrays = np.array([float(tokens)]), np.array([epochs])
        worth = reuse_law.effective_tokens(*arrays, decay)[0]
        loss = 2 + rate + 100 * worth**-0.3526596 + 0.0005 * rng.standard_normal()
        points.append(reuse_law.Point(f"moe_{rate}", rate, epochs, tokens, loss))
    low, high = reuse_law.fit(points, reuse_law.Noise(math.nan, 0))["interval"]
    inside += low <= decay <= high
  assert inside >= 34  # 95 % of 40 is 38; 33 or fewer would happen once in 1000 times


def test_effective_tokens_are_those_of_the_published_law():
  law_ = DataConstrainedLaw()
  for epochs in (1.0, 3.0, 20.0):
    tokens = 4.0e9
    found = law_.predict(num_params=1e8, num_tokens=tokens, num_unique_tokens=tokens / epochs)
    arrays = np.array([tokens]), np.array([epochs])
    ours = reuse_law.effective_tokens(*arrays, reuse_law.REUSE_TOKEN_DECAY)[0]
    assert ours == pytest.approx(found["effective_tokens"], rel=1e-12)


def test_runs_off_the_law_by_more_than_seed_noise_are_a_misfit():
  def fitted(harm, noise):
    points = []
    for rate in RATES:
      for epochs in (1.0, 2.0, 4.0, 8.0, 32.0):
        arrays = np.array([1e6 / rate]), np.array([epochs])
        worth = reuse_law.effective_tokens(*arrays, 8.0)[0]
        loss = 2 + rate + 100 * worth**-0.3526596 + harm * (epochs > 8)
        points.append(reuse_law.Point(f"moe_{rate}", rate, epochs, int(1e6 / rate), loss))
    return reuse_law.fit(points, noise)

  assert not fitted(0.0, reuse_law.Noise(0.01, 12))["misfit"]
  assert fitted(0.5, reuse_law.Noise(0.01, 12))["misfit"]
  assert not fitted(0.5, reuse_law.Noise(math.nan, 0))["misfit"]  # with one seed it cannot be known


def test_what_a_seeds_schemes_share_is_no_noise_of_costs(tmp_path):
  def truth(arm):
    own = np.random.default_rng([arm.seed, arm.num_tokens, arm.num_unique_tokens]).normal(0, 0.002)
    return 2.0 + 0.03 * arm.epochs + 0.2 * arm.seed + own

  study, _ = run(tmp_path, config(seeds=(0, 1)), truth)
  value = study.summarize()
  assert value["noise"]["sd"] < 0.01  # what a seed does to all arms is no noise of a comparison
  assert value["noise"]["df"] == 2  # three MoE arms of two seeds, under however many schemes
  ends = [(*row["interval"], 0.03 * (row["epochs"] - 1)) for row in value["costs"]]
  assert all(high - low < 0.06 for low, high, _ in ends)
  held = [low < truth < high for low, high, truth in ends]
  assert len(held) >= 6 and sum(held) >= len(held) - 1  # each by itself at 95 %


def test_too_few_runs_give_no_law():
  points = [reuse_law.Point("moe_20", 0.2, e, 1000, 2.0 + e / 10) for e in (1.0, 2.0, 4.0)]
  assert reuse_law.fit(points, reuse_law.Noise(math.nan, 0)) is None


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda c: c.budget.update(reuse="loose"), "sets the scheme of each comparison itself"),
    (lambda c: c.study.update(epochs=(0.5, 2.0)), "has 0.5, which is below 1"),
    (lambda c: c.study.update(epochs=(4.0, 2.0)), "give them in rising order"),
  ],
)
def test_schemes_that_cannot_be_are_refused(change, words):
  made = config()
  with made.unlocked():
    change(made)
  with pytest.raises(UserError, match=words):
    plan_comparisons(made, Results(None))
