"""BPC over activation rate: a smooth curve through the arms, its minimum, and where it beats dense.

Two forms with three coefficients each, linear in them; the one with the smaller residual is taken,
anew in every draw, so that intervals include the choice:

    quadratic    a + b log r + c (log r)^2
    hyperbolic   a + b / r + c log r        few experts chosen cost 1/r, fewer tokens cost log r

The second is there because the published sweeps are not symmetric in log r: on Table 10 (2B, 12
rows) and Table 16 (3B, 9 rows) of arXiv 2506.12119 its leave-one-out error is 0.0016 and 0.0017 BPC
against 0.0026 and 0.0028, and the quadratic puts the minimum 0.025 to the right of it.
"""

import dataclasses
import math

import numpy as np

from moe_parity.study.analysis import uncertainty
from moe_parity.study.analysis.uncertainty import VarianceSource

NUM_COEFFICIENTS = 3
FORMS = {
  "quadratic": lambda r: np.stack([np.ones_like(r), np.log(r), np.log(r) ** 2], -1),
  "hyperbolic": lambda r: np.stack([np.ones_like(r), 1 / r, np.log(r)], -1),
}
GRID_POINTS = 241


@dataclasses.dataclass(frozen=True)
class Curve:
  """A fit over [min, max] of the measured activation rates, never beyond.

  Attributes:
    form: name in FORMS of the form chosen for the data.
    grid_G, bpc_G: activation rates and the fitted BPC.
    minimum: activation rate of the smallest fitted BPC.
    minimum_by_form: the same under each form.
    scatter_sd, scatter_df: the arms' standard deviation about the curve; nan and 0 when the curve
      passes through all arms because there are only as many as coefficients.
    scatter_p: probability of so large a scatter from seeds and documents alone; None where seeds
      are not known or there is no scatter.
    misfit: scatter_p < 0.05: the arms do not follow the curve.
    draws_BG: curves of the draws, on the grid.
    minimum_B: their minima.
  """

  form: str
  grid_G: np.ndarray
  bpc_G: np.ndarray
  minimum: int | float
  minimum_by_form: dict[str, float]
  scatter_sd: int | float
  scatter_df: int
  scatter_p: float | None
  misfit: bool
  draws_BG: np.ndarray
  minimum_B: np.ndarray


def fit(
  rate_A: np.ndarray,
  bpc_A: np.ndarray,
  deviations_BA: np.ndarray,
  sources: list[VarianceSource],
  seeds_known: bool,
  rng: np.random.Generator,
) -> Curve:
  """Fits the arms (mean over seeds) and draws curves from what is uncertain.

  Args:
    deviations_BA: draws of the arms' deviations from documents and, if known, seeds.
    sources: what these deviations come from, over the same arms.
    seeds_known: whether seeds are among them. The scatter about the curve is then compared with
      what they explain: where it is larger, draws are widened to the two pooled, and at a misfit
      the scatter is added. Without, it is added always, for it is all that shows training noise.
  Raises:
    ValueError: fewer than three different activation rates.
  """
  if len(np.unique(rate_A)) < NUM_COEFFICIENTS:
    raise ValueError(
      f"{len(np.unique(rate_A))} activation rates do not fix a curve of {NUM_COEFFICIENTS} "
      "coefficients; finish at least three arms"
    )
  grid_G = np.exp(np.linspace(math.log(rate_A.min()), math.log(rate_A.max()), GRID_POINTS))
  form, bpc_1G, square_1 = _fit_draws(rate_A, bpc_A[None], grid_G)
  df = len(rate_A) - NUM_COEFFICIENTS
  scatter = math.sqrt(square_1[0] / df) if df else math.nan
  factor, scatter_p = 1.0, None
  if df and seeds_known:
    factor, scatter_p = _explained(rate_A, form[0], float(square_1[0]), df, sources)
  misfit = scatter_p is not None and scatter_p < 0.05
  moved_BA = bpc_A + deviations_BA * (1.0 if misfit else factor)
  if df and (misfit or not seeds_known):
    chi_square_B = rng.chisquare(df, len(moved_BA))
    normal_BA = rng.standard_normal(moved_BA.shape)
    moved_BA = moved_BA + scatter * normal_BA * np.sqrt(df / chi_square_B)[:, None]
  _, draws_BG, _ = _fit_draws(rate_A, moved_BA, grid_G)
  by_form = {
    name: float(grid_G[_fit_draws(rate_A, bpc_A[None], grid_G, (name,))[1][0].argmin()])
    for name in FORMS
  }
  return Curve(
    form=form[0],
    grid_G=grid_G,
    bpc_G=bpc_1G[0],
    minimum=float(grid_G[bpc_1G[0].argmin()]),
    minimum_by_form=by_form,
    scatter_sd=scatter,
    scatter_df=df,
    scatter_p=scatter_p,
    misfit=misfit,
    draws_BG=draws_BG,
    minimum_B=grid_G[draws_BG.argmin(-1)],
  )


