"""How well a surrogate predicts sizes, and ways to reuse text, that it was not fitted on."""

import numpy as np

from moe_parity.study.surrogate.fit import MIN_SHAPES, fit
from moe_parity.study.surrogate.rows import ScoredRuns


def leave_one_size_out(rows: ScoredRuns, published: ScoredRuns | None = None) -> list[dict]:
  """`leave_out` by size."""
  return leave_out(rows, rows.size, published)


def leave_one_reuse_out(rows: ScoredRuns, published: ScoredRuns | None = None) -> list[dict]:
  """`leave_out` by how often text is read, within a size."""
  return leave_out(rows, rows.reuse, published)


def leave_out(
  rows: ScoredRuns, group: np.ndarray, published: ScoredRuns | None = None
) -> list[dict]:
  """Each group of rows hidden in turn: form chosen and fitted without it, then asked for its rows.

  Returns:
    a row a group: its name, num_rows, error (root mean square, BPC), bias (mean, BPC), inside (rows
    within their interval), form. Groups whose absence leaves too few shapes are left out.
  """
  groups = []
  for number in np.unique(group):
    hidden = group == number
    if len(np.unique(rows.shape[~hidden])) < MIN_SHAPES:
      continue
    surrogate, asked = fit(rows.keep(~hidden), published), rows.keep(hidden)
    predicted = surrogate.predict(asked.inputs)
    off = np.array([p["bpc"] for p in predicted]) - asked.bpc
    pairs = zip(predicted, asked.bpc, strict=True)
    inside = sum(p["interval"][0] <= bpc <= p["interval"][1] for p, bpc in pairs)
    epochs = asked.inputs.epochs
    times = "once" if epochs.max() < 1.02 else f"{epochs.min():.2g} to {epochs.max():.2g} times"
    groups.append({
      "hidden": f"{rows.size_name(asked.size[0])}, read {times}",
      "num_rows": len(asked),
      "error": float(np.sqrt(np.mean(off**2))),
      "bias": float(off.mean()),
      "inside": int(inside),
      "form": surrogate.form.name,
    })  # fmt: skip
  return groups
