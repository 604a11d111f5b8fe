"""The figures of a study: BPC over activation rate, and loss over what was spent.

Each function takes what `study.analysis.compare.analyze` gave and the study's runs, and returns a
`Drawing` or None where there is nothing to draw. Nothing is computed here that analysis.json does
not hold.
"""

import itertools
from typing import Any

import numpy as np

from moe_parity.report import figure_style
from moe_parity.study import reading

DASHES = ((0, (5, 3)), (0, (1.5, 1.5)), (0, (8, 2, 1.5, 2)), (0, (2.5, 4)))
MAX_POINTS = 160  # of a loss curve: more cannot be seen and make the page heavy


def activation_rate(report: dict) -> figure_style.Drawing | None:
  """BPC over r_a with the fit, dense lines and, below, the differences to dense with intervals."""
  moe = [g for g in report["groups"] if g["kind"] == "moe" and g["role"] == "arm"]
  rates = [g["activation_rate"] for g in moe]
  if not moe or (len(moe) > 1 and max(rates) < figure_style.SAME_RATE * min(rates)):
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    both = bool(report["comparisons"])
    figure, axes = figure_style.new_figure(
      width,
      (5.6 if narrow else 5.2) if both else 3.3,
      nrows=2 if both else 1,
      sharex=True,
      squeeze=False,
      height_ratios=[1.45, 1] if both else [1],
    )
    _curve_panel(axes[0, 0], report, moe)
    if both:
      _difference_panel(axes[1, 0], report)
    figure_style.rate_axis(axes[-1, 0], rates)
    figure_style.legend_below(figure, 2 if narrow else 3)
    return figure

  seeds = report["noise"].get("max_seeds", 1)
  covers = (
    "choice of validation documents and training noise"
    if report["noise"]["df"]
    else "choice of validation documents only, for there is one seed"
  )
  band, curve = "", report["curve"]
  if curve and curve["difference_band"]:
    band = ", and so does the band for the whole fitted curve"
    band += ", which also allows for the arms' scatter about it" if curve["scatter_df"] else ""
  below = ""
  if report["comparisons"]:
    below = (
      " Below: MoE minus dense, below zero MoE is better; intervals hold for all arms at once with"
      f" 95 % confidence ({covers}){band}."
    )
  return figure_style.Drawing(
    "activation_rate",
    "BPC over activation rate at fixed N and C",
    ("Above: bits" if below else "Bits")
    + " per character on held-out text; each point is an arm"
    + (", a mean over seeds (small dots)." if seeds > 1 else ".")
    + below,
    draw,
  )


def _curve_panel(axis: Any, report: dict, moe: list[dict]) -> None:
  rates = [g["activation_rate"] for g in moe]
  fitted = report["curve"]
  if fitted:
    grid = fitted["grid"]
    axis.plot(grid, fitted["bpc"], color=figure_style.FIT, label=f"fit ({fitted['form']})")
    minimum = fitted["minimum"]
    label = "minimum" if minimum["bracketed"] else "minimum (not bracketed)"
    figure_style.draw_minimum(axis, minimum, figure_style.FIT, label)
  for g in moe:
    if g["num_seeds"] > 1:
      axis.plot(
        [g["activation_rate"]] * g["num_seeds"], g["bpc_by_seed"], ".", color=figure_style.MUTED,
        markersize=3.5, zorder=4
      )  # fmt: skip
  axis.plot(
    rates,
    [g["bpc"] for g in moe],
    "o",
    color=figure_style.FIT,
    markeredgecolor="white",
    markersize=6.5,
    zorder=5,
    label="MoE arm",
  )
  dashes = itertools.cycle(DASHES)  # of references and controls, which share a color
  for g in report["groups"]:
    if g["kind"] == "dense" and g["role"] != "check":
      own = g["role"] == "arm"
      axis.axhline(
        g["bpc"],
        color=figure_style.DENSE if own else figure_style.REFERENCE,
        linestyle="-" if own else next(dashes),
        linewidth=1.3,
        label=_dense_label(g),
      )
  axis.set_ylabel("validation BPC (bits per character)")


def _dense_label(group: dict) -> str:
  """How the legend names a dense arm, a reference or a control."""
  if group["role"] == "reference":
    return f"{group['name']} ({group['compute_multiple']:g} C, not at parity)"
  if group["role"] == "control":
    return f"{group['name']} (control)"  # its size is in the tables: a longer name leaves the page
  return group["name"]