def minimum_interval(curve: Curve, level: int | float) -> dict:
  """The minimum with its interval; an end on the edge of the measured range is open.

  `bracketed` is true when the minimum and both ends lie inside the range: only then do the arms
  show a best activation rate, and not just the best of those tried.
  """
  low, high = curve.grid_G[0], curve.grid_G[-1]
  tail = (1 - level) / 2
  ends = np.quantile(curve.minimum_B, [tail, 1 - tail])
  inside = low < curve.minimum < high
  return {
    "activation_rate": curve.minimum,
    "bpc": float(curve.bpc_G.min()),
    "interval": [float(ends[0]), float(ends[1])],
    "open_below": bool(ends[0] <= low),
    "open_above": bool(ends[1] >= high),
    "at_edge": "" if inside else ("lower" if curve.minimum <= low else "upper"),
    "bracketed": bool(inside and ends[0] > low and ends[1] < high),
    "share_lower_edge": float((curve.minimum_B <= low).mean()),
    "share_upper_edge": float((curve.minimum_B >= high).mean()),
  }


def region_below(
  curve: Curve, line: int | float, line_deviations_B: np.ndarray, level: int | float
) -> tuple[list[list[float]], list[list[float]], np.ndarray]:
  """Where the curve lies below a horizontal line (the dense arm).

  Returns:
    ranges of activation rate where the fitted curve is below; ranges where the simultaneous band
    of the difference is below throughout; the band [2, G] of the difference, curve minus line.
  """
  difference_G = curve.bpc_G - line
  draws_BG = curve.draws_BG - (line + line_deviations_B)[:, None]
  band = _simultaneous(difference_G, draws_BG - difference_G, level)
  return _ranges(curve.grid_G, difference_G < 0), _ranges(curve.grid_G, band[1] < 0), band


def _simultaneous(
  estimate_G: np.ndarray, deviations_BG: np.ndarray, level: int | float
) -> np.ndarray:
  """A band [2, G] that covers all values at once with probability `level`: pointwise quantiles, all
  stretched by the one factor that keeps the largest excursion of a draw inside (max-t)."""
  tail = (1 - level) / 2
  low, high = np.quantile(deviations_BG, [tail, 1 - tail], axis=0)
  below, above = np.maximum(-low, 1e-300), np.maximum(high, 1e-300)
  excursion = np.maximum(deviations_BG / above, -deviations_BG / below).max(-1)
  factor = max(1.0, float(np.quantile(excursion, level)))
  return np.stack([estimate_G - factor * below, estimate_G + factor * above])


def _fit_draws(
  rate_A: np.ndarray, bpc_BA: np.ndarray, grid_G: np.ndarray, forms: tuple[str, ...] = tuple(FORMS)
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Least squares under each form; per draw the form with the smallest sum of squares."""
  solves = [np.linalg.pinv(FORMS[name](rate_A)) for name in forms]
  squares = []
  for name, solve in zip(forms, solves, strict=True):
    fitted_BA = bpc_BA @ (FORMS[name](rate_A) @ solve).T
    squares.append(((bpc_BA - fitted_BA) ** 2).sum(-1))
  if len(rate_A) == NUM_COEFFICIENTS:  # every form passes through: rounding must not pick
    squares = [np.zeros_like(s) for s in squares]
  best_B = np.argmin(squares, axis=0)
  curves_BG = np.empty((len(bpc_BA), len(grid_G)))
  for index, (name, solve) in enumerate(zip(forms, solves, strict=True)):
    chosen = best_B == index
    curves_BG[chosen] = bpc_BA[chosen] @ (FORMS[name](grid_G) @ solve).T
  return [forms[b] for b in best_B], curves_BG, np.min(squares, axis=0)


def _explained(
  rate_A: np.ndarray, form: str, square: float, df: int, sources: list[VarianceSource]
) -> tuple[float, float]:
  """Compares the scatter about the curve with what seeds and documents leave there (an F test).

  Returns:
    the factor, at least 1, by which the scatter and what is known widen deviations when pooled;
    the probability of so large a scatter.
  """
  from scipy.special import fdtrc

  design = FORMS[form](rate_A)
  left = np.eye(len(rate_A)) - design @ np.linalg.pinv(design)
  expected, expected_df = uncertainty.total(left, sources)
  if not expected:
    return 1.0, 0.0 if square > 1e-18 else 1.0
  ratio = square / expected
  pooled = (df * ratio + expected_df) / (df + expected_df)
  return math.sqrt(max(1.0, pooled)), float(fdtrc(df, expected_df, ratio))


def _ranges(grid_G: np.ndarray, inside_G: np.ndarray) -> list[list[float]]:
  """Runs of true as [[first, last], ...] in grid values."""
  padded = np.concatenate([[False], inside_G, [False]]).astype(int)
  starts, ends = np.nonzero(np.diff(padded) == 1)[0], np.nonzero(np.diff(padded) == -1)[0] - 1
  return [[float(grid_G[a]), float(grid_G[b])] for a, b in zip(starts, ends, strict=True)]
