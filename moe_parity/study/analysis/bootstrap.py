"""Where the uncertainty of an arm's BPC comes from, and how far it reaches.

Two sources, drawn together so that arms stay paired:

- the validation documents: one resample serves all arms and seeds. Within a domain of n documents,
  n - 1 are drawn and each counts n / (n - 1): the rescaled bootstrap of Rao and Wu (1988), whose
  variance is right also for four documents, where the plain one is a quarter too small;
- training noise, where arms repeat over seeds: the spread between seeds, pooled over arms.

Both get the tails of Student's t for the degrees of freedom behind them, so few documents or few
seeds make wide intervals. All values are in bits per character (or per byte).
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class SeedNoise:
  """Spread between seeds of one arm: standard deviation `sd` with `df` degrees of freedom.

  df is the sum over arms of (seeds - 1); with df 0 nothing is known and sd is nan.
  """

  sd: int | float
  df: int


def ratio_of_sums(nats_RN: np.ndarray, units_N: np.ndarray) -> np.ndarray:
  """Bits per unit over all documents: sum of nats over documents, by units and by ln 2."""
  return nats_RN.sum(-1) / (units_N.sum() * math.log(2))


def document_deviations(
  nats_RN: np.ndarray,
  units_N: np.ndarray,
  domain_N: np.ndarray,
  num_draws: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Deviations [num_draws, R] of every run's bits per unit over resampled documents, paired.

  Args:
    nats_RN: nats of run R on document N.
    units_N: characters (or bytes) of the document.
    domain_N: its domain; documents are drawn within their domain. A domain of one document cannot
      be resampled and is held fixed.
  """
  weights = np.ones((num_draws, len(units_N)))
  for domain in np.unique(domain_N):
    (members,) = np.nonzero(domain_N == domain)
    n = len(members)
    if n > 1:
      drawn = rng.multinomial(n - 1, np.full(n, 1 / n), size=num_draws)
      weights[:, members] = drawn * (n / (n - 1))
  draws = (weights @ nats_RN.T) / ((weights @ units_N)[:, None] * math.log(2))
  deviations = draws - draws.mean(0)
  df = document_df(nats_RN, units_N, domain_N)
  if df:
    deviations *= _t_factor(df, num_draws, rng)[:, None]
  return deviations


def document_df(nats_RN: np.ndarray, units_N: np.ndarray, domain_N: np.ndarray) -> float:
  """Degrees of freedom of the documents' variance, smallest over the differences between runs.

  2 v^2 / var(v) for v = the sum of squared residuals (Satterthwaite), at most documents minus
  domains. A few long documents that carry all the text count as few. 0: nothing can be resampled.
  """
  sizes = {domain: int((domain_N == domain).sum()) for domain in np.unique(domain_N)}
  free = sum(n - 1 for n in sizes.values())
  if not free:
    return 0.0
  varied = np.array([sizes[domain] > 1 for domain in domain_N])
  runs = nats_RN - nats_RN[:1] if len(nats_RN) > 1 else nats_RN
  residuals = runs - runs.sum(-1, keepdims=True) * (units_N / units_N.sum())
  for domain in sizes:
    residuals[:, domain_N == domain] -= residuals[:, domain_N == domain].mean(-1, keepdims=True)
  squares = residuals[:, varied] ** 2
  second, fourth = squares.sum(-1), (squares**2).sum(-1)
  known = second > 0
  if not known.any():
    return float(free)
  spread = fourth[known] - second[known] ** 2 / squares.shape[-1]
  df = 2 * second[known] ** 2 / np.maximum(spread, 1e-300)
  return float(np.clip(df.min(), 1.0, free))


def seed_noise(values: list[np.ndarray]) -> SeedNoise:
  """Pooled standard deviation between seeds; `values` holds one array over seeds for each arm."""
  df = sum(len(v) - 1 for v in values)
  if not df:
    return SeedNoise(math.nan, 0)
  return SeedNoise(math.sqrt(sum(((v - v.mean()) ** 2).sum() for v in values) / df), df)


def paired_noise(tables: list[np.ndarray]) -> SeedNoise:
  """What is left between seeds when each seed's own level is taken out: the noise of differences
  between options that were trained with the same seeds.

  Args:
    tables: [options, seeds] for each arm; the level of a seed is the arm's own.
  """
  df = sum((len(v) - 1) * (v.shape[1] - 1) for v in tables)
  if not df:
    return SeedNoise(math.nan, 0)
  squares = sum(
    ((v - v.mean(0, keepdims=True) - v.mean(1, keepdims=True) + v.mean()) ** 2).sum()
    for v in tables
  )
  return SeedNoise(math.sqrt(squares / df), df)


def noise_deviations(
  sd_A: np.ndarray, df: int, num_draws: int, rng: np.random.Generator
) -> np.ndarray:
  """Deviations [num_draws, A], independent between arms, from standard deviations known to `df`."""
  normal = rng.standard_normal((num_draws, len(sd_A)))
  return normal * _t_factor(df, num_draws, rng)[:, None] * sd_A


def pointwise(estimate_A: np.ndarray, deviations_BA: np.ndarray, level: int | float) -> np.ndarray:
  """Intervals [2, A], each of which alone covers its value with probability `level`."""
  tail = (1 - level) / 2
  return estimate_A + np.quantile(deviations_BA, [tail, 1 - tail], axis=0)


def simultaneous(
  estimate_A: np.ndarray, deviations_BA: np.ndarray, level: int | float
) -> np.ndarray:
  """Intervals [2, A] that cover all A values at once with probability `level`.

  The pointwise intervals, all stretched by the one factor that makes the largest excursion of a
  draw stay inside with probability `level` (max-t; allows for how arms move together).
  """
  interval = pointwise(estimate_A, deviations_BA, level)
  below = np.maximum(estimate_A - interval[0], 1e-300)
  above = np.maximum(interval[1] - estimate_A, 1e-300)
  excursion = np.maximum(deviations_BA / above, -deviations_BA / below).max(-1)
  factor = max(1.0, float(np.quantile(excursion, level)))
  return np.stack([estimate_A - factor * below, estimate_A + factor * above])


def _t_factor(df: int | float, num_draws: int, rng: np.random.Generator) -> np.ndarray:
  return np.sqrt(df / rng.chisquare(df, size=num_draws))