def _difference_panel(axis: Any, report: dict) -> None:
  rows = report["comparisons"]
  fitted = report["curve"]
  if fitted and fitted["difference_band"]:
    axis.fill_between(
      fitted["grid"],
      *fitted["difference_band"],
      color=figure_style.FIT,
      alpha=0.12,
      linewidth=0,
      label="fit minus dense (95 %)",
    )
  axis.axhline(0, color=figure_style.DENSE, linewidth=1.3)
  colors = {"MoE better": figure_style.BETTER, "dense better": figure_style.WORSE}
  for row in rows:
    color = colors.get(row["verdict"], figure_style.REFERENCE)
    rate, difference = row["activation_rate"], row["difference"]
    bars = figure_style.bars(difference, row["simultaneous"])
    face = "white" if row["verdict"] == "one seed" else color
    axis.errorbar(
      rate, difference, bars, fmt="o", color=color, markerfacecolor=face, capsize=3.5,
      markersize=5.5, elinewidth=1.4
    )  # fmt: skip
  for verdict in ("MoE better", "not distinguishable", "dense better", "one seed", "no verdict"):
    if any(row["verdict"] == verdict for row in rows):
      color = colors.get(verdict, figure_style.REFERENCE)
      face = "white" if verdict == "one seed" else color
      axis.plot([], [], "o", color=color, markerfacecolor=face, label=verdict)
  axis.set_ylabel("MoE \N{MINUS SIGN} dense (BPC)")


def loss_curves(study: reading.StudyRecord) -> figure_style.Drawing | None:
  """Training cross-entropy over tokens and over FLOPs, one line for each run."""
  lines = []
  for run in study.runs:
    train, _, _ = reading.read_metrics(run.folder)
    train = [line for line in train if "cross_entropy" in line and "num_tokens" in line]
    if train and run.plan:
      lines.append((run, train))
  if not lines:
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    shape = {"nrows": 2, "ncols": 1} if narrow else {"nrows": 1, "ncols": 2}
    figure, axes = figure_style.new_figure(width, 6.2 if narrow else 3.7, sharey=True, **shape)
    colors = figure_style.run_colors({run.name: run.plan["activation_rate"] for run, _ in lines})
    seen: set[str] = set()
    floor, top, first = np.inf, -np.inf, np.inf
    for run, train in lines:
      tokens, loss = _smooth(train)
      look = _look(run, colors[run.name])
      label = "" if run.name in seen else run.name
      seen.add(run.name)
      axes[0].plot(tokens, loss, label=label, **look)
      axes[1].plot(tokens * run.plan["train_flops_per_token"], loss, **look)
      floor, top = min(floor, loss.min()), max(top, loss[len(loss) // 10])
      first = min(first, tokens[-1] / 30)
    last = max(run.plan["num_tokens"] for run, _ in lines)
    spent = [run.plan["train_flops"] for run, _ in lines]
    figure_style.log_ticks(axes[0].xaxis, (first, last), figure_style.tokens)
    figure_style.log_ticks(axes[1].xaxis, (min(spent) / 30, max(spent)), figure_style.power)
    margin = 0.04 * (top - floor) or 0.1  # a run that has just begun has one loss
    axes[0].set_ylim(floor - margin, top + margin)
    axes[0].set_xlabel("training tokens")
    axes[1].set_xlabel("training FLOPs")
    for axis in axes if narrow else axes[:1]:
      axis.set_ylabel("training cross-entropy\n(nats per token, smoothed)")
    figure_style.legend_below(figure, 2 if narrow else 4)
    return figure

  return figure_style.Drawing(
    "loss_curves",
    "Training loss over tokens and over compute",
    "Cross-entropy on training batches, a running mean of 2 % of the run or, in short runs, five "
    "logged steps. MoE arms from dark (small r_a) "
    "to light, or a color each where they share r_a; dense black, further dense arms gray; "
    "references dashed. At equal C all arms end at the same FLOPs, and at more tokens the smaller "
    "r_a is. Horizontal axes are logarithmic; the steep start is cut off.",
    draw,
  )


def _look(run: reading.RunRecord, color: Any) -> dict[str, Any]:
  look: dict[str, Any] = {"linewidth": 1.2, "color": color}
  if run.plan["kind"] == "dense" and run.plan["role"] != "arm":
    look["color"] = figure_style.REFERENCE
  if run.plan["role"] != "arm":
    look["linestyle"] = (0, (5, 3))
  return look


def _smooth(train: list[dict]) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and running means of the cross-entropy over 2 % of the lines, in short runs over up to
  five of them, thinned to MAX_POINTS."""
  tokens = np.array([line["num_tokens"] for line in train], dtype=np.float64)
  loss = np.array([line["cross_entropy"] for line in train], dtype=np.float64)
  span = max(1, len(loss) // 50, min(5, len(loss) // 8))
  sums = np.concatenate([[0.0], np.cumsum(loss)])
  start = np.maximum(np.arange(len(loss)) + 1 - span, 0)
  end = np.arange(len(loss)) + 1
  loss = (sums[end] - sums[start]) / (end - start)
  keep = np.unique(np.linspace(0, len(loss) - 1, min(len(loss), MAX_POINTS)).astype(int))
  return tokens[keep], loss[keep]
