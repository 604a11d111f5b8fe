"""What an arm will score before it is paid for: a fit over finished runs, with its error.

A few forms are fitted (see `laws`); the one with the smallest error on shapes it has not seen is
taken, and the errors of all are kept. Nothing here needs a device.

How wide an interval is. An arm's error is at least that of what it has in common with rows that
were left out of the fit: of shapes; of whole sizes, if no fitted row has its size; of ways to reuse
text, if no fitted row of its size reads its text about as often; and of the worst of these groups,
if it is outside all fitted ones. Each goes with Student's t for the
number of groups left out less one, so a few sizes make a wide interval. Where shapes are concerned,
the residuals plus the jackknife over shapes say where errors are larger; they are scaled so that
their mean over the rows is the error of left-out shapes: adding them would count the spread of the
fit twice. And where the rows say nothing about a parameter (text read again in none of them), its
prior does.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from moe_parity.errors import UserError
from moe_parity.study.surrogate.laws import LAWS, ArmFeatures, LossLaw, Mean, Ridge, log_ranges
from moe_parity.study.surrogate.rows import SAME_REUSE, SAME_SIZE, ScoredRuns

LEVEL = 0.95
MIN_SHAPES = 3
BORROWED_SPREAD = 0.1  # of the published exponents, when the rows are another's runs
VARIABLES = {"num_params": "N", "activation_rate": "r_a", "num_tokens": "D", "epochs": "epochs"}
_EDGE = 1.02  # a rounded budget is not called an extrapolation
Form = Mean | Ridge | LossLaw


@dataclasses.dataclass(frozen=True)
class FormError:
  """Error of a form on the rows it did not see, root mean square of BPC.

  Attributes:
    seen: on the rows it was fitted to. shape, size, reuse: on left-out shapes, sizes and ways to
    reuse text; None where there is but one. chosen: whether this form predicts.
  """

  form: str
  description: str
  seen: float
  shape: float
  size: float | None
  reuse: float | None
  chosen: bool = False


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """A chosen form with what its uncertainty rests on.

  Attributes:
    theta: of all rows. folds: theta without each shape. shape_sd, size_sd, reuse_sd: root mean
    square errors of ln BPC on left-out shapes, sizes and ways to reuse text (nan where there is
    but one). size_worst, reuse_worst: of the group that was predicted worst.
    errors: of every form, in the order tried.
  """

  rows: ScoredRuns
  form: Form
  theta: np.ndarray
  folds: tuple[np.ndarray, ...]
  shape_sd: float
  size_sd: float
  reuse_sd: float
  size_worst: float
  reuse_worst: float
  errors: tuple[FormError, ...]

  def log_bpc(self, arms: ArmFeatures) -> np.ndarray:
    return self.form.log_bpc(self.theta, arms)

  def log_half_width(self, arms: ArmFeatures) -> np.ndarray:
    """Half of the interval of ln BPC of one run of each arm."""
    spread = self._scale * (_jackknife(self._fold_predictions(arms)) + self._seen)
    spread = np.maximum(spread, self._parameter_variance(arms))
    return np.maximum(self.quantile * np.sqrt(spread), self._unseen_group(arms))

  def predict(self, arms: ArmFeatures, names: Sequence[str] = ()) -> list[dict]:
    """A row an arm: inputs, bpc, interval, extrapolates (sentences), nearest (a fitted row)."""
    values, spread = self.log_bpc(arms), self.log_half_width(arms)
    predictions = []
    for i in range(len(arms)):
      inputs = {name: float(getattr(arms, name)[i]) for name in VARIABLES}
      predictions.append({
        "name": names[i] if names else "",
        **inputs,
        "bpc": float(np.exp(values[i])),
        "interval": [float(np.exp(values[i] - spread[i])), float(np.exp(values[i] + spread[i]))],
        "extrapolates": self.extrapolates(arms[i : i + 1]),
        "nearest": self.nearest(arms[i : i + 1]),
      })  # fmt: skip
    return predictions

  def differences(self, arms: ArmFeatures, base: int) -> list[dict]:
    """BPC of each arm minus that of arm `base`; what moves both alike leaves the interval."""
    values, folds = self.log_bpc(arms), self._fold_predictions(arms)
    spread = self._scale * (_jackknife(folds - folds[:, [base]]) + 2 * self._seen)
    spread = np.maximum(spread, self._parameter_variance(arms, base))
    unseen = self._unseen_group(arms)
    half = np.maximum(self.quantile * np.sqrt(spread), np.maximum(unseen, unseen[base]))
    center = np.exp(values) - np.exp(values[base])
    half = half * np.exp(values[base])
    return [
      {"difference": float(c), "interval": [float(c - h), float(c + h)]} if i != base else {}
      for i, (c, h) in enumerate(zip(center, half, strict=True))
    ]

  @property
  def quantile(self) -> float:
    return _t_quantile(len(self.folds))

  def extrapolates(self, arm: ArmFeatures) -> list[str]:
    """One sentence for everything about one arm that no fitted row of its kind reaches."""
    kind = "dense" if arm.dense[0] else "MoE"
    like = self.rows.inputs[self.rows.inputs.dense == arm.dense[0]]
    if not len(like):
      return [f"no {kind} run was fitted"]
    sentences = []
    for name, symbol in VARIABLES.items():
      value, low, high = (f(getattr(a, name)) for f, a in ((max, arm), (min, like), (max, like)))
      if value > high * _EDGE:
        sentences.append(
          f"{symbol}={value:.4g} is {value / high:.3g} times the largest {kind} fitted"
        )
      elif value < low / _EDGE:
        sentences.append(
          f"{symbol}={value:.4g} is {low / value:.3g} times below the smallest {kind}"
        )
    gap = _distances(arm, like).min()
    widest = max((_distances(like[i : i + 1], like, i).min() for i in range(len(like))), default=0)
    if not sentences and len(like) > 1 and gap > max(widest, SAME_SIZE):
      sentences.append(
        f"no fitted row is near: the nearest differs by a factor {math.exp(gap):.3g}"
      )
    new_size, new_reuse = (bool(new[0]) for new in self._is_new(arm))
    if new_size:
      basis = "the interval is that of left-out sizes"
      if not math.isfinite(self.size_sd):
        basis = "no size could be left out, so the interval lacks the error of a new size"
      sentences.append(f"no {kind} run of this size was fitted: {basis}")
    elif new_reuse:
      basis = "the interval is that of left-out ways to reuse text"
      if not math.isfinite(self.reuse_sd):
        basis = "none could be left out, so the interval rests on the prior of R"
      sentences.append(f"no {kind} run of this size reads its text about as often: {basis}")
    return sentences

  def nearest(self, arm: ArmFeatures) -> dict:
    """The fitted row nearest in logarithms, and this arm over it in every variable."""
    rows = self.rows.inputs
    kind = np.where(rows.dense == arm.dense[0], 0.0, 1e3)
    index = int(np.argmin(_distances(arm, rows) + kind))
    ratios = np.exp(log_ranges(arm)[0] - log_ranges(rows[index : index + 1])[0])
    times = {name: float(x) for name, x in zip(VARIABLES, ratios, strict=True)}
    return {"row": self.rows.labels[index], "times": times}

  @functools.cached_property
  def _seen(self) -> float:
    """Mean square error of ln BPC on the fitted rows."""
    return float(np.mean((self.log_bpc(self.rows.inputs) - np.log(self.rows.bpc)) ** 2))

  @functools.cached_property
  def _scale(self) -> float:
    """Brings the mean spread at the rows to the square error on left-out shapes."""
    mean = float(np.mean(_jackknife(self._fold_predictions(self.rows.inputs)) + self._seen))
    return self.shape_sd**2 / mean if mean else 0.0

  def _unseen_group(self, arms: ArmFeatures) -> np.ndarray:
    """The least half width of ln BPC of arms of a new size, or that reuse text in a new way."""
    new_size, new_reuse = self._is_new(arms)
    half = np.zeros(len(arms))
    for new, name, sd, worst, groups in (
      (new_size, "num_params", self.size_sd, self.size_worst, self.rows.size),
      (new_reuse, "epochs", self.reuse_sd, self.reuse_worst, self.rows.reuse),
    ):
      if math.isfinite(sd):
        asked, fitted = getattr(arms, name), getattr(self.rows.inputs, name)
        outside = (asked > fitted.max() * _EDGE) | (asked < fitted.min() / _EDGE)
        least = _t_quantile(len(np.unique(groups))) * np.where(outside, worst, sd)
        half = np.where(new, np.maximum(half, least), half)
    return half

  def _parameter_variance(self, arms: ArmFeatures, base: int | None = None) -> np.ndarray:
    """Variance of ln BPC (over that of arm `base`) from what rows and prior leave open."""
    slopes, covariance = self.form.uncertain(self.theta, self.rows.inputs, self.rows.bpc, arms)
    if base is not None:
      slopes = slopes - slopes[[base]]
    return np.einsum("ap,pq,aq->a", slopes, covariance, slopes)

  def _fold_predictions(self, arms: ArmFeatures) -> np.ndarray:
    return np.stack([self.form.log_bpc(theta, arms) for theta in self.folds])

  def _is_new(self, arms: ArmFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Whether no fitted row has the arm's kind and size; whether none of those that do reads its
    text about as often."""
    rows = self.rows.inputs
    size_gap = np.abs(np.log(arms.num_params[:, None] / rows.num_params))
    size_gap = np.where(arms.dense[:, None] == rows.dense, size_gap, np.inf)
    reuse_gap = np.abs(np.log(arms.epochs[:, None] / rows.epochs))
    alike = size_gap <= SAME_SIZE
    return ~alike.any(1), ~(alike & (reuse_gap <= SAME_REUSE)).any(1)


