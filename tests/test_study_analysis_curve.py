"""The curve finds a known optimum as often as its interval says, and admits when it cannot."""

import math

import numpy as np
import pytest
import scipy.stats

from moe_parity.study.analysis import arms, rate_curve, uncertainty

RATES = np.array([0.09, 0.13, 0.18, 0.25, 0.33, 0.44, 0.58])


def quadratic(rate, optimum=0.25):
  return 1.9 + 0.05 * np.log(rate / optimum) ** 2


def hyperbolic(rate, optimum=0.25):
  return 1.9 + 0.08 * optimum / rate + 0.08 * np.log(rate)


def fit(bpc, rates=RATES, draws=500, sources=(), documents=None, random=0, seeds_known=False):
  rng = np.random.default_rng(random)
  sources = list(sources)
  moved = uncertainty.draws(len(rates), sources, draws, rng)
  moved = moved if documents is None else moved + documents
  return rate_curve.fit(rates, bpc, moved, sources, seeds_known, rng)


def seeds(sd, df, num_arms=7):
  """Seeds of one noise, known to `df` in all."""
  return [uncertainty.VarianceSource(sd * np.eye(num_arms), df, "seeds")]


def studies(truth, num_seeds, seed_sd, num_studies, document_sd=0.0):
  """Fits of made-up studies without documents or, with them, of 30 of one length."""
  rng = np.random.default_rng(11)
  for study in range(num_studies):
    values = truth(RATES)[:, None] + rng.normal(0, seed_sd, (len(RATES), num_seeds))
    arm, seed = np.indices(values.shape)
    on_documents = rng.normal(0, document_sd, (len(RATES), 30)).repeat(num_seeds, 0)
    nats = (values.reshape(-1, 1) + on_documents) * 1000 * math.log(2)
    scores = arms.Scores(nats.mean(1) / 1000 / math.log(2), arm.ravel(), seed.ravel(), nats,
                         np.full(30, 1000.0), np.repeat(["a"], 30))  # fmt: skip
    made = arms.average(scores)
    known = bool(made.noise.df)
    yield fit(made.value_A, sources=made.sources, random=study, draws=400, seeds_known=known)


def coverage(truth, num_seeds, seed_sd, num_studies=200):
  held = []
  for fitted in studies(truth, num_seeds, seed_sd, num_studies):
    low, high = rate_curve.minimum_interval(fitted, 0.95)["interval"]
    held.append(low <= 0.25 <= high)
  return np.mean(held)


@pytest.mark.parametrize("truth", [quadratic, hyperbolic])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_covers_the_optimum_as_often_as_it_says(truth, num_seeds):
  # 0.904: three binomial standard deviations (200 studies) below 0.95.
  assert coverage(truth, num_seeds, seed_sd=0.004) > 0.904


def test_without_noise_the_optimum_is_found_under_every_form():
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


def test_arms_that_stray_more_than_their_seeds_are_a_misfit():
  bumps = np.where(np.arange(7) % 2, 0.01, -0.01)
  assert fit(quadratic(RATES) + bumps, sources=seeds(0.001, 14), seeds_known=True).misfit
  smooth = fit(quadratic(RATES) + 0.05 * bumps, sources=seeds(0.001, 14), seeds_known=True)
  assert not smooth.misfit
  # an exact F distribution: the mean square about the curve over that of seeds
  square = smooth.scatter_sd**2 / 0.001**2
  assert smooth.scatter_p == pytest.approx(scipy.stats.f.sf(square, 4, 14), rel=1e-6)


def test_a_true_curve_is_rarely_called_a_misfit():
  """Three seeds and documents on which arms differ: it was 30 % when documents were left out."""
  misfits = [f.misfit for f in studies(quadratic, 3, 0.004, 150, document_sd=0.05)]
  assert np.mean(misfits) < 0.1  # 5 % and three binomial standard deviations


def test_the_region_below_dense_has_the_true_ends():
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
