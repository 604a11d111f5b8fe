"""Arms from their runs: scores averaged over seeds, and draws of how far these may be off."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moe_parity.study.analysis import document_noise, seed_noise, uncertainty
from moe_parity.study.analysis.uncertainty import VarianceSource

ONE_SEED = "one seed"
NOT_DISTINGUISHABLE = "not distinguishable"


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of runs: value_R in bits per unit, arm_R 0..A-1, seed_R any number that arms share,
  nats_RN by document, units_N and domain_N of the documents (N may be 0), is_dense_A of the arms
  (None where all are of one kind)."""

  value_R: np.ndarray
  arm_R: np.ndarray
  seed_R: np.ndarray
  nats_RN: np.ndarray
  units_N: np.ndarray
  domain_N: np.ndarray
  is_dense_A: np.ndarray | None = None

  def minus(self, other: "Scores") -> "Scores":
    """Differences, run by run, of scores on the same documents."""
    return dataclasses.replace(
      self, value_R=self.value_R - other.value_R, nats_RN=self.nats_RN - other.nats_RN
    )

  def within(self, members: np.ndarray) -> "Scores":
    """The scores on some of the documents only."""
    nats_RN, units_N = self.nats_RN[:, members], self.units_N[members]
    value_R = document_noise.ratio_of_sums(nats_RN, units_N)
    return dataclasses.replace(
      self, value_R=value_R, nats_RN=nats_RN, units_N=units_N, domain_N=self.domain_N[members]
    )


@dataclasses.dataclass(frozen=True)
class Arms:
  """Arms over their seeds.

  Attributes:
    value_A: mean over seeds. num_seeds_A. nats_AN: mean over seeds, of each document.
    noise: between seeds.
    document_sources, seed_sources: what makes value_A uncertain.
  """

  scores: Scores
  value_A: np.ndarray
  num_seeds_A: np.ndarray
  nats_AN: np.ndarray
  noise: seed_noise.SeedNoise
  document_sources: list[VarianceSource]
  seed_sources: list[VarianceSource]

  @property
  def sources(self) -> list[VarianceSource]:
    return self.document_sources + self.seed_sources

  def is_judged(self, arm: int, base: int) -> bool:
    """Whether a verdict on the two may be given: both were repeated, and the noise is known."""
    return bool(self.noise.df and min(self.num_seeds_A[arm], self.num_seeds_A[base]) > 1)

  def own_intervals(self, level: int | float = uncertainty.LEVEL) -> np.ndarray:
    """Intervals [2, A] of the arms' scores, each by itself."""
    every = np.eye(len(self.value_A))
    return uncertainty.intervals(self.value_A, every, self.sources, level).alone


@dataclasses.dataclass(frozen=True)
class Difference:
  """An arm minus another, with its interval alone and over all rows; None: nothing is known.
  verdict: "MoE better" (lower), "dense better", "not distinguishable", or "one seed"."""

  difference: float
  interval: list[float] | None
  simultaneous: list[float] | None
  verdict: str


def average(scores: Scores) -> Arms:
  """Averages runs over seeds, and finds what is uncertain about the averages."""
  num_arms = int(scores.arm_R.max()) + 1
  _, seed_R = np.unique(scores.seed_R, return_inverse=True)
  average_AR = (scores.arm_R == np.arange(num_arms)[:, None]).astype(float)
  num_seeds_A = average_AR.sum(1).astype(int)
  average_AR /= num_seeds_A[:, None]
  nats_AN = average_AR @ scores.nats_RN
  noise = seed_noise.fit(scores.value_R, scores.arm_R, seed_R, scores.is_dense_A)
  seed_sources = _seed_sources(noise, average_AR, seed_R, scores.is_dense_A) if noise.df else []
  return Arms(
    scores=scores,
    value_A=average_AR @ scores.value_R,
    num_seeds_A=num_seeds_A,
    nats_AN=nats_AN,
    noise=noise,
    document_sources=document_noise.sources(nats_AN, scores.units_N, scores.domain_N),
    seed_sources=seed_sources,
  )