def fit(rows: ScoredRuns, published: ScoredRuns | None = None) -> Surrogate:
  """Fits every form, and takes the one with the smallest error on left-out shapes.

  Args:
    rows: what to fit, on one held-out text.
    published: the paper's rows, when `rows` are others. Each law is then also tried with the
      exponents they give as its prior (within about 10 %): levels belong to a text, slopes less.
  Raises:
    UserError: fewer than three shapes.
  """
  if len(np.unique(rows.shape)) < MIN_SHAPES:
    raise UserError(
      f"{rows.source} hold {len(np.unique(rows.shape))} different shapes; a surrogate takes "
      f"{MIN_SHAPES} or more, so finish more arms or leave --runs out"
    )
  tried = [_fit_form(form, rows) for form in _forms(published)]
  best = min(range(len(tried)), key=lambda i: tried[i].shape_sd)
  errors = [
    dataclasses.replace(_error(found), chosen=i == best) for i, found in enumerate(tried)
  ]  # fmt: skip
  return dataclasses.replace(tried[best], errors=tuple(errors))


def _forms(published: ScoredRuns | None) -> list[Form]:
  forms: list[Form] = [Mean(), Ridge(), *LAWS]
  for law in LAWS if published else ():
    prior = law.shape_prior(law.fit(published.inputs, published.bpc), BORROWED_SPREAD)
    description = f"{law.description}; exponents near those of the paper's tables"
    forms.append(
      dataclasses.replace(law, name=f"{law.name}, borrowed", description=description, prior=prior)
    )
  return forms


