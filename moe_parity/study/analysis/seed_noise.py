"""How far a score may be off because another seed could have been trained.

A run of arm a with seed s scores

    arm_a + level_s + kind_s (dense arms only) + error,   error with the arm's own variance v_a

A seed names weights, data order and the text that is drawn; arms share their seeds. level_s is what
a seed does to all arms alike; it cancels between arms of the same seeds. kind_s is what it does to
dense arms but not to MoE arms; it cancels between dense arms and stays in MoE minus dense. In the
studies of this repository dense arms vary more than MoE arms, and together (docs/verdicts.md). The
variance of kind_s is known by as many seeds as both kinds share. Of an arm alone in its kind,
kind_s and its own error cannot be told apart: they are counted once, as kind_s.

The variances v_a may differ, and two or three seeds say little about each. They are moderated
(Smyth 2004, doi:10.2202/1544-6115.1027): v_a is taken from an inverse chi-square around what arms
have in common, v_0, with `PRIOR_DF` degrees of freedom, joined with the arm's own squares. v_0 is
not set to one estimate but averaged over its posterior given all arms, flat in its logarithm. So an
arm that varies much more than the rest gets an interval almost as wide as its own few seeds demand,
and arms that vary alike share their squares. The variance of kind_s leans less on v_0, with
`KIND_PRIOR_DF`.
"""

import dataclasses
import math

import numpy as np

PRIOR_DF = 0.7
KIND_PRIOR_DF = 0.25
_COMMON = np.exp(np.linspace(-7, 5, 73))  # v_0 / pooled variance


@dataclasses.dataclass(frozen=True)
class SeedNoise:
  """Spread between seeds.

  Attributes:
    sd, df: standard deviation pooled over arms, and runs minus what levels and kinds take. Of one
      arm a kind, from how far the two move apart. df 0 means that nothing is known, and sd is nan.
    variance_A, df_A: moderated variance of each arm's error, and its degrees of freedom.
    level_variance, level_df: variance between the seeds' levels, and seeds minus one.
    kind_variance, kind_df: moderated variance of kind_s; 0 and 0 where arms are of one kind.
    is_alone_A: arms that are the only one of their kind; their variance_A is kind_variance.
  """

  sd: int | float
  df: int
  variance_A: np.ndarray
  df_A: np.ndarray
  level_variance: int | float
  level_df: int
  kind_variance: int | float
  kind_df: int | float
  is_alone_A: np.ndarray


def fit(
  value_R: np.ndarray, arm_R: np.ndarray, seed_R: np.ndarray, is_dense_A: np.ndarray | None = None
) -> SeedNoise:
  """The noise of runs: their scores, their arms 0..A-1, their seeds 0..S-1, and which arms are
  dense; None where all are of one kind.

  Levels of arms, seeds and kinds are fitted by least squares, twice reweighted by the arms'
  moderated variances, so that one wild arm does not move the seeds' levels.
  """
  num_arms, num_seeds = int(arm_R.max()) + 1, int(seed_R.max()) + 1
  is_dense_A = np.zeros(num_arms, bool) if is_dense_A is None else is_dense_A
  in_arm_RA = arm_R[:, None] == np.arange(num_arms)
  later_RS = seed_R[:, None] == np.arange(1, num_seeds)
  is_dense_R = is_dense_A[arm_R]
  shared = np.intersect1d(seed_R[is_dense_R], seed_R[~is_dense_R])  # seeds of both kinds
  kind_df = max(len(shared) - 1, 0)
  of_kind_RS = later_RS & is_dense_R[:, None] if kind_df else later_RS[:, :0]
  design = np.concatenate([in_arm_RA, later_RS, of_kind_RS], 1).astype(float)
  df = len(value_R) - int(np.linalg.matrix_rank(design))
  is_alone_A = np.array([(is_dense_A == kind).sum() == 1 for kind in is_dense_A])
  is_alone_A &= kind_df > 0
  if not df + kind_df:
    unknown_A = np.full(num_arms, math.nan)
    return SeedNoise(math.nan, 0, unknown_A, np.zeros(num_arms), math.nan, 0, 0.0, 0, is_alone_A)
  variance_A = np.ones(num_arms)
  for _ in range(3):
    level, squares_A, own_df_A = _levels(design, in_arm_RA, value_R, variance_A)
    kind_S = np.append(0.0, level[num_arms + num_seeds - 1 :])
    squares, dfs = squares_A, own_df_A
    if kind_df:
      squares = np.append(squares, kind_S[shared].var() * len(shared))
      dfs = np.append(dfs, kind_df)
    variance, moderated_df = moderated(squares, dfs, num_arms)
    variance_A = variance[:num_arms]
  kind_variance, moderated_kind_df = (variance[-1], moderated_df[-1]) if kind_df else (0.0, 0.0)
  own = squares_A.sum() / own_df_A.sum() if df else kind_variance / 2
  return SeedNoise(
    sd=math.sqrt(own),
    df=df or kind_df,
    variance_A=np.where(is_alone_A, kind_variance, variance_A),
    df_A=np.where(is_alone_A, moderated_kind_df, moderated_df[:num_arms]),
    level_variance=float(np.append(level[num_arms : num_arms + num_seeds - 1], 0.0).var(ddof=1)),
    level_df=num_seeds - 1,
    kind_variance=float(kind_variance),
    kind_df=float(moderated_kind_df),
    is_alone_A=is_alone_A,
  )


