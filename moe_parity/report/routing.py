"""Routing health: is every expert used, evenly, and since when."""

from typing import Any

import numpy as np

from moe_parity.report import figure_style
from moe_parity.study import reading

MAX_STEPS = 100
LOG_SPAN = 3  # colors reach from an eighth of the even load to eight times it


_DRAWN = ("max_vio", "router_entropy", "dead_experts", "balance_loss")  # dense runs have none


def health(study: reading.StudyRecord) -> figure_style.Drawing | None:
  """MaxVio, router entropy, dead experts and balance loss over training, one line for each run."""
  runs = []
  for run in study.runs:
    train, _, _ = reading.read_metrics(run.folder)
    train = [line for line in train if all(line.get(name) not in (None, []) for name in _DRAWN)]
    if train and run.plan:
      runs.append((run, train[:: max(1, len(train) // MAX_STEPS)]))
  if not runs:
    return None
  panels = [
    ("MaxVio (0 is even)", lambda line, e: max(line["max_vio"])),
    ("router entropy / ln E", lambda line, e: np.mean(line["router_entropy"]) / np.log(e)),
    ("dead experts (share)", lambda line, e: np.mean(line["dead_experts"]) / e),
    ("balance loss (1 is even)", lambda line, e: line["balance_loss"]),
  ]

  def draw(width: int | float) -> Any:
    narrow = width < 5
    figure, axes = figure_style.new_figure(
      width, 8.6 if narrow else 4.7, nrows=4 if narrow else 2, ncols=1 if narrow else 2, sharex=True
    )
    colors = figure_style.run_colors({run.name: run.plan["activation_rate"] for run, _ in runs})
    seen: set[str] = set()
    for axis, (title, value) in zip(axes.flat, panels, strict=True):
      for run, train in runs:
        experts = run.plan["architecture"]["num_experts"]
        share = [line["step"] / run.plan["num_steps"] * 100 for line in train]
        label = "" if run.name in seen else run.name
        seen.add(run.name)
        axis.plot(
          share, [value(line, experts) for line in train], linewidth=1.2, label=label,
          color=colors[run.name]
        )  # fmt: skip
      axis.set_title(title)
    for axis in np.atleast_2d(axes)[-1] if not narrow else axes[-1:]:
      axis.set_xlabel("share of training (%)")
    figure_style.legend_below(figure, 2 if narrow else 5)
    return figure

  return figure_style.Drawing(
    "routing_health",
    "Routing health over training",
    "MaxVio: load of the fullest expert over the even load, minus 1; the worst layer. Router "
    "entropy: of a token's distribution over experts, mean over tokens and layers; 1 when all are "
    "as likely, falling as the router gets surer. Dead experts: share that received no token in a "
    "step, mean over layers. Balance loss: E sum f_i P_i.",
    draw,
  )


def loads(runs: list[reading.RunRecord]) -> figure_style.Drawing | None:
  """Heat maps, a row for each run: its experts at the end, and the fullest expert over time."""
  maps = []
  for run in runs:
    routing = reading.read_routing(run.folder)
    if routing:
      relative = routing["loads"] * routing["loads"].shape[-1]  # [R, layers, experts], 1 is even
      tail = relative[-max(1, len(relative) // 20) :].mean(0)
      maps.append((run.label, routing["steps"], np.sort(tail, -1)[:, ::-1], relative.max(-1).T))
  if not maps:
    return None

  def draw(width: int | float) -> Any:
    heights = [0.75 + 0.07 * len(final) for _, _, final, _ in maps]
    figure, axes = figure_style.new_figure(
      width, sum(heights) + 0.7, nrows=len(maps), ncols=2, squeeze=False, height_ratios=heights
    )
    for (left, right), (label, steps, final, fullest) in zip(axes, maps, strict=True):
      layers = len(final) + 0.5
      for axis, image, ends in (
        (left, final, (0.5, final.shape[1] + 0.5)),
        (right, fullest, (float(steps[0]), float(steps[-1]) + 1e-9)),
      ):
        drawn = axis.imshow(
          np.log2(np.maximum(image, 2.0**-LOG_SPAN)),
          aspect="auto",
          cmap="PuOr_r",
          vmin=-LOG_SPAN,
          vmax=LOG_SPAN,
          extent=(*ends, layers, 0.5),
          interpolation="nearest",
        )
        axis.grid(False)
        axis.set_yticks(range(1, len(final) + 1, max(1, len(final) // 4)))
        axis.xaxis.get_major_locator().set_params(integer=True)
      left.set_title(label)
      left.set_ylabel("MoE layer")
    axes[-1, 0].set_xlabel("expert, by load")
    axes[-1, 1].set_xlabel("step")
    bar = figure.colorbar(
      drawn, ax=axes, label="load / even load", location="bottom", aspect=40, shrink=0.6, pad=0.02
    )
    bar.set_ticks(range(-LOG_SPAN, LOG_SPAN + 1))
    ends = {-LOG_SPAN: f"≤1/{2**LOG_SPAN}", LOG_SPAN: f"≥{2**LOG_SPAN}"}
    bar.set_ticklabels(
      [ends.get(p, f"{2**p}" if p >= 0 else f"1/{2**-p}") for p in range(-LOG_SPAN, LOG_SPAN + 1)]
    )
    return figure

  return figure_style.Drawing(
    "expert_loads",
    "Expert loads",
    "Load is an expert's share of the assignments times the number of experts: 1 is even, 0 is "
    "unused; the colors are logarithmic. Left: experts of each layer, ordered by load, mean over "
    "the last 5 % of the logged steps. Right: the fullest expert of each layer over training.",
    draw,
  )
