"""How far a score may be off because another seed could have been trained.

A run of arm a with seed s scores

    arm_a + level_s + error,   error with the arm's own variance v_a

A seed names weights, data order and the text that is drawn, and arms share their seeds: level_s is
what a seed's text does to all arms alike. It cancels between arms of the same seeds.

The variances v_a may differ, and two or three seeds say little about each. They are moderated
(Smyth 2004, doi:10.2202/1544-6115.1027): v_a is taken from an inverse chi-square around what arms
have in common, v_0 with d_0 degrees of freedom, joined with the arm's own squares. v_0 and d_0 are
not set to one estimate but averaged over their posterior given all arms, v_0 flat in its logarithm
and d_0 one of `PRIOR_DF`. An arm that varies much more than the rest so gets an interval almost as
wide as its own few seeds demand, and arms that vary alike share their squares.
"""

import dataclasses
import math

import numpy as np

PRIOR_DF = np.array([1.0, 2.0])
_LOG_COMMON = np.linspace(-7, 5, 73)  # ln(v_0 / pooled variance)
_WEIGHTING_DF = 2.0


@dataclasses.dataclass(frozen=True)
class SeedNoise:
  """Spread between seeds.

  Attributes:
    sd, df: standard deviation pooled over arms, and runs minus arms minus (seeds - 1): what is left
      when every arm and every seed has its level. df 0 means that nothing is known, and sd is nan.
    variance_A, df_A: moderated variance of each arm's error, and its degrees of freedom.
    level_variance, level_df: variance between the seeds' levels, and seeds minus one.
  """

  sd: int | float
  df: int
  variance_A: np.ndarray
  df_A: np.ndarray
  level_variance: int | float
  level_df: int


def fit(value_R: np.ndarray, arm_R: np.ndarray, seed_R: np.ndarray) -> SeedNoise:
  """The noise of runs: their scores, their arms 0..A-1, and their seeds 0..S-1.

  Levels of arms and seeds are fitted by least squares, twice reweighted by the arms' moderated
  variances, so that one wild arm does not move the seeds' levels.
  """
  num_arms, num_seeds = int(arm_R.max()) + 1, int(seed_R.max()) + 1
  in_arm_RA = arm_R[:, None] == np.arange(num_arms)
  later_RS = seed_R[:, None] == np.arange(1, num_seeds)
  design = np.concatenate([in_arm_RA, later_RS], 1).astype(float)
  df = len(value_R) - int(np.linalg.matrix_rank(design))
  if not df:
    unknown_A = np.full(num_arms, math.nan)
    return SeedNoise(math.nan, 0, unknown_A, np.zeros(num_arms), math.nan, 0)
  variance_A = np.ones(num_arms)
  for _ in range(3):
    root_R = 1 / np.sqrt(variance_A / variance_A.mean())[arm_R]
    scaled = design * root_R[:, None]
    inverse = np.linalg.pinv(scaled)
    level = inverse @ (value_R * root_R)
    squares_A = (value_R - design @ level) ** 2 @ in_arm_RA
    own_df_A = np.maximum(1 - (scaled * inverse.T).sum(1), 0) @ in_arm_RA
    own_df_A = np.where(own_df_A < 1e-9, 0.0, own_df_A)
    variance_A, df_A = moderated(squares_A, own_df_A)
  return SeedNoise(
    sd=math.sqrt(squares_A.sum() / own_df_A.sum()),
    df=df,
    variance_A=variance_A,
    df_A=df_A,
    level_variance=float(np.append(level[num_arms:], 0.0).var(ddof=1)),
    level_df=num_seeds - 1,
  )


def moderated(squares_A: np.ndarray, df_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Variance of each arm and its degrees of freedom, from sums of squares and theirs.

  1 / v_a has a posterior with some mean and variance; they are those of a chi-square with the
  degrees of freedom returned, at least 1, which two seeds by themselves would give. An arm without
  squares of its own gets what arms have in common.
  """
  pooled = squares_A.sum() / df_A.sum()
  if pooled <= 0:
    return np.full(len(df_A), 1e-300), np.full(len(df_A), max(df_A.sum(), 1.0))
  square_A = squares_A / pooled
  prior_GD = PRIOR_DF * np.exp(_LOG_COMMON)[:, None]
  log_weight_GD = _log_posterior(square_A, df_A, prior_GD)
  weight_GD = np.exp(log_weight_GD - log_weight_GD.max())
  weight_GD1 = (weight_GD / weight_GD.sum())[:, :, None]
  both_DA = PRIOR_DF[:, None] + df_A
  precision_GDA = both_DA / (prior_GD[:, :, None] + square_A)
  mean_A = (weight_GD1 * precision_GDA).sum((0, 1))
  second_A = (weight_GD1 * precision_GDA**2 * (1 + 2 / both_DA)).sum((0, 1))
  return pooled / mean_A, np.maximum(2 * mean_A**2 / (second_A - mean_A**2), 1.0)


def _log_posterior(square_A: np.ndarray, df_A: np.ndarray, prior_GD: np.ndarray) -> np.ndarray:
  """ln posterior of (v_0, d_0) on the grid, with v_a integrated out; up to a constant."""
  from scipy.special import gammaln

  both_DA = (PRIOR_DF[:, None] + df_A) / 2
  sums_GD = (both_DA * np.log(prior_GD[:, :, None] + square_A)).sum(-1)
  counts_D = (gammaln(both_DA) - gammaln(PRIOR_DF / 2)[:, None]).sum(-1)
  return counts_D + len(df_A) * PRIOR_DF / 2 * np.log(prior_GD) - sums_GD