def _levels(
  design: np.ndarray, in_arm_RA: np.ndarray, value_R: np.ndarray, variance_A: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Coefficients of the design by weighted least squares; each arm's sum of squares about them, and
  its degrees of freedom."""
  root_R = 1 / np.sqrt(variance_A / variance_A.mean()) @ in_arm_RA.T
  scaled = design * root_R[:, None]
  inverse = np.linalg.pinv(scaled)
  level = inverse @ (value_R * root_R)
  squares_A = (value_R - design @ level) ** 2 @ in_arm_RA
  df_A = np.maximum(1 - (scaled * inverse.T).sum(1), 0) @ in_arm_RA
  return level, squares_A, np.where(df_A < 1e-9, 0.0, df_A)


def moderated(
  squares: np.ndarray, df: np.ndarray, num_arms: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Variances of arms, and of kind_s where there is one more, and their degrees of freedom, from
  sums of squares and theirs.

  1 / v has a posterior with some mean and variance; they are those of a chi-square with the degrees
  of freedom returned, at least 1, which two seeds by themselves would give. An arm without squares
  of its own gets what arms have in common. Where no arm has any, each variance is what its own
  squares say.
  """
  arms = slice(num_arms)
  own = np.maximum(squares / np.maximum(df, 1), 1e-300)
  if not df[arms].sum():
    return own, np.maximum(df, 1.0)
  pooled = squares[arms].sum() / df[arms].sum()
  if pooled <= 0:
    return own, np.full(len(df), max(df.sum(), 1.0))
  square = squares / pooled
  prior_df = np.where(np.arange(len(df)) < len(df[arms]), PRIOR_DF, KIND_PRIOR_DF)
  log_weight_G = _log_posterior(square[arms], df[arms])
  weight_G = np.exp(log_weight_G - log_weight_G.max())
  weight_G1 = (weight_G / weight_G.sum())[:, None]
  both = prior_df + df
  precision_GV = both / (prior_df * _COMMON[:, None] + square)
  mean_V = (weight_G1 * precision_GV).sum(0)
  second_V = (weight_G1 * precision_GV**2 * (1 + 2 / both)).sum(0)
  return pooled / mean_V, np.maximum(2 * mean_V**2 / (second_V - mean_V**2), 1.0)


def _log_posterior(square_A: np.ndarray, df_A: np.ndarray) -> np.ndarray:
  """ln posterior of v_0 on the grid, with v_a integrated out; up to a constant."""
  prior_G1 = PRIOR_DF * _COMMON[:, None]
  terms_GA = PRIOR_DF * np.log(prior_G1) - (PRIOR_DF + df_A) * np.log(prior_G1 + square_A)
  return terms_GA.sum(1) / 2
