"""The curve finds a known optimum as often as its interval says, and admits when it cannot."""

import math

import numpy as np
import pytest

from moe_parity.study.analysis import bootstrap, rate_curve

RATES = np.array([0.09, 0.13, 0.18, 0.25, 0.33, 0.44, 0.58])
UNKNOWN = bootstrap.SeedNoise(math.nan, 0)


def quadratic(rate, optimum=0.25):
  return 1.9 + 0.05 * np.log(rate / optimum) ** 2


def hyperbolic(rate, optimum=0.25):
  return 1.9 + 0.08 * optimum / rate + 0.08 * np.log(rate)


def fit(bpc, rates=RATES, draws=500, noise=UNKNOWN, seeds=1, documents=None, random=0):
  documents = np.zeros((draws, len(rates))) if documents is None else documents
  counts = np.full(len(rates), seeds)
  return rate_curve.fit(rates, bpc, counts, documents, noise, np.random.default_rng(random))


def coverage(truth, seeds, seed_sd, rates=RATES, num_studies=200):
  rng = np.random.default_rng(11)
  held = []
  for study in range(num_studies):
    values = truth(rates)[:, None] + rng.normal(0, seed_sd, (len(rates), seeds))
    noise = bootstrap.seed_noise(list(values))
    fitted = fit(values.mean(1), rates, noise=noise, seeds=seeds, random=study, draws=400)
    low, high = rate_curve.minimum_interval(fitted, 0.95)["interval"]
    held.append(low <= 0.25 <= high)
  return np.mean(held)


@pytest.mark.parametrize("truth", [quadratic, hyperbolic])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_the_true_optimum_as_often_as_it_says(truth, seeds):
  # 0.904: three binomial standard deviations (200 studies) below 0.95.
  assert coverage(truth, seeds, seed_sd=0.004) > 0.904


def test_without_noise_the_optimum_is_found_whichever_form_is_true():
  for truth, form in ((quadratic, "quadratic"), (hyperbolic, "hyperbolic")):
    fitted = fit(truth(RATES))
    assert fitted.form == form
    assert fitted.minimum == pytest.approx(0.25, rel=0.01)  # the grid's spacing is 0.8 %
    assert fitted.scatter_sd < 1e-9


def test_a_minimum_at_the_edge_is_not_bracketed():
  rng = np.random.default_rng(0)
  for optimum, edge in ((0.05, "lower"), (0.9, "upper")):
    bpc = quadratic(RATES, optimum) + rng.normal(0, 0.002, len(RATES))
    minimum = rate_curve.minimum_interval(fit(bpc), 0.95)
    assert minimum["at_edge"] == edge and not minimum["bracketed"]
  minimum = rate_curve.minimum_interval(fit(quadratic(RATES) + rng.normal(0, 0.002, 7)), 0.95)
  assert minimum["at_edge"] == "" and minimum["bracketed"]


def test_a_flat_noisy_curve_has_an_open_interval():
  bpc = 1.9 + np.random.default_rng(2).normal(0, 0.01, len(RATES))
  minimum = rate_curve.minimum_interval(fit(bpc, draws=2000), 0.95)
  assert minimum["open_below"] or minimum["open_above"]
  assert not minimum["bracketed"]


def test_three_arms_show_no_scatter_and_two_no_curve():
  fitted = fit(quadratic(RATES[:3]), RATES[:3])
  assert fitted.scatter_df == 0 and math.isnan(fitted.scatter_sd)
  with pytest.raises(ValueError, match="2 activation rates"):
    fit(quadratic(RATES[:2]), RATES[:2])


def test_arms_that_stray_more_than_their_seeds_explain_are_called_a_misfit():
  bumps = np.where(np.arange(7) % 2, 0.01, -0.01)
  noise = bootstrap.SeedNoise(0.001, 14)
  assert fit(quadratic(RATES) + bumps, noise=noise, seeds=3).misfit
  smooth = fit(quadratic(RATES) + 0.05 * bumps, noise=noise, seeds=3)
  assert not smooth.misfit and smooth.noise_df == 14 + 4


def test_the_region_where_the_curve_lies_below_dense_has_the_true_ends():
  rng = np.random.default_rng(6)
  fitted = fit(quadratic(RATES) + rng.normal(0, 1e-5, 7), draws=1000)
  # 0.05 log(r / 0.25)^2 = 0.01 at r = 0.25 exp(+-sqrt(0.2))
  ends = 0.25 * np.exp([-math.sqrt(0.2), math.sqrt(0.2)])
  below, surely, band = rate_curve.region_below(fitted, 1.91, np.zeros(1000), 0.95)
  assert below[0] == pytest.approx(ends, rel=0.02) and len(below) == 1
  assert below[0][0] <= surely[0][0] < surely[0][1] <= below[0][1]
  assert (band[0] < fitted.bpc_G - 1.91).all() and (band[1] > fitted.bpc_G - 1.91).all()
  _, surely, _ = rate_curve.region_below(fitted, 1.91, rng.normal(0, 0.05, 1000), 0.95)
  assert surely == []
  assert rate_curve.region_below(fitted, 1.80, np.zeros(1000), 0.95)[0] == []


def test_document_draws_move_the_optimum():
  rng = np.random.default_rng(8)
  still = fit(quadratic(RATES[:3]), RATES[:3])
  assert np.ptp(still.minimum_B) == 0
  moved = fit(quadratic(RATES[:3]), RATES[:3], documents=rng.normal(0, 0.005, (500, 3)))
  assert np.ptp(moved.minimum_B) > 0.01
