"""Standard errors, degrees of freedom and intervals of arms and of differences between them.

Uncertainty comes from sources that do not depend on each other: the documents of each domain, each
arm's seeds, the seeds' common levels. A source has a factor of its covariance over arms and the
degrees of freedom with which that is known. A contrast (an arm, or an arm minus another) sums the
variances. Its degrees of freedom are of its own: of one kind, the mean of 1 / df, for Welch's and
Satterthwaite's gain does not hold for two seeds; of kinds, by their rule, with each kind's variance
a standard error higher than it was estimated: where two seeds lie close together by chance, the
rule would else take documents, which are known better, for all there is. Intervals that hold at
once allow for how contrasts move together (Hasler and Hothorn 2008, doi:10.1002/bimj.200710466,
by a normal copula).
"""

import dataclasses

import numpy as np

LEVEL = 0.95
NUM_DRAWS = 4000
SEED = 20250612
_JOINT_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class VarianceSource:
  """root_AM: the covariance over arms is root root'; df: the degrees of freedom behind it; kind:
  sources of one kind are known no better together than each by itself."""

  root_AM: np.ndarray
  df: int | float
  kind: str


@dataclasses.dataclass(frozen=True)
class Intervals:
  """Of contrasts K: estimate, standard error, degrees of freedom, and intervals [2, K] that hold
  one by one and all at once. Where no source says anything, errors are 0."""

  estimate_K: np.ndarray
  error_K: np.ndarray
  df_K: np.ndarray
  alone: np.ndarray
  joint: np.ndarray


def intervals(
  estimate_K: np.ndarray,
  contrast_KA: np.ndarray,
  sources: list[VarianceSource],
  level: int | float = LEVEL,
) -> Intervals:
  """Intervals of `contrast_KA @ arms`, which were estimated as `estimate_K`."""
  from scipy.special import ndtr, stdtrit

  covariance, df_K = combined(contrast_KA, sources)
  error_K = np.sqrt(np.diag(covariance))
  halves = []
  for normal in (-_normal_quantile((1 - level) / 2), _joint_quantile(covariance, level)):
    halves.append(stdtrit(df_K, ndtr(normal)) * error_K)
  alone, joint = (np.stack([estimate_K - half, estimate_K + half]) for half in halves)
  return Intervals(estimate_K, error_K, df_K, alone, joint)


def combined(
  contrast_KA: np.ndarray, sources: list[VarianceSource]
) -> tuple[np.ndarray, np.ndarray]:
  """Covariance [K, K] of contrasts and the degrees of freedom of each."""
  covariance = np.zeros((len(contrast_KA), len(contrast_KA)))
  variance_IK = np.zeros((len(sources), len(contrast_KA)))
  for i, source in enumerate(sources):
    root = contrast_KA @ source.root_AM
    part = root @ root.T
    covariance += part
    variance_IK[i] = np.diag(part)
  return covariance, _degrees_of_freedom(variance_IK, sources)


def total(contrast_KA: np.ndarray, sources: list[VarianceSource]) -> tuple[float, float]:
  """The sum of the contrasts' variances and its degrees of freedom."""
  variance_I1 = np.array([[((contrast_KA @ s.root_AM) ** 2).sum()] for s in sources])
  return float(variance_I1.sum()), float(_degrees_of_freedom(variance_I1, sources)[0])


def draws(
  num_arms: int, sources: list[VarianceSource], num_draws: int, rng: np.random.Generator
) -> np.ndarray:
  """Joint deviations [num_draws, A] of arms, Student's t with one number of degrees of freedom:
  that of the sum of the variances of all arms about their mean."""
  covariance, _ = combined(np.eye(num_arms), sources)
  values, vectors = np.linalg.eigh(covariance)
  root = vectors * np.sqrt(np.maximum(values, 0))
  deviations = rng.standard_normal((num_draws, num_arms)) @ root.T
  centered = np.eye(num_arms) - (1 / num_arms if num_arms > 1 else 0)
  variance, df = total(centered, sources) if sources else (0.0, 1.0)
  if variance:
    deviations *= np.sqrt(df / rng.chisquare(df, num_draws))[:, None]
  return deviations


def _degrees_of_freedom(variance_IK: np.ndarray, sources: list[VarianceSource]) -> np.ndarray:
  """Of sums over sources I, by the rule at the head of this file; 1 where nothing varies."""
  sum_K, spread_K = np.zeros((2, variance_IK.shape[1]))
  for kind in {source.kind for source in sources}:
    members = [i for i, source in enumerate(sources) if source.kind == kind]
    inverse_M = np.array([[1 / sources[i].df] for i in members])
    variance_K = variance_IK[members].sum(0)
    inverse_df_K = (variance_IK[members] * inverse_M).sum(0) / np.where(variance_K, variance_K, 1)
    high_K = variance_K * (1 + np.sqrt(2 * inverse_df_K))
    sum_K += high_K
    spread_K += high_K**2 * inverse_df_K
  varied = spread_K > 0
  return np.where(varied, sum_K**2 / np.where(varied, spread_K, 1.0), 1.0)


def _normal_quantile(probability: float) -> float:
  from scipy.special import ndtri

  return float(ndtri(probability))


def _joint_quantile(covariance: np.ndarray, level: int | float) -> float:
  """The bound that normals of this covariance, each by its own error, all keep at once."""
  error_K = np.sqrt(np.diag(covariance))
  varied = error_K > 0
  if not varied.any():
    return -_normal_quantile((1 - level) / 2)
  correlation = covariance / np.outer(np.where(varied, error_K, 1), np.where(varied, error_K, 1))
  values, vectors = np.linalg.eigh(correlation[np.ix_(varied, varied)])
  normals = np.random.default_rng(SEED).standard_normal((_JOINT_DRAWS, int(varied.sum())))
  largest = np.abs(normals @ (vectors * np.sqrt(np.maximum(values, 0))).T).max(1)
  return max(float(np.quantile(largest, level)), -_normal_quantile((1 - level) / 2))
