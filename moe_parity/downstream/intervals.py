"""An interval for the score of one model: which other items could have been drawn."""

import numpy as np

LEVEL = 0.95
NUM_DRAWS = 2000
SEED = 20250612
_AT_ONCE = 4_000_000  # drawn items in memory


def mean(value_N: np.ndarray, weight_N: np.ndarray | None = None) -> float:
  """The score: mean over items, by weight."""
  return float(np.average(value_N, weights=weight_N))


def bootstrap(
  value_N: np.ndarray,
  weight_N: np.ndarray | None = None,
  level: float = LEVEL,
  *,
  is_share: bool = True,
) -> list[float] | None:
  """Percentile interval of `mean`, items drawn anew with replacement.

  Where all items score alike, drawing anew shows no spread. If they are all right or all wrong, the
  interval is Wilson's instead, which is exact about that case; otherwise None: nothing is known.

  Args:
    is_share: 0 and 1 are wrong and right; otherwise they are numbers like others.
  """
  number = len(value_N)
  if number < 2 or np.ptp(value_N) == 0:
    return _wilson(value_N, level) if is_share else None
  weight_N = np.ones(number) if weight_N is None else weight_N
  rng = np.random.default_rng(SEED)
  drawn: list[float] = []
  while len(drawn) < NUM_DRAWS:
    index = rng.integers(0, number, (max(_AT_ONCE // number, 1), number))
    weight = weight_N[index]
    drawn += ((value_N[index] * weight).sum(1) / weight.sum(1)).tolist()
  tail = (1 - level) / 2
  return np.quantile(drawn[:NUM_DRAWS], [tail, 1 - tail]).tolist()


def _wilson(value_N: np.ndarray, level: float) -> list[float] | None:
  from scipy.stats import binomtest

  if not len(value_N) or not set(value_N.tolist()) <= {0.0, 1.0}:
    return None
  test = binomtest(int(value_N.sum()), len(value_N))
  low, high = test.proportion_ci(level, method="wilson")
  return [float(low), float(high)]


def against(interval: list[float] | None, level: float | None) -> str:
  """ "above", "below" or "not distinguishable" from a level such as chance; "" where one of the two
  is missing."""
  if interval is None or level is None:
    return ""
  if interval[0] > level:
    return "above"
  return "below" if interval[1] < level else "not distinguishable"
