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

from moe_parity.study.analysis import bootstrap

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
    noise_sd_A, noise_df: what the draws used for each arm besides the documents.
    misfit: the scatter is larger than seeds explain (p < 0.05): the arms do not follow the curve.
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
  noise_sd_A: np.ndarray
  noise_df: int
  misfit: bool
  draws_BG: np.ndarray
  minimum_B: np.ndarray


def fit(
  rate_A: np.ndarray,
  bpc_A: np.ndarray,
  num_seeds_A: np.ndarray,
  document_deviations_BA: np.ndarray,
  noise: bootstrap.SeedNoise,
  rng: np.random.Generator,
) -> Curve:
  """Fits the arms (mean over seeds) and draws curves from what is uncertain.

  Besides the documents, each arm moves by training noise: the scatter about the curve pooled with
  the spread between seeds, or the scatter alone where it is the larger (an F test at 5 %).

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
  noise_sd_A, noise_df, misfit = _arm_noise(scatter, df, num_seeds_A, noise, rng)
  moved_BA = bpc_A + document_deviations_BA
  if noise_df:
    moved_BA = moved_BA + bootstrap.noise_deviations(noise_sd_A, noise_df, len(moved_BA), rng)
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
    noise_sd_A=noise_sd_A,
    noise_df=noise_df,
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
  band = bootstrap.simultaneous(difference_G, draws_BG - difference_G, level)
  return _ranges(curve.grid_G, difference_G < 0), _ranges(curve.grid_G, band[1] < 0), band


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


def _arm_noise(
  scatter: int | float,
  df: int,
  num_seeds_A: np.ndarray,
  noise: bootstrap.SeedNoise,
  rng: np.random.Generator,
) -> tuple[np.ndarray, int, bool]:
  """Standard deviation of every arm's mean about the curve, its degrees of freedom, and misfit."""
  even_A = np.full(len(num_seeds_A), scatter if df else 0.0)
  if not noise.df:
    return even_A, df, False
  single_A = 1 / np.sqrt(num_seeds_A)
  if not df:
    return noise.sd * single_A, noise.df, False
  seeds = len(num_seeds_A) / (1 / num_seeds_A).sum()
  ratio = scatter**2 * seeds / noise.sd**2 if noise.sd else math.inf
  if (rng.f(df, noise.df, 20_000) >= ratio).mean() < 0.05:
    return even_A, df, True
  pooled = math.sqrt((df * scatter**2 * seeds + noise.df * noise.sd**2) / (df + noise.df))
  return pooled * single_A, df + noise.df, False


def _ranges(grid_G: np.ndarray, inside_G: np.ndarray) -> list[list[float]]:
  """Runs of true as [[first, last], ...] in grid values."""
  padded = np.concatenate([[False], inside_G, [False]]).astype(int)
  starts, ends = np.nonzero(np.diff(padded) == 1)[0], np.nonzero(np.diff(padded) == -1)[0] - 1
  return [[float(grid_G[a]), float(grid_G[b])] for a, b in zip(starts, ends, strict=True)]
