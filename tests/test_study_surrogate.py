"""The surrogate against a law written out by hand, against noise, and against hidden rows."""

import json
import math
import pathlib

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.errors import UserError
from moe_parity.study.surrogate import fit, laws
from moe_parity.study.surrogate.laws import ArmFeatures
from moe_parity.study.surrogate.leave_out import leave_one_reuse_out, leave_one_size_out
from moe_parity.study.surrogate.rows import make_rows, published_rows, study_rows
from tests.helpers import fake_study
from tests.helpers.workers import without_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def law(num_params, rate, tokens, epochs):
  """A truth in plain arithmetic: not the parametrisation, nor the reference point, of the fit."""
  repeats = epochs - 1
  effective = tokens / epochs * (1 + 9.0 * (1 - math.exp(-repeats / 9.0)))
  dense = 0.9 if rate == 1 else 1.0
  size = (num_params / 1e9) ** -0.4 * (0.06 + 0.004 * rate**-1.1)
  return 0.37 + dense * size + 0.5 * rate**0.05 * (effective / 1e9) ** -0.45


def draw_arms(rng, count):
  """Random arms of three sizes, a fifth of them dense."""
  rate = np.where(
    rng.random(count) < 0.2, 1.0, np.exp(rng.uniform(np.log(0.06), np.log(0.7), count))
  )
  return ArmFeatures(
    rng.choice([3e8, 1.1e9, 4e9], count),
    rate,
    np.exp(rng.uniform(np.log(4e9), np.log(2e11), count)),
    np.exp(rng.uniform(0, np.log(8), count)),
  )


def truth(arms):
  parts = (arms.num_params, arms.activation_rate, arms.num_tokens, arms.epochs)
  return np.array([law(*map(float, row)) for row in zip(*parts, strict=True)])


def rows_of(arms, bpc):
  return make_rows([f"run {i}" for i in range(len(arms))], arms, bpc, "synthetic runs")


@pytest.fixture(scope="module")
def published():
  rows = published_rows()
  return rows, fit.fit(rows)


def test_a_known_law_is_recovered_where_it_was_not_sampled():
  rng = np.random.default_rng(3)
  arms = draw_arms(rng, 60)
  fitted = fit.fit(rows_of(arms, truth(arms)))
  assert fitted.form.name == "saturating law"
  asked = draw_arms(np.random.default_rng(4), 200)
  off = np.exp(fitted.log_bpc(asked)) / truth(asked) - 1
  assert np.sqrt((off**2).mean()) < 1e-3 and np.abs(off).max() < 4e-3


def test_the_slopes_of_the_law_are_those_of_small_steps():
  arms, law_ = draw_arms(np.random.default_rng(5), 23), laws.SATURATING
  theta = law_.fit(arms, truth(arms))
  for index in range(2, len(theta)):
    up, down = theta.copy(), theta.copy()
    up[index], down[index] = up[index] + 1e-5, down[index] - 1e-5
    slope = (law_.log_bpc(up, arms) - law_.log_bpc(down, arms)) / 2e-5
    assert laws._slopes(theta, arms)[:, index - 2] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("form", laws.LAWS, ids=lambda form: form.name)
def test_a_law_of_doubled_losses_differs_in_its_amplitudes_only(form):
  """The prior's amplitudes are shares of the lowest loss, so no unit of the loss is special."""
  rows = draw_arms(np.random.default_rng(3), 12)
  bpc = truth(rows)
  once, twice = form.fit(rows, bpc), form.fit(rows, 2 * bpc)
  np.testing.assert_allclose(form.log_bpc(twice, rows), form.log_bpc(once, rows) + np.log(2),
                             atol=1e-6)  # fmt: skip


def test_intervals_cover_new_runs_about_as_often_as_they_say():
  """95 % over 320 runs of 8 studies; runs of one study share a fit, so the margin is wide."""
  inside = total = 0
  for seed in range(8):
    rng = np.random.default_rng(100 + seed)
    arms, asked = draw_arms(rng, 24), draw_arms(rng, 40)
    noisy = truth(arms) * np.exp(rng.normal(0, 0.004, len(arms)))
    fitted = fit._fit_form(laws.SATURATING, rows_of(arms, noisy))
    scores = truth(asked) * np.exp(rng.normal(0, 0.004, len(asked)))
    off = np.abs(np.log(scores) - fitted.log_bpc(asked))
    inside += int((off <= fitted.log_half_width(asked)).sum())
    total += len(asked)
  assert 0.90 <= inside / total <= 0.995