def _fit_form(form: Form, rows: ScoredRuns) -> Surrogate:
  """One form with its folds; `errors` is still empty."""
  theta = form.fit(rows.inputs, rows.bpc)
  folds, by_shape = _left_out(form, rows, rows.shape, theta)
  sds, worst = [], []
  for group in (rows.size, rows.reuse):
    numbers = np.unique(group)
    error = _left_out(form, rows, group, theta)[1] if len(numbers) > 1 else np.full(1, math.nan)
    sds.append(_rms(error))
    several = len(numbers) > 1
    worst.append(max(_rms(error[group == n]) for n in numbers) if several else math.nan)
  return Surrogate(rows, form, theta, folds, _rms(by_shape), *sds, *worst, ())


def _left_out(
  form: Form, rows: ScoredRuns, group: np.ndarray, start: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
  """The form without each group, and its errors of ln BPC on the group it did not see."""
  folds, error = [], np.zeros(len(rows))
  for number in np.unique(group):
    out = group == number
    folds.append(form.fit(rows.inputs[~out], rows.bpc[~out], start))
    error[out] = form.log_bpc(folds[-1], rows.inputs[out]) - np.log(rows.bpc[out])
  return tuple(folds), error


def _error(found: Surrogate) -> FormError:
  rows = found.rows
  level = float(np.exp(np.log(rows.bpc).mean()))
  seen = _rms(found.log_bpc(rows.inputs) - np.log(rows.bpc)) * level
  others = [None if math.isnan(sd) else sd * level for sd in (found.size_sd, found.reuse_sd)]
  return FormError(found.form.name, found.form.description, seen, found.shape_sd * level, *others)


def _t_quantile(num_groups: int) -> float:
  """Student's t for groups that were left out in turn."""
  from scipy.special import stdtrit

  return float(stdtrit(num_groups - 1, (1 + LEVEL) / 2))


def _rms(values: np.ndarray) -> float:
  return float(np.sqrt(np.mean(values**2)))


def _jackknife(moved: np.ndarray) -> np.ndarray:
  """Jackknife variance of predictions [folds, arms]."""
  return (len(moved) - 1) / len(moved) * ((moved - moved.mean(0)) ** 2).sum(0)


def _distances(arm: ArmFeatures, rows: ArmFeatures, skip: int | None = None) -> np.ndarray:
  """Largest difference over the variables, in logarithms, from one arm to every row."""
  distance = np.abs(log_ranges(rows) - log_ranges(arm)).max(1)
  if skip is not None:
    distance[skip] = np.inf
  return distance
