"""The forms a surrogate may take: bits per character from size, sparsity, data and reuse.

The law (joint of arXiv:2502.05172 in spirit, with its own sparsity term and the reuse of
arXiv:2305.16264):

    BPC = E + (N/N0)^-a (A + G r^-g) e^(h dense) + B r^z (D_eff/D0)^-b
    D_eff = U (1 + R (1 - exp(-(epochs - 1) / R))),  U = D / epochs

N0, D0 are the geometric means of the fitted rows. Fitted in log space with a normal prior on every
parameter, so that what the rows say nothing about (R without repeated data, h without a dense row)
stays where the prior puts it. Also fitted: a ridge regression and a constant, to be beaten.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe_parity.errors import UserError

NOISE = 0.002  # relative; the paper's one repeated run differs by 0.0006 of 0.4667
RIDGE = 0.1
PARAMETERS = ("E", "A", "a", "G", "g", "B", "b", "R", "z", "h")  # all but z and h in logarithms
SHARES = {"E": 0.7, "A": 0.1, "G": 0.03, "B": 0.1}  # prior centers, of the lowest BPC
CENTERS = {"a": 0.3, "g": 0.7, "b": 0.3, "R": 15.4}  # R as Muennighoff et al. measured it
SPREADS = {"E": 1.0, "A": 2.0, "G": 2.0, "B": 2.0, "a": 0.7, "g": 0.7, "b": 0.7, "R": 0.7}
SPREADS |= {"z": 0.3, "h": 0.3}
SHAPE = ("a", "g", "b", "R", "z", "h")  # what another text or tokenizer may share
_ABSENT = -60.0  # logarithm of a term that a form leaves out


@dataclasses.dataclass(frozen=True)
class ArmFeatures:
  """Arms as arrays [rows]: non-vocabulary parameters, r_a in 0..1, tokens seen, passes over the
  unique ones. r_a = 1 is dense. Any sequences are taken and held as float64 arrays.

  Raises:
    UserError: a value outside its domain.
  """

  num_params: np.ndarray | Sequence[float]
  activation_rate: np.ndarray | Sequence[float]
  num_tokens: np.ndarray | Sequence[float]
  epochs: np.ndarray | Sequence[float]

  def __post_init__(self):
    for name, low, high in (
      ("num_params", 0, np.inf),
      ("activation_rate", 0, 1),
      ("num_tokens", 0, np.inf),
      ("epochs", 1, np.inf),
    ):
      values = np.asarray(getattr(self, name), np.float64)
      bad = ~(np.isfinite(values) & (values <= high) & (values >= low) & (values > 0))
      if bad.any():
        raise UserError(
          f"{name}={values[bad][0]:g} is not a finite number "
          + (f"of at least {low}" if name == "epochs" else f"above {low}")
          + (f" and at most {high}; dense is 1" if name == "activation_rate" else "")
        )
      object.__setattr__(self, name, values)

  def __getitem__(self, rows) -> "ArmFeatures":
    return ArmFeatures(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

  def __len__(self) -> int:
    return len(self.num_params)

  @property
  def dense(self) -> np.ndarray:
    return self.activation_rate == 1


@dataclasses.dataclass(frozen=True)
class Mean:
  """The mean of the rows: what any other form must beat."""

  name: str = "mean"
  description: str = "the mean of the fitted rows"

  def fit(self, rows: ArmFeatures, bpc: np.ndarray, start=None) -> np.ndarray:
    return np.array([np.log(bpc).mean()])

  def log_bpc(self, theta: np.ndarray, rows: ArmFeatures) -> np.ndarray:
    return np.full(len(rows), theta[0])

  def uncertain(self, theta, rows, bpc, arms) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((len(arms), 1)), np.zeros((1, 1))


@dataclasses.dataclass(frozen=True)
class Ridge:
  """Ridge regression of log BPC on a quadratic in the logarithms; the penalty spares the mean."""

  name: str = "ridge"
  description: str = f"ridge regression, quadratic in ln N, ln r_a, ln D, penalty {RIDGE}"

  def fit(self, rows: ArmFeatures, bpc: np.ndarray, start=None) -> np.ndarray:
    center = np.array([np.log(rows.num_params).mean(), np.log(rows.num_tokens).mean()])
    X = self._columns(rows, center)
    penalty = RIDGE * np.eye(X.shape[1])
    penalty[0, 0] = 0
    return np.concatenate([center, np.linalg.solve(X.T @ X + penalty, X.T @ np.log(bpc))])

  def log_bpc(self, theta: np.ndarray, rows: ArmFeatures) -> np.ndarray:
    return self._columns(rows, theta[:2]) @ theta[2:]

  def uncertain(self, theta, rows, bpc, arms) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((len(arms), 1)), np.zeros((1, 1))

  def _columns(self, rows: ArmFeatures, center: np.ndarray) -> np.ndarray:
    n, d = np.log(rows.num_params) - center[0], np.log(rows.num_tokens) - center[1]
    r, e = np.log(rows.activation_rate), np.log(rows.epochs)
    columns = [np.ones_like(n), n, r, d, e, rows.dense, r * r, r * d, d * d, n * r, n * d]
    return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True)
class LossLaw:
  """The law above, or a part of it.

  Attributes:
    absent: terms left out: "A" (G r^-g alone), "z", "h".
    prior: parameter -> (center, spread), in logarithms but for z and h; over the defaults.
  """

  name: str
  description: str
  absent: tuple[str, ...] = ()
  prior: tuple[tuple[str, tuple[float, float]], ...] = ()

  def fit(self, rows: ArmFeatures, bpc: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Penalized least squares. Returns ln N0, ln D0 and the parameters in the order above."""
    from scipy.optimize import least_squares

    origin = np.array([np.log(rows.num_params).mean(), np.log(rows.num_tokens).mean()])
    center, spread = self._prior(float(bpc.min()))
    free = np.array([name not in self.absent for name in PARAMETERS])
    target = np.log(bpc)

    def full(free_values: np.ndarray) -> np.ndarray:
      parameters = np.array([_ABSENT if n in ("A", "G") else 0.0 for n in PARAMETERS])
      parameters[free] = free_values
      return np.concatenate([origin, parameters])

    def residuals(free_values: np.ndarray) -> np.ndarray:
      misfit = (self.log_bpc(full(free_values), rows) - target) / NOISE
      return np.concatenate([misfit, (free_values - center[free]) / spread[free]])

    def jacobian(free_values: np.ndarray) -> np.ndarray:
      slopes = _slopes(full(free_values), rows)[:, free] / NOISE
      return np.concatenate([slopes, np.diag(1 / spread[free])])

    begin = center if start is None else start[2:]
    solved = least_squares(residuals, begin[free], jac=jacobian, method="lm", max_nfev=400)
    return full(solved.x)

  def log_bpc(self, theta: np.ndarray, rows: ArmFeatures) -> np.ndarray:
    return np.log(sum(_terms(theta, rows)[:4]))

  def uncertain(
    self, theta: np.ndarray, rows: ArmFeatures, bpc: np.ndarray, arms: ArmFeatures
  ) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the arms' ln BPC in the parameters, [arms, free], and the covariance that fitted
    rows and prior leave of these (Laplace's approximation)."""
    free = np.array([name not in self.absent for name in PARAMETERS])
    _, spread = self._prior(float(bpc.min()))
    seen = _slopes(theta, rows)[:, free] / NOISE
    return _slopes(theta, arms)[:, free], np.linalg.inv(seen.T @ seen + np.diag(spread[free] ** -2))

  def shape_prior(self, theta: np.ndarray, spread: float) -> tuple:
    """A prior for another text: the exponents found here, with `spread` around each."""
    parameters = dict(zip(PARAMETERS, theta[2:], strict=True))
    return tuple((name, (parameters[name], spread)) for name in SHAPE if name not in self.absent)

  def _prior(self, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    centers = {name: np.log(share * lowest) for name, share in SHARES.items()}
    centers |= {name: np.log(value) for name, value in CENTERS.items()} | {"z": 0.0, "h": 0.0}
    spreads = dict(SPREADS)
    for name, (center, spread) in self.prior:
      centers[name], spreads[name] = center, spread
    return tuple(np.array([of[name] for name in PARAMETERS]) for of in (centers, spreads))


ADDITIVE = LossLaw(
  "additive law", "E + G N^-a r_a^-g + B D_eff^-b: size and sparsity in one term, data in another",
  absent=("A", "z", "h"),
)  # fmt: skip
COUPLED = LossLaw(
  "coupled law", "additive law, with data worth r_a^z and an offset for dense", absent=("A",)
)
SATURATING = LossLaw(
  "saturating law", "E + N^-a (A + G r_a^-g) + B r_a^z D_eff^-b: sparsity costs ever less as r_a "
  "grows; an offset for dense"
)  # fmt: skip
LAWS = (ADDITIVE, COUPLED, SATURATING)


def log_ranges(rows: ArmFeatures) -> np.ndarray:
  """ln of (N, r_a, D, epochs) as [rows, 4]: the space in which distances are measured."""
  fields: Sequence[str] = [field.name for field in dataclasses.fields(ArmFeatures)]
  return np.log(np.stack([getattr(rows, name) for name in fields], axis=1))


def _exp(x):
  """e^x; far outside, where a trial step may go, so large that the fit turns back."""
  return np.exp(np.minimum(x, 100.0))


def _terms(theta: np.ndarray, rows: ArmFeatures):
  """(E, A term, G term, data term, what slopes need): n, r, ln(D_eff/D0) and its slope in R."""
  (n0, d0), p = theta[:2], dict(zip(PARAMETERS, theta[2:], strict=True))
  a, g, b, R = (_exp(p[name]) for name in ("a", "g", "b", "R"))
  n, r, extra = np.log(rows.num_params) - n0, np.log(rows.activation_rate), rows.epochs - 1
  fade = np.exp(-extra / R)
  worth = 1 + R * (1 - fade)
  d = np.log(rows.num_tokens / rows.epochs) + np.log(worth) - d0
  d_slope = (R * (1 - fade) - extra * fade) / worth
  size = -a * n + p["h"] * rows.dense
  floor = np.full_like(n, _exp(p["E"]))
  width, sparse = _exp(p["A"] + size), _exp(p["G"] + size - g * r)
  data = _exp(p["B"] + p["z"] * r - b * d)
  return floor, width, sparse, data, (n, r, d, d_slope, a, g, b)


def _slopes(theta: np.ndarray, rows: ArmFeatures) -> np.ndarray:
  """d ln BPC / d parameter, [rows, parameters]."""
  floor, width, sparse, data, (n, r, d, d_slope, a, g, b) = _terms(theta, rows)
  slopes = {
    "E": floor, "A": width, "a": -a * n * (width + sparse), "G": sparse, "g": -g * r * sparse,
    "B": data, "b": -b * d * data, "R": -b * d_slope * data, "z": r * data,
    "h": rows.dense * (width + sparse),
  }  # fmt: skip
  total = floor + width + sparse + data
  return np.stack([slopes[name] for name in PARAMETERS], axis=1) / total[:, None]