def test_differences_are_surer_than_the_levels_they_are_made_of(published):
  _, fitted = published
  tokens, epochs = [3.2e11, 1.5e11, 6.8e10], [2.1, 1.4, 1.0]
  arms = ArmFeatures([6.5e9, 6.5e9, 6.5e9], [0.2, 0.45, 1.0], tokens, epochs)
  versus = fitted.differences(arms, base=2)
  levels = fitted.predict(arms)
  assert versus[2] == {}
  for row, level in zip(versus[:2], levels[:2], strict=True):
    assert row["difference"] == pytest.approx(level["bpc"] - levels[2]["bpc"])
    width = lambda ends: ends[1] - ends[0]  # noqa: E731
    assert width(row["interval"]) < width(level["interval"]) + width(levels[2]["interval"])


def test_published_runs_count_once_and_table_16_repeats_tokens(published):
  rows, _ = published
  assert len(rows) == 46  # 51 printed, five of Table 10 stand in Table 9 as well
  for label, epochs in zip(rows.labels, rows.inputs.epochs, strict=True):
    assert (epochs > 1.001) == (label.startswith("Table 16") and not label.endswith("row 9"))
  sizes = sorted(rows.size_name(size) for size in np.unique(rows.size))
  expected = ["MoE 2.15B", "MoE 3.29B", "MoE 6.51B", "dense 2.15B", "dense 3.29B", "dense 6.48B"]
  assert sizes == expected


def test_rows_of_one_shape_leave_the_fit_together(published):
  rows, fitted = published
  nine, ten = (rows.labels.index(f"Table 9 row {n}") for n in (5, 9))
  assert rows.shape[nine] == rows.shape[ten]  # 10.81 % at 114B and at 468B tokens
  folds, error = fit._left_out(fitted.form, rows, rows.shape, fitted.theta)
  without = rows.keep(rows.shape != rows.shape[nine])
  own = fitted.form.fit(without.inputs, without.bpc)
  expected = fitted.form.log_bpc(own, rows.inputs[[nine]])[0] - math.log(rows.bpc[nine])
  assert error[nine] == pytest.approx(expected, abs=1e-5) and len(folds) == 30


def test_the_form_with_the_smallest_left_out_error_predicts(published):
  _, fitted = published
  best = min(fitted.errors, key=lambda error: error.shape)
  assert [e for e in fitted.errors if e.chosen] == [best] and best.form == fitted.form.name
  mean = next(e for e in fitted.errors if e.form == "mean")
  assert best.shape < mean.shape / 5  # BPC; the mean is what it must beat


def test_a_left_out_size_is_predicted_within_its_intervals(published):
  rows, _ = published
  names = {rows.size_name(size): size for size in np.unique(rows.size)}
  hidden = rows.size == names["MoE 6.51B"]
  fitted, asked = fit.fit(rows.keep(~hidden)), rows.keep(hidden)
  for predicted, bpc in zip(fitted.predict(asked.inputs), asked.bpc, strict=True):
    assert predicted["interval"][0] < bpc < predicted["interval"][1]
    assert abs(predicted["bpc"] - bpc) < 0.006
    assert predicted["extrapolates"]


def test_an_arm_outside_the_rows_is_called_an_extrapolation(published):
  _, fitted = published
  inside = ArmFeatures([2.15e9], [0.2], [2.4e11], [1.0])
  assert fitted.predict(inside)[0]["extrapolates"] == []
  far = ArmFeatures([7.0e10], [0.02], [2.4e11], [9.0])
  words = " ".join(fitted.predict(far)[0]["extrapolates"])
  assert "N=7e+10 is 10.7 times the largest MoE" in words
  assert "r_a=0.02 is" in words and "epochs=9 is" in words and "D=" not in words
  hole = ArmFeatures([6.5e9], [0.2], [3.3e11], [4.7])  # in range one by one, near no row
  assert "no fitted row is near" in fitted.predict(hole)[0]["extrapolates"][0]
  # N, r_a, D and epochs of Table 10 row 3, tokens doubled
  near = fitted.nearest(ArmFeatures([2.15e9], [0.1505], [3.755e11 * 1.3], [1.0]))
  assert near["row"] == "Table 10 row 3" and near["times"]["num_tokens"] == pytest.approx(1.3, 0.01)


def test_a_user_s_runs_are_fitted_and_another_text_is_refused(tmp_path, published):
  first = fake_study.write_study(tmp_path / "a", fake_study.Fake(seeds=(0, 1), seed_sd=0.002))
  rows = study_rows([first])
  assert len(rows) == 14 and len(np.unique(rows.shape)) == 6  # dense at 2C has dense's shape
  fitted = fit.fit(rows, published[0])
  assert any("borrowed" in error.form for error in fitted.errors)
  assert np.sqrt(np.mean((np.exp(fitted.log_bpc(rows.inputs)) - rows.bpc) ** 2)) < 0.02
  for run in (first / "runs").glob("moe_1*"):
    result = json.loads((run / "result.json").read_text())
    result["validation"]["documents"][0]["num_chars"] += 1
    fake_study.dump(run / "result.json", result)
  with pytest.raises(UserError, match="different held-out text"):
    study_rows([first])


