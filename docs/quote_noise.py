"""The blocks of `quote.py` on noise: how often intervals hold, and what seeds do to dense arms."""

import json

import numpy as np
from quote_studies import RESULTS
from quote_tables import markdown

INTERVAL = 0.95  # nominal, of the rows that are of intervals


def coverage(chosen_with: bool = True) -> str:
  """How often nominal 95 % intervals held the truth, by kind of noise, number of seeds and
  interval: those that the method was chosen with, or the others."""
  measured: dict[tuple, dict[str, list[float]]] = {}
  for row in _rows():
    if row["nominal"] == INTERVAL and row["chosen_with"] == chosen_with:
      of_noise = measured.setdefault((row["noise"], row["seeds"]), {})
      of_noise.setdefault(row["what"], []).append(row["measured"])
  intervals = list(next(iter(measured.values())))
  table = [
    [noise, str(seeds), *(_range(of_noise[what]) for what in intervals)]
    for (noise, seeds), of_noise in measured.items()
  ]
  return "\n".join(markdown(["noise", "seeds", *intervals], table)[1:])


def _rows() -> list[dict]:
  return json.loads((RESULTS / "coverage.json").read_text())["coverage"]


def _range(shares: list[float]) -> str:
  low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
  return f"{low} %" if low == high else f"{low} to {high} %"


def coverage_chosen() -> str:
  """The table of the noises that the method was chosen with, and what lies outside the range."""
  return f"{coverage()}\n\n{_outside([row for row in _rows() if row['chosen_with']])}"


def coverage_unseen() -> str:
  """Of noises, numbers of seeds and of documents that were not looked at before, and a count."""
  rows = [row for row in _rows() if not row["chosen_with"]]
  curse = {
    words: [row["measured"] for row in rows if row["what"].startswith(words + " (")]
    for words in ("best of equal arms", "best of equal arms, corrected")
  }
  misfit = max(row["measured"] for row in rows if row["what"].startswith("misfit"))
  raw, corrected = curse.values()
  return (
    f"{coverage(False)}\n\n{_outside(rows)} A misfit of a true curve is claimed in at most"
    f" {100 * misfit:.0f} % of studies. The best of five equal arms reads {-max(raw):.3f} to"
    f" {-min(raw):.3f} BPC too good, corrected {min(corrected):+.3f} to {max(corrected):+.3f}."
  )


def _outside(rows: list[dict]) -> str:
  """How many cells lie below 93 % and above 98 %, and the lowest."""
  cells = [row for row in rows if row["nominal"] == INTERVAL]
  low = sorted((row for row in cells if row["measured"] < 0.93), key=lambda row: row["measured"])
  where = sorted({f"{row['noise']}, {row['seeds']} seeds" for row in low})
  worst = ""
  if low:
    worst = (
      f" ({'; '.join(where)}), the lowest is {100 * low[0]['measured']:.0f} % ({low[0]['what']};"
      f" {low[0]['noise']}, {low[0]['seeds']} seeds, {low[0]['documents']} documents)"
    )
  high = sum(row["measured"] > 0.98 for row in cells)
  return f"Of {len(cells)} cells {len(low)} lie below 93 %{worst}, and {high} above 98 %."


def kinds() -> str:
  """What seeds do to MoE arms, and to dense arms against them, in every study of three seeds."""
  table, ratios = [], []
  for path in sorted(RESULTS.rglob("analysis.json")):
    dense, moe = (_by_seed(json.loads(path.read_text()), kind) for kind in ("dense", "moe"))
    if len(moe) < 3 or not len(dense):
      continue
    moved = dense.mean(0) - moe.mean(0)
    left = moe - moe.mean(0)
    left -= left.mean(1, keepdims=True)
    own = np.sqrt((left**2).sum() / ((len(moe) - 1) * 2))
    expected = own * np.sqrt(1 / len(moe) + 1 / len(dense))  # if dense arms were like MoE arms
    found = moved.std(ddof=1)
    ratios.append(found / expected)
    name = path.parent.relative_to(RESULTS)
    table.append([
      f"`{name}`", str(len(moe)), str(len(dense)), f"{own:.4f}", f"{found:.4f}",
      f"{expected:.4f}", f"{found / expected:.1f}",
    ])  # fmt: skip
  columns = ["study", "MoE arms", "dense arms", "MoE arms about their mean, BPC",
             "mean of dense minus mean of MoE, BPC", "the same, if dense arms were like MoE arms",
             "ratio"]  # fmt: skip
  above = sum(ratio > 1 for ratio in ratios)
  return "\n".join([
    *markdown(columns, table)[1:], "",
    f"It moves further than that in {above} of {len(ratios)} studies, by a factor of"
    f" {np.median(ratios):.1f} in the median.",
  ])  # fmt: skip


def _by_seed(analysis: dict, kind: str) -> np.ndarray:
  """BPC [arms, seeds] of a kind's repeated arms, without their own means."""
  groups = [g for g in analysis.get("groups", ()) if g["kind"] == kind and g["num_seeds"] == 3]
  table = np.array([group["bpc_by_seed"] for group in groups]).reshape(len(groups), 3)
  return table - table.mean(1, keepdims=True)