def _seed_sources(
  noise: seed_noise.SeedNoise,
  average_AR: np.ndarray,
  seed_R: np.ndarray,
  is_dense_A: np.ndarray | None,
) -> list[VarianceSource]:
  """Each arm's own error, what a seed does to dense arms only, and what it does to all.

  Where there are two kinds, kind_s is the difference of their means, which hold the mean error of
  their arms. So an arm's own error is the one about the mean of its kind; of an arm alone in its
  kind nothing is left.
  """
  num_arms = len(average_AR)
  num_seeds_A = (average_AR > 0).sum(1)
  about_mean = np.eye(num_arms)
  sources = []
  share_AS = average_AR @ (seed_R[:, None] == np.arange(noise.level_df + 1))
  if noise.kind_df and is_dense_A is not None:
    same_AA = is_dense_A[:, None] == is_dense_A
    weight_AA = same_AA / np.maximum(noise.variance_A, 1e-300)  # as levels were fitted
    about_mean -= weight_AA / weight_AA.sum(1, keepdims=True)
    kind = math.sqrt(noise.kind_variance) * share_AS * is_dense_A[:, None]
    sources.append(VarianceSource(kind, noise.kind_df, "seeds"))
  for a in np.flatnonzero(~noise.is_alone_A):
    root = about_mean[:, [a]] * math.sqrt(noise.variance_A[a] / num_seeds_A[a])
    sources.append(VarianceSource(root, float(noise.df_A[a]), "seeds"))
  level = math.sqrt(noise.level_variance) * share_AS
  return [*sources, VarianceSource(level, noise.level_df, "levels")]


def differences(
  arms: Arms, chosen: Sequence[int], base: int, level: int | float = uncertainty.LEVEL
) -> list[Difference]:
  """Arms `chosen` minus `base`. Intervals of rows that are judged hold at once, and so do those of
  the others."""
  contrast = np.zeros((len(chosen), len(arms.value_A)))
  contrast[np.arange(len(chosen)), list(chosen)] = 1
  contrast[:, base] -= 1
  judged = np.array([arms.is_judged(arm, base) for arm in chosen], bool)
  values = contrast @ arms.value_A
  rows = [Difference(float(value), None, None, ONE_SEED) for value in values]
  for family in (judged, ~judged) if arms.sources else ():
    at = np.flatnonzero(family)
    found = uncertainty.intervals(values[at], contrast[at], arms.sources, level)
    for i, k in enumerate(at):
      joint = found.joint[:, i].tolist()
      verdict = verdict_of(joint) if judged[k] else ONE_SEED
      rows[k] = Difference(rows[k].difference, found.alone[:, i].tolist(), joint, verdict)
  return rows


def verdict_of(interval: Sequence[float]) -> str:
  """What the simultaneous interval of MoE minus dense says."""
  if interval[1] < 0:
    return "MoE better"
  return "dense better" if interval[0] > 0 else NOT_DISTINGUISHABLE


def lead_of_the_picked(
  scores: Scores,
  chosen: Sequence[int],
  base: int,
  rng: np.random.Generator,
  num_splits: int = 20,
) -> float | None:
  """Score of the best of the arms `chosen`, minus `base`, where other runs and other documents
  made the pick: free of the winner's curse.

  Each seed in turn, and each of two random halves of the documents, scores the arm that the other
  seeds pick on the other half; the mean over all of these. None: less than two seeds that all of
  these arms have.
  """
  arms = [*chosen, base]
  seeds = set.intersection(*({*scores.seed_R[scores.arm_R == arm].tolist()} for arm in arms))
  if len(seeds) < 2:
    return None
  place = {(a, s): r for r, (a, s) in enumerate(zip(scores.arm_R, scores.seed_R, strict=True))}
  rows_AS = np.array([[place[arm, seed] for seed in sorted(seeds)] for arm in arms])
  found = []
  for picking_AS, scoring_AS in _halves(scores, rows_AS, num_splits, rng):
    others_AS = picking_AS.sum(1, keepdims=True) - picking_AS  # up to a factor: of other seeds
    picked_S = others_AS[:-1].argmin(0)
    found.append(scoring_AS[picked_S, np.arange(len(seeds))] - scoring_AS[-1])
  return float(np.mean(found))


def _halves(scores: Scores, rows_AS: np.ndarray, num_splits: int, rng: np.random.Generator):
  """Yields (scores on one half of the documents, scores on the other), both ways."""
  num_documents = len(scores.units_N)
  if num_documents < 2:
    yield scores.value_R[rows_AS], scores.value_R[rows_AS]
    return
  for _ in range(num_splits):
    order = rng.permutation(num_documents)
    halves = [
      document_noise.ratio_of_sums(scores.nats_RN[:, half], scores.units_N[half])[rows_AS]
      for half in (order[: num_documents // 2], order[num_documents // 2 :])
    ]
    yield halves[0], halves[1]
    yield halves[1], halves[0]
