"""Muennighoff's law fitted to the runs of a data reuse study.

The law (arXiv 2305.16264), at one N and for each activation rate r with its tokens D:

    L(r, e) = a_r + B D_eff^-beta,   D_eff = U (1 + R* (1 - exp(-(e - 1) / R*))),   U = D / e

beta is the published one: runs at one D per rate cannot tell it from B. Fitted are a_r, B and R*,
the number of epochs over which repeated text loses its worth (15.4 for the authors' dense models).
Their second term, for models too large for their text, is left out: N is the same in all runs.
"""

import math
from typing import NamedTuple

import numpy as np

from moe_parity.planning.scaling_laws import REUSE_EXPONENT, REUSE_TOKEN_DECAY
from moe_parity.study.analysis import uncertainty

DECAYS = np.exp(np.linspace(math.log(0.05), math.log(2000), 161))
NUM_DRAWS = 1000


class Point(NamedTuple):
  """One arm under one scheme, averaged over seeds; cross_entropy in nats a token, validation."""

  name: str
  activation_rate: int | float
  epochs: int | float
  num_tokens: int
  cross_entropy: int | float


class Noise(NamedTuple):
  """Standard deviation and its degrees of freedom; with df 0 nothing is known and sd is nan."""

  sd: int | float
  df: int


def effective_tokens(tokens: np.ndarray, epochs: np.ndarray, decay: int | float) -> np.ndarray:
  """D_eff of tokens seen in so many epochs, for R* = decay."""
  return tokens / epochs * (1 + decay * (1 - np.exp(-(epochs - 1) / decay)))


def fit(points: list[Point], noise: Noise) -> dict | None:
  """R*, its interval from the residuals, and how much better it fits than the published R*.

  Args:
    noise: of a point against the others of its arm; a scatter about the law that is larger than it
      explains (p < 0.05) is a misfit.
  None: fewer runs than a level a rate, B, R* and one to spare; or no rate with several epochs.
  """
  from scipy.special import fdtrc

  names = sorted({p.name for p in points})
  if len(points) < len(names) + 3 or len({round(p.epochs, 3) for p in points}) < 3:
    return None
  loss = np.array([p.cross_entropy for p in points])
  projections = [_project(points, names, decay) for decay in DECAYS]
  squares_R = np.array([squares(loss[None])[0] for _, squares in projections])
  best = int(squares_R.argmin())
  df = len(points) - len(names) - 2
  sd = math.sqrt(squares_R[best] / df)
  rng = np.random.default_rng(uncertainty.SEED)
  fitted = projections[best][0](loss)
  scale_B = sd * np.sqrt(df / rng.chisquare(df, NUM_DRAWS))
  moved = fitted + scale_B[:, None] * rng.standard_normal((NUM_DRAWS, len(points)))
  squares_RB = np.array([squares(moved) for _, squares in projections])
  tail = (1 - uncertainty.LEVEL) / 2
  ends = np.quantile(DECAYS[squares_RB.argmin(0)], [tail, 1 - tail])
  ratio = (sd / noise.sd) ** 2 if noise.df and noise.sd else 0.0
  misfit = ratio > 0 and bool(fdtrc(df, noise.df, ratio) < 0.05)
  published = _project(points, names, REUSE_TOKEN_DECAY)[1](loss[None])[0]
  return {
    "name": "Muennighoff",
    "token_decay_published": REUSE_TOKEN_DECAY,
    "token_decay": float(DECAYS[best]),
    "interval": ends.tolist(),
    "at_edge": bool(best in (0, len(DECAYS) - 1)),
    "open": [bool(ends[0] <= DECAYS[1]), bool(ends[1] >= DECAYS[-2])],
    "exponent": REUSE_EXPONENT,
    "num_runs": len(points),
    "rmse": math.sqrt(squares_R[best] / len(points)),
    "noise": noise.sd if noise.df else None,
    "misfit": misfit,
    "rmse_published": math.sqrt(published / len(points)),
    "curves": _curves(points, names, float(DECAYS[best]), loss),
    "points": [
      {"name": p.name, "activation_rate": p.activation_rate, "epochs": p.epochs,
       "cross_entropy": p.cross_entropy} for p in points
    ],
  }  # fmt: skip


def _design(
  tokens: np.ndarray, epochs: np.ndarray, index: np.ndarray, names: list[str], decay: int | float
) -> np.ndarray:
  levels = (index[:, None] == np.arange(len(names))).astype(float)
  worth = effective_tokens(tokens, epochs, decay) ** -REUSE_EXPONENT
  return np.concatenate([levels, worth[:, None]], -1)


def _project(points: list[Point], names: list[str], decay: int | float):
  """(loss -> fitted loss, losses [B, points] -> sums of squares [B]) for one R*.

  B below zero would mean that more text is worse; such a fit counts as the one without text.
  """
  tokens = np.array([p.num_tokens for p in points], float)
  epochs = np.array([p.epochs for p in points], float)
  index = np.array([names.index(p.name) for p in points])
  full = _design(tokens, epochs, index, names, decay)
  solve, flat = np.linalg.pinv(full), np.linalg.pinv(full[:, :-1])

  def fitted(loss: np.ndarray) -> np.ndarray:
    coefficients = loss @ solve.T
    plain = (loss @ flat.T) @ full[:, :-1].T
    return np.where(coefficients[..., -1:] > 0, coefficients @ full.T, plain)

  return fitted, lambda losses: ((losses - fitted(losses)) ** 2).sum(-1)


def _curves(points: list[Point], names: list[str], decay: float, loss: np.ndarray) -> list[dict]:
  tokens = np.array([p.num_tokens for p in points], float)
  epochs = np.array([p.epochs for p in points], float)
  index = np.array([names.index(p.name) for p in points])
  grid = np.exp(np.linspace(0, math.log(max(epochs.max(), 1.01)), 41))
  rows = {}
  for label, value in (("cross_entropy", decay), ("cross_entropy_published", REUSE_TOKEN_DECAY)):
    coefficients = np.linalg.pinv(_design(tokens, epochs, index, names, value)) @ loss
    for i, name in enumerate(names):
      first = next(p for p in points if p.name == name)
      row = rows.setdefault(name, {"name": name, "activation_rate": first.activation_rate,
                                   "epochs": grid.tolist()})  # fmt: skip
      worth = effective_tokens(np.full(len(grid), float(first.num_tokens)), grid, value)
      row[label] = (coefficients[i] + coefficients[-1] * worth**-REUSE_EXPONENT).tolist()
  return list(rows.values())
