"""Standard errors of documents and seeds against textbook formulas and against draws."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from moe_parity.study.analysis import arms as averaged
from moe_parity.study.analysis import document_noise, seed_noise, uncertainty
from moe_parity.study.analysis.arms import Scores
from moe_parity.study.analysis.uncertainty import VarianceSource

DOMAINS = np.repeat(["novels", "bible", "lexicon", "math"], [24, 11, 4, 7])
NO_DOCUMENTS = np.zeros(0), np.zeros(0, str)


def documents(rng, num_arms=6, domains=DOMAINS, tail=0.7, sd=0.02):
  """nats [A, N] of arms of one score, and characters [N]."""
  chars = np.round(np.exp(rng.normal(9, tail, len(domains)))) + 100
  bits = 1.9 + rng.normal(0, 0.3, len(domains)) + rng.normal(0, sd, (num_arms, len(domains)))
  return bits * chars * math.log(2), chars


def by_seed(table_AS):
  """Scores of arms x seeds without documents."""
  table = np.asarray(table_AS, float)
  arm, seed = np.indices(table.shape)
  nats = np.zeros((table.size, 0))
  return Scores(table.ravel(), arm.ravel(), seed.ravel(), nats, *NO_DOCUMENTS)


def document_intervals(nats, chars, domains):
  """Differences to the first arm by documents alone."""
  values = document_noise.ratio_of_sums(nats, chars)
  contrast = np.eye(len(values))[1:] - np.eye(len(values))[0]
  sources = document_noise.sources(nats, chars, domains)
  return uncertainty.intervals(contrast @ values, contrast, sources)


def test_documents_of_equal_length_give_the_paired_t_interval():
  rng = np.random.default_rng(3)
  nats, _ = documents(rng, 2, np.repeat(["one"], 9), tail=0.0)
  chars = np.full(9, 1000.0)
  difference = (nats[1] - nats[0]) / chars / math.log(2)
  test = scipy.stats.ttest_1samp(difference, 0.0)
  low, high = test.confidence_interval(0.95)
  found = document_intervals(nats, chars, np.repeat(["one"], 9))
  assert found.alone[:, 0] == pytest.approx([low, high], rel=1e-9)
  assert found.df_K == pytest.approx([8.0])


def test_the_variance_is_that_of_stratified_sampling_theory():
  rng = np.random.default_rng(5)
  domains = np.repeat(["a", "b"], [4, 9])
  bits = rng.normal(2.0, 0.1, (1, 13)) + np.where(domains == "a", 0.5, 0.0)
  chars = np.full(13, 1000.0)
  root = document_noise.residuals(bits * 1000 * math.log(2), chars, domains)
  theory = sum((domains == d).sum() * bits[0, domains == d].var(ddof=1) / 13**2 for d in ("a", "b"))
  assert (root**2).sum() == pytest.approx(theory, rel=1e-12)


@pytest.mark.parametrize("tail", [0.0, 0.7, 1.5])
def test_document_intervals_hold_whatever_the_lengths(tail):
  rng = np.random.default_rng(7)
  one_by_one, at_once = [], []
  for _ in range(300):
    found = document_intervals(*documents(rng, tail=tail), DOMAINS)
    one_by_one.append(((found.alone[0] <= 0) & (found.alone[1] >= 0)).mean())
    at_once.append(((found.joint[0] <= 0) & (found.joint[1] >= 0)).all())
  # three binomial standard deviations below 0.95; unequal lengths make them wider than need be
  assert 0.925 < np.mean(one_by_one) and 0.912 < np.mean(at_once), (one_by_one, at_once)


def test_degrees_of_freedom_follow_from_the_lengths():
  rng = np.random.default_rng(2)
  one = np.repeat(["a"], 40)
  nats, chars = documents(rng, domains=one, tail=0.1)
  even = document_noise.degrees_of_freedom(nats, np.full(40, 100.0), one)
  assert even == pytest.approx(39)
  chars[0], nats[:, 0] = 80 * chars[0], 80 * nats[:, 0]
  assert document_noise.degrees_of_freedom(nats, chars, one) < 6


def test_degrees_of_freedom_are_those_of_simulated_variances():
  """2 E(v)^2 / var(v) over many draws of documents that vary alike."""
  rng = np.random.default_rng(4)
  chars = np.array([100.0, 250, 400, 1000, 2500, 300])
  bits = rng.normal(size=(40_000, 6))
  root = document_noise.residuals(bits * chars * math.log(2), chars, np.repeat(["a"], 6))
  variance = (root**2).sum(1)
  share = chars / chars.sum()
  assert variance.mean() == pytest.approx((share**2).sum(), rel=0.02)
  df = document_noise.sources(bits[:1], chars, np.repeat(["a"], 6))[0].df
  assert df == pytest.approx(2 * variance.mean() ** 2 / variance.var(), rel=0.05)


def test_arms_a_constant_apart_have_no_uncertain_difference():
  nats, chars = documents(np.random.default_rng(1), 1)
  pair = np.concatenate([nats, nats + 0.03 * chars * math.log(2)])
  found = document_intervals(pair, chars, DOMAINS)
  assert found.error_K[0] < 1e-9 and found.estimate_K[0] == pytest.approx(0.03)


def test_a_domain_of_one_document_adds_nothing():
  nats = np.array([[2.0, 3.0]]) * 500 * math.log(2)
  arguments = nats, np.full(2, 500.0), np.array(["a", "b"])
  assert document_noise.sources(*arguments) == []
  assert document_noise.degrees_of_freedom(*arguments) == 0


def test_arms_and_seeds_each_have_a_level():
  """Two-way analysis of variance, by its textbook formula."""
  table = np.random.default_rng(8).normal(size=(4, 3))
  left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
  noise = averaged.average(by_seed(table)).noise
  assert noise.df == 6
  assert noise.sd == pytest.approx(math.sqrt((left**2).sum() / 6), rel=0.35)  # arms are reweighted
  same = averaged.average(by_seed(np.ones((4, 3)))).noise
  assert same.sd < 1e-12 and same.df == 6


def test_what_a_seed_does_to_all_arms_leaves_differences_exact():
  table = np.random.default_rng(9).normal(0, 0.01, (5, 3))
  plain = averaged.average(by_seed(table))
  shifted = averaged.average(by_seed(table + np.array([0.0, 5.0, -3.0])))
  rows = [averaged.differences(arms, [1, 2, 3, 4], 0) for arms in (plain, shifted)]
  for a, b in zip(*rows, strict=True):
    assert a.simultaneous == pytest.approx(b.simultaneous, abs=1e-9)
  width = [np.ptp(arms.own_intervals(), axis=0).min() for arms in (plain, shifted)]
  assert width[0] < 0.2 and width[1] > 10  # but of an arm's own score it is


def test_without_a_repeated_pair_of_arms_nothing_is_known():
  runs = Scores(np.array([1.0, 2.0, 2.1]), np.array([0, 1, 1]), np.array([0, 0, 1]),
                np.zeros((3, 0)), *NO_DOCUMENTS)  # fmt: skip
  arms = averaged.average(runs)
  assert arms.noise.df == 0 and math.isnan(arms.noise.sd)
  (row,) = averaged.differences(arms, [1], 0)
  assert row.verdict == "one seed" and row.interval is None


def of_kinds(table_AS, num_dense):
  """`by_seed` of arms whose first are dense."""
  is_dense_A = np.arange(len(table_AS)) < num_dense
  return averaged.average(dataclasses.replace(by_seed(table_AS), is_dense_A=is_dense_A))


def test_one_arm_a_kind_is_a_paired_t_test():
  table = np.random.default_rng(3).normal(size=(2, 5))
  test = scipy.stats.ttest_rel(table[1], table[0]).confidence_interval(0.95)
  for kinds in (1, 0):
    arms = of_kinds(table, kinds)
    (row,) = averaged.differences(arms, [1], 0)
    if kinds:
      assert row.interval == pytest.approx(list(test), rel=1e-6) and arms.is_judged(1, 0)
      assert arms.noise.sd == pytest.approx(np.ptp(test) / 2 / scipy.stats.t.ppf(0.975, 4)
                                            * math.sqrt(5 / 2), rel=1e-6)  # fmt: skip
  assert arms.noise.kind_df == 0 and not arms.noise.is_alone_A.any()  # of one kind
  same = of_kinds(np.ones((2, 3)), 1)
  assert same.noise.sd < 1e-12 and averaged.differences(same, [1], 0)[0].difference == 0


def test_what_a_seed_does_to_a_kind_counts_between_kinds_only():
  table = np.random.default_rng(10).normal(0, 0.01, (6, 3))
  shift = np.array([0.0, 0.3, -0.2])
  plain, shifted = of_kinds(table, 3), of_kinds(table + shift * (np.arange(6) < 3)[:, None], 3)
  for others, base, moved in (([1, 2], 0, False), ([4, 5], 3, False), ([3, 4, 5], 0, True)):
    widths = [
      np.array([np.ptp(row.interval) for row in averaged.differences(arms, others, base)])
      for arms in (plain, shifted)
    ]
    if moved:
      assert (widths[1] > 5 * widths[0]).all()
    else:
      assert widths[1] == pytest.approx(widths[0], rel=1e-6)
  assert shifted.noise.sd == pytest.approx(plain.noise.sd, rel=1e-6)
  assert math.sqrt(shifted.noise.kind_variance) > 0.1 > 10 * shifted.noise.sd


def test_the_mean_error_of_a_kind_is_counted_once():
  """With many seeds, arms that vary alike differ as two samples do."""
  table = np.random.default_rng(5).normal(0, 0.01, (6, 60))
  for row in averaged.differences(of_kinds(table, 3), [3, 4, 5], 0):
    half = scipy.stats.norm.ppf(0.975) * 0.01 * math.sqrt(2 / 60)
    assert np.ptp(row.interval) / 2 == pytest.approx(half, rel=0.13)


def test_a_lone_dense_arm_varies_by_its_own_seeds():
  table = np.random.default_rng(2).normal(0, 0.01, (6, 3))
  table[0] += [0.3, -0.1, -0.2]
  noise = of_kinds(table, 1).noise
  assert noise.is_alone_A.tolist() == [True] + [False] * 5
  assert noise.variance_A[0] == noise.kind_variance > 0.5 * table[0].var(ddof=1)
  assert (noise.variance_A[1:] < 0.02**2).all()


def test_kinds_are_compared_by_the_seeds_that_both_have():
  """Dense has seeds 1 and 2 of three: kind_s is known by one difference."""
  table = np.random.default_rng(4).normal(0, 0.01, (4, 3))
  table[0] += [9.0, 0.0, 1.0]
  every = by_seed(table)
  there = (every.arm_R > 0) | (every.seed_R > 0)
  noise = seed_noise.fit(
    every.value_R[there], every.arm_R[there], every.seed_R[there], np.arange(4) == 0
  )
  assert noise.kind_variance == pytest.approx(
    of_kinds(table[:, 1:], 1).noise.kind_variance, rel=0.1
  )
  assert noise.kind_variance > 0.2 and noise.kind_df < 1.5 and noise.df == 4
  alone = seed_noise.fit(every.value_R[2:], every.arm_R[2:], every.seed_R[2:], np.arange(4) == 0)
  assert alone.kind_df == 0 and not alone.is_alone_A.any() and alone.df == 4


def test_arms_that_vary_alike_share_their_squares():
  """All squares alike: the moderated variance is the pooled one, known better than each alone."""
  variance, df = seed_noise.moderated(np.full(6, 2 * 0.04**2), np.full(6, 2.0))
  assert variance == pytest.approx(np.full(6, 0.04**2), rel=0.3)
  assert (df > 2.2).all()


def test_an_arm_that_varies_more_is_given_its_own_noise():
  squares = np.array([0.02, 0.02, 0.02, 0.3, 0.02, 0.02]) ** 2 * 2
  variance, df = seed_noise.moderated(squares, np.full(6, 2.0))
  own = squares / 2
  assert variance[3] > 0.5 * own[3] and variance[0] < 4 * own[0]
  assert own.mean() > 5 * variance[0]  # where pooling would put all arms
  assert df[3] < 4


def test_moderated_variances_have_the_posterior_of_their_draws():
  """1 / v by direct draws: v_0, d_0 from the prior, weighted by the likelihood of the squares."""
  rng = np.random.default_rng(12)
  squares, own_df = np.array([0.6, 1.0, 5.0]), np.array([1.0, 1.5, 2.0])
  pooled = squares.sum() / own_df.sum()
  prior_df = np.full(400_000, seed_noise.PRIOR_DF)
  common = pooled * np.exp(rng.uniform(-7, 5, 400_000))
  variance = (prior_df * common / rng.chisquare(prior_df))[:, None]
  variance = np.concatenate([variance] + [
    (prior_df * common / rng.chisquare(prior_df))[:, None] for _ in range(2)], 1)  # fmt: skip
  log_weight = (-own_df / 2 * np.log(variance) - squares / variance / 2).sum(1)
  weight = np.exp(log_weight - log_weight.max())
  mean = weight @ (1 / variance) / weight.sum()
  found, _ = seed_noise.moderated(squares, own_df)
  assert found == pytest.approx(1 / mean, rel=0.05)


def test_one_contrast_at_once_is_one_alone():
  source = [VarianceSource(np.eye(1), 5, "seeds")]
  found = uncertainty.intervals(np.zeros(1), np.eye(1), source)
  assert found.joint == pytest.approx(found.alone, rel=0.01)
  assert found.alone[1, 0] == pytest.approx(scipy.stats.t.ppf(0.975, 5))


def test_many_contrasts_at_once_are_wider():
  found = uncertainty.intervals(np.zeros(5), np.eye(5), [VarianceSource(np.eye(5), 1e9, "seeds")])
  assert found.joint[1] == pytest.approx(np.full(5, 2.57), abs=0.03)  # 5 independent normals


def test_sources_of_two_kinds_follow_satterthwaite():
  """Each variance a standard error higher: by sqrt(2 / df) of itself."""
  sources = [VarianceSource(2 * np.eye(1), 40, "documents"), VarianceSource(np.eye(1), 1, "seeds")]
  _, df = uncertainty.combined(np.eye(1), sources)
  high = 4 * (1 + math.sqrt(2 / 40)), 1 + math.sqrt(2 / 1)
  assert df == pytest.approx([sum(high) ** 2 / (high[0] ** 2 / 40 + high[1] ** 2 / 1)])
  assert df[0] < 0.7 * (4 + 1) ** 2 / (16 / 40 + 1 / 1)


def test_the_best_of_equal_arms_is_not_ahead_once_corrected():
  rng = np.random.default_rng(0)
  raw, corrected = [], []
  for _ in range(300):
    runs = by_seed(rng.normal(0, 0.04, (6, 3)))
    raw.append(min(runs.value_R.reshape(6, 3).mean(1)[1:]) - runs.value_R[:3].mean())
    corrected.append(averaged.lead_of_the_picked(runs, range(1, 6), 0, rng))
  assert np.mean(raw) < -0.02
  # standard deviation of one is about 0.035
  assert abs(np.mean(corrected)) < 3 * 0.035 / math.sqrt(300)


def test_an_arm_that_is_ahead_stays_ahead_once_corrected():
  table = np.random.default_rng(1).normal(0, 0.01, (6, 3))
  table[2] -= 0.5
  found = averaged.lead_of_the_picked(by_seed(table), range(1, 6), 0, np.random.default_rng(0))
  assert found == pytest.approx(table[2].mean() - table[0].mean(), abs=1e-12)
  one_seed = by_seed(table[:, :1])
  assert averaged.lead_of_the_picked(one_seed, range(1, 6), 0, np.random.default_rng(0)) is None