def test_runs_of_all_comparisons_are_rows_a_shared_one_once(tmp_path):
  main = fake_study.write_study(tmp_path, fake_study.Fake(telemetry=False))
  part = fake_study.write_study(main / "parts/loose", fake_study.Fake(telemetry=False))
  info = json.loads((part / "study.json").read_text())
  for arm in info["arms"]:
    if arm["name"].startswith("dense"):  # trained once, in the folder of the first
      arm["folder"] = f"../../{arm['folder']}"
  fake_study.dump(part / "study.json", info)
  rows = study_rows([main])
  assert len(rows) == 7 + 5 and len(study_rows([part])) == 7
  labels = [label.split("/", 1)[1] for label in rows.labels]
  assert "loose/moe_10 (seed 0)" in labels and "moe_10 (seed 0)" in labels
  assert "loose/dense (seed 0)" not in labels


def test_impossible_arms_and_too_few_runs_are_refused(tmp_path):
  with pytest.raises(UserError, match="activation_rate=1.2"):
    ArmFeatures([1e9], [1.2], [1e10], [1.0])
  with pytest.raises(UserError, match="epochs=0.5"):
    ArmFeatures([1e9], [0.2], [1e10], [0.5])
  two = fake_study.write_study(tmp_path, fake_study.Fake(rates=(0.2,), telemetry=False))
  with pytest.raises(UserError, match="2 different shapes"):
    fit.fit(study_rows([two]))


def test_predict_answers_for_a_config_without_loading_jax():
  answer = json.loads(without_jax("predict", f"--config={ROOT}/configs/paper_7b.py", "--json"))
  arms = {arm["name"]: arm for arm in answer["arms"]}
  assert len(arms) == 8 and arms["dense"]["minus_dense"] is None
  assert arms["moe_20"]["minus_dense"]["interval"][1] < 0
  # the paper's own dense runs at this size: 0.4736 and, at 130B tokens, 0.4594
  assert arms["dense"]["bpc"] == pytest.approx(0.4736, abs=0.004)
  assert arms["dense_2c"]["interval"][0] < 0.4594 < arms["dense_2c"]["interval"][1]


def test_predict_prints_a_row_an_arm_and_errors_of_every_form(capsys):
  argv = ["predict", "--num-params=2.15e9", "--activation-rate=0.2,1", "--tokens=3e11"]
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  assert "D=3e+11 is 2.32 times the largest dense" in out
  for form in ("mean", "ridge", "additive law", "coupled law", "saturating law"):
    assert form in out
  assert cli.main(argv[:3]) == 2 and "--tokens is missing" in capsys.readouterr().err
  assert cli.main([*argv, "--config=configs/demo.py"]) == 2


def test_intervals_hold_on_sizes_and_reuse_that_were_left_out(published):
  """Every size, and every way to reuse text, hidden in turn: the rows were never seen."""
  for table in (
    leave_one_size_out(published[0]),
    leave_one_reuse_out(published[0]),
  ):
    total = sum(row["num_rows"] for row in table)
    assert total == 46 and sum(row["inside"] for row in table) >= 43  # 95 % is 43.7


def test_an_arm_of_a_new_size_or_reuse_has_a_wider_interval(published):
  _, fitted = published
  seen, repeated, larger = (
    fitted.log_half_width(ArmFeatures([n], [0.2], [2.4e11], [epochs]))[0]
    for n, epochs in ((2.15e9, 1.0), (2.15e9, 3.0), (2e10, 1.0))
  )
  assert repeated > 1.5 * seen and larger > 1.5 * seen
  warnings = fitted.extrapolates(ArmFeatures([2.15e9], [0.2], [2.4e11], [3.0]))
  assert any("reads its text about as often" in line for line in warnings)


def test_a_parameter_that_no_row_shows_keeps_its_prior_s_doubt():
  """No row repeats its text: what R is, and so what ten epochs cost, is the prior's guess."""
  arms = draw_arms(np.random.default_rng(3), 40)
  once = ArmFeatures(arms.num_params, arms.activation_rate, arms.num_tokens, np.ones(40))
  fitted = fit._fit_form(laws.SATURATING, rows_of(once, truth(once)))
  one, ten = (ArmFeatures([1.1e9], [0.2], [5e10], [e]) for e in (1.0, 10.0))
  assert fitted._parameter_variance(ten)[0] > 9 * fitted._parameter_variance(one)[0]
