"""What an arm will score before it is paid for: a fit over finished runs, with its error.

A few forms are fitted (see `surrogate_law`); the one with the smallest error on shapes it has not
seen is taken, and the errors of all are kept. Nothing here needs a device.

How wide an interval is. What left-out shapes missed says how large errors are on the whole; where
they are larger is said by the residuals of the fit plus the jackknife over shapes of the prediction
itself, which grows away from the rows. The second is scaled so that its mean over the rows is the
first: adding them would count the spread of the fit twice (it did, and covered 99.8 % instead of
95 %). An arm of a size that is not among the rows gets at least the error of left-out sizes.
Student's t has one degree of freedom fewer than there are shapes.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from moe_parity.errors import UserError
from moe_parity.study.surrogate.laws import LAWS, Inputs, Law, Mean, Ridge, log_ranges
from moe_parity.study.surrogate.rows import SAME_SIZE, Rows

LEVEL = 0.95
MIN_SHAPES = 3
BORROWED_SPREAD = 0.1  # of the published exponents, when the rows are another's runs
VARIABLES = {"num_params": "N", "activation_rate": "r_a", "num_tokens": "D", "epochs": "epochs"}
_EDGE = 1.02  # a rounded budget is not called an extrapolation
Form = Mean | Ridge | Law


@dataclasses.dataclass(frozen=True)
class FormError:
  """Error of a form on the rows it did not see, root mean square of BPC.

  Attributes:
    seen: on the rows it was fitted to. shape, size: on left-out shapes and sizes; None where there
    is but one size. chosen: whether this form predicts.
  """

  form: str
  says: str
  seen: float
  shape: float
  size: float | None
  chosen: bool = False


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """A chosen form with what its uncertainty rests on.

  Attributes:
    theta: of all rows. folds: theta without each shape. shape_sd, size_sd: root mean square errors
    of ln BPC on left-out shapes and sizes (nan with one size).
    errors: of every form, in the order tried.
  """

  rows: Rows
  form: Form
  theta: np.ndarray
  folds: tuple[np.ndarray, ...]
  shape_sd: float
  size_sd: float
  errors: tuple[FormError, ...]

  def log_bpc(self, arms: Inputs) -> np.ndarray:
    return self.form.log_bpc(self.theta, arms)

  def log_sd(self, arms: Inputs) -> np.ndarray:
    """Standard error of ln BPC of one run of each arm."""
    spread = _jackknife(self._moved(arms)) + self._seen
    return np.sqrt(np.maximum(self._scale * spread, self._new_size(arms)))

  def predict(self, arms: Inputs, names: Sequence[str] = ()) -> list[dict]:
    """A row an arm: inputs, bpc, interval, extrapolates (sentences), nearest (a fitted row)."""
    values, spread = self.log_bpc(arms), self.quantile * self.log_sd(arms)
    found = []
    for i in range(len(arms)):
      inputs = {name: float(getattr(arms, name)[i]) for name in VARIABLES}
      found.append({
        "name": names[i] if names else "",
        **inputs,
        "bpc": float(np.exp(values[i])),
        "interval": [float(np.exp(values[i] - spread[i])), float(np.exp(values[i] + spread[i]))],
        "extrapolates": self.extrapolates(arms[i : i + 1]),
        "nearest": self.nearest(arms[i : i + 1]),
      })  # fmt: skip
    return found

  def differences(self, arms: Inputs, base: int) -> list[dict]:
    """BPC of each arm minus that of arm `base`; what moves both alike leaves the interval."""
    values, moved, other = self.log_bpc(arms), self._moved(arms), self._new_size(arms)
    spread = _jackknife(moved - moved[:, [base]]) + 2 * self._seen
    sd = np.sqrt(np.maximum(self._scale * spread, np.maximum(other, other[base])))
    centre = np.exp(values) - np.exp(values[base])
    half = self.quantile * sd * np.exp(values[base])
    return [
      {"difference": float(c), "interval": [float(c - h), float(c + h)]} if i != base else {}
      for i, (c, h) in enumerate(zip(centre, half, strict=True))
    ]

  @property
  def quantile(self) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(len(self.folds) - 1, (1 + LEVEL) / 2))

  def extrapolates(self, arm: Inputs) -> list[str]:
    """One sentence for everything about one arm that no fitted row of its kind reaches."""
    kind = "dense" if arm.dense[0] else "MoE"
    like = self.rows.inputs[self.rows.inputs.dense == arm.dense[0]]
    if not len(like):
      return [f"no {kind} run was fitted"]
    found = []
    for name, symbol in VARIABLES.items():
      value, low, high = (f(getattr(a, name)) for f, a in ((max, arm), (min, like), (max, like)))
      if value > high * _EDGE:
        found.append(f"{symbol}={value:.4g} is {value / high:.3g} times the largest {kind} fitted")
      elif value < low / _EDGE:
        found.append(f"{symbol}={value:.4g} is {low / value:.3g} times below the smallest {kind}")
    gap = _distances(arm, like).min()
    widest = max((_distances(like[i : i + 1], like, i).min() for i in range(len(like))), default=0)
    if not found and len(like) > 1 and gap > max(widest, SAME_SIZE):
      found.append(f"no fitted row is near: the nearest differs by a factor {math.exp(gap):.3g}")
    if not self._same_size(arm)[0] and not math.isfinite(self.size_sd):
      found.append("no other size was left out, so the interval lacks the error of a new size")
    return found

  def nearest(self, arm: Inputs) -> dict:
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
    mean = float(np.mean(_jackknife(self._moved(self.rows.inputs)) + self._seen))
    return self.shape_sd**2 / mean if mean else 0.0

  def _new_size(self, arms: Inputs) -> np.ndarray:
    """The least variance of an arm: that of left-out sizes for a size not among the rows."""
    known = math.isfinite(self.size_sd)
    return np.where(self._same_size(arms), 0.0, self.size_sd**2 if known else 0.0)

  def _moved(self, arms: Inputs) -> np.ndarray:
    return np.stack([self.form.log_bpc(theta, arms) for theta in self.folds])

  def _same_size(self, arms: Inputs) -> np.ndarray:
    rows = self.rows.inputs
    gap = np.abs(np.log(arms.num_params[:, None] / rows.num_params))
    return (gap + np.where(arms.dense[:, None] == rows.dense, 0, np.inf)).min(1) <= SAME_SIZE


def fit(rows: Rows, published: Rows | None = None) -> Surrogate:
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


def hidden_sizes(rows: Rows, published: Rows | None = None) -> list[dict]:
  """Each size hidden in turn: form chosen and fitted without it, then asked for its rows.

  Returns:
    a row a size: name, num_rows, error (root mean square, BPC), bias (mean, BPC), inside (rows
    within their interval), form. Sizes whose absence leaves too few shapes are left out.
  """
  found = []
  for size in np.unique(rows.size):
    hidden = rows.size == size
    if len(np.unique(rows.shape[~hidden])) < MIN_SHAPES:
      continue
    surrogate, asked = fit(rows.keep(~hidden), published), rows.keep(hidden)
    predicted = surrogate.predict(asked.inputs)
    off = np.array([p["bpc"] for p in predicted]) - asked.bpc
    pairs = zip(predicted, asked.bpc, strict=True)
    inside = sum(p["interval"][0] <= bpc <= p["interval"][1] for p, bpc in pairs)
    found.append({
      "hidden": rows.size_name(size),
      "num_rows": len(asked),
      "error": float(np.sqrt(np.mean(off**2))),
      "bias": float(off.mean()),
      "inside": int(inside),
      "form": surrogate.form.name,
    })  # fmt: skip
  return found


def _forms(published: Rows | None) -> list[Form]:
  forms: list[Form] = [Mean(), Ridge(), *LAWS]
  for law in LAWS if published else ():
    prior = law.shape_prior(law.fit(published.inputs, published.bpc), BORROWED_SPREAD)
    says = f"{law.says}; exponents near those of the paper's tables"
    forms.append(dataclasses.replace(law, name=f"{law.name}, borrowed", says=says, prior=prior))
  return forms


def _fit_form(form: Form, rows: Rows) -> Surrogate:
  """One form with its folds; `errors` is still empty."""
  theta = form.fit(rows.inputs, rows.bpc)
  folds, by_shape = _left_out(form, rows, rows.shape, theta)
  size_sd = math.nan
  if len(np.unique(rows.size)) > 1:
    size_sd = _rms(_left_out(form, rows, rows.size, theta)[1])
  return Surrogate(rows, form, theta, folds, _rms(by_shape), size_sd, ())


def _left_out(
  form: Form, rows: Rows, group: np.ndarray, start: np.ndarray
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
  size = None if math.isnan(found.size_sd) else found.size_sd * level
  return FormError(found.form.name, found.form.says, seen, found.shape_sd * level, size)


def _rms(values: np.ndarray) -> float:
  return float(np.sqrt(np.mean(values**2)))


def _jackknife(moved: np.ndarray) -> np.ndarray:
  """Jackknife variance of predictions [folds, arms]."""
  return (len(moved) - 1) / len(moved) * ((moved - moved.mean(0)) ** 2).sum(0)


def _distances(arm: Inputs, rows: Inputs, skip: int | None = None) -> np.ndarray:
  """Largest difference over the variables, in logarithms, from one arm to every row."""
  distance = np.abs(log_ranges(rows) - log_ranges(arm)).max(1)
  if skip is not None:
    distance[skip] = np.inf
  return distance
