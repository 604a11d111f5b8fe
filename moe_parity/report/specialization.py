"""What experts specialize in: domains and each other, from specialization.npz of the runs."""

import dataclasses
from typing import Any

import numpy as np

from moe_parity.evaluation import specialization as statistics
from moe_parity.report import figure_style
from moe_parity.report.table_formats import Column, Table, fixed
from moe_parity.study import reading

SPAN = 2  # colors reach from a quarter to four times


@dataclasses.dataclass(frozen=True)
class Counted:
  """A run with its counted choices and the statistics of each MoE layer."""

  run: reading.RunRecord
  choices: statistics.RoutingCounts
  layers: list[dict]


def read(study: reading.StudyRecord) -> list[Counted]:
  """Every run that has specialization.npz; the first seed of an arm."""
  by_name: dict[str, Counted] = {}
  for run in study.runs:
    choices = None if run.name in by_name or not run.plan else statistics.load(run.folder)
    if choices:
      layers = statistics.specialization_by_layer(choices)
      for row in layers:
        row["pair_information"] = statistics.pair_information(choices, row["layer"] - 1)
      by_name[run.name] = Counted(run, choices, layers)
  return list(by_name.values())


def table(counted: list[Counted]) -> Table:
  """A row a run and MoE layer."""
  rows = [{"name": c.run.name, "seed": c.run.seed, **row} for c in counted for row in c.layers]
  return Table(
    "specialization",
    "Specialization of experts by domain, nats",
    (
      Column("name", "arm", number=False),
      Column("seed", "seed"),
      Column("layer", "MoE layer"),
      Column("information", "information", fixed(4)),
      Column("null_mean", "by chance", fixed(4)),
      Column("excess", "excess", fixed(4)),
      Column("share", "share of the most", fixed(3)),
      Column("p_value", "p", fixed(3)),
      Column("pair_information", "pairs", fixed(4)),
    ),
    rows,
  )


def by_layer(counted: list[Counted]) -> figure_style.Drawing | None:
  """Mutual information between domain and expert over chance, layer by layer."""
  shown = [c for c in counted if c.layers[0]["share"] is not None]
  if not shown:
    return None

  def draw(width: int | float) -> Any:
    figure, axis = figure_style.new_figure(width, 4.2 if width < 5 else 3.3)
    colors = figure_style.run_colors({c.run.name: c.run.plan["activation_rate"] for c in shown})
    for c in shown:
      color = colors[c.run.name]
      layers = [row["layer"] for row in c.layers]
      shares = [100 * row["share"] for row in c.layers]
      axis.plot(layers, shares, color=color, linewidth=1.1, label=c.run.name)
      for row, share in zip(c.layers, shares, strict=True):
        face = color if row["p_value"] < 0.05 else "white"
        axis.plot(row["layer"], share, "o", color=color, markerfacecolor=face, markersize=5)
    axis.axhline(0, color=figure_style.REFERENCE, linewidth=1)
    most = max(len(c.layers) for c in shown)
    axis.set_xticks(range(1, most + 1, max(1, most // 8)))
    axis.set_xlim(0.5, most + 0.5)
    axis.set_xlabel("MoE layer")
    axis.set_ylabel("information over chance\n(% of the most there can be)")
    figure_style.legend_below(figure, 2 if width < 5 else 5)
    return figure

  seen = shown[0].choices.tokens_N
  return figure_style.Drawing(
    "specialization",
    "Specialization of experts by domain",
    f"From {int(seen.sum()):,} held-out tokens of {int((seen > 0).sum())} documents. "
    "Mutual information between the domain of a held-out token (domains weigh the same) and its "
    "expert, minus what dealing the domains anew among the documents gives, in percent of "
    "ln(domains): 0 is chance, 100 an expert for each domain alone. Filled points stand out from "
    f"{statistics.NUM_PERMUTATIONS} deals at 5 %, each layer by itself. First seed of each arm.",
    draw,
  )


def experts(counted: list[Counted]) -> figure_style.Drawing | None:
  """Preference of experts for domains and for each other in one layer: the most special one."""
  able = [c for c in counted if c.layers[0]["excess"] is not None]
  if not able:
    return None
  chosen, layer = max(
    ((c, row["layer"] - 1) for c in able for row in c.layers),
    key=lambda pair: pair[0].layers[pair[1]]["excess"],
  )
  preference_DE = statistics.preference(chosen.choices, layer)
  order = np.lexsort((-np.nan_to_num(preference_DE.max(0)), preference_DE.argmax(0)))
  lift_EE = statistics.coactivation_lift(chosen.choices, layer)[np.ix_(order, order)]
  pairs = chosen.layers[layer]["pair_information"] is not None
  names = [chosen.choices.domains[d] for d in chosen.choices.present]

  def draw(width: int | float) -> Any:
    size = width * 0.72 if width < 5 else 3.6
    heights = [0.35 + 0.24 * len(names), *([size] if pairs else [])]
    figure, axes = figure_style.new_figure(
      width, sum(heights) + 1.5, nrows=len(heights), squeeze=False, height_ratios=heights
    )
    axes = axes[:, 0]
    look = {"cmap": "PuOr_r", "vmin": -SPAN, "vmax": SPAN, "interpolation": "nearest"}
    ends = (0.5, len(order) + 0.5)
    image = np.clip(preference_DE[:, order], -SPAN, SPAN)
    extent = (*ends, len(names) - 0.5, -0.5)
    drawn = axes[0].imshow(image, aspect="auto", extent=extent, **look)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_title(f"{chosen.run.name}, MoE layer {layer + 1}: use by domain")
    if pairs:
      with np.errstate(divide="ignore"):
        image = np.clip(np.log2(lift_EE), -SPAN, SPAN)
      axes[1].imshow(image, aspect="equal", extent=(*ends, *reversed(ends)), **look)
      axes[1].set_title("chosen together")
      axes[1].set_ylabel("expert")
    axes[-1].set_xlabel("expert, by the domain that uses it most")
    for axis in axes:
      axis.grid(False)
    bar = figure.colorbar(
      drawn, ax=list(axes), location="bottom", aspect=40, shrink=0.7,
      label="over even use, over independent choice" if pairs else "over even use",
    )  # fmt: skip
    bar.set_ticks(range(-SPAN, SPAN + 1))
    bar.set_ticklabels(["≤1/4", "1/2", "1", "2", "≥4"])
    return figure

  together = (
    "Below: tokens that chose both experts over what independent choices with the same loads would "
    "give (white on the diagonal). "
  )
  return figure_style.Drawing(
    "experts",
    "What one layer's experts are used for",
    f"The layer with the most specialization{', above' if pairs else ''}: an expert's share of a "
    f"domain's assignments over its mean share over domains. {together if pairs else ''}Colors "
    "are logarithmic; finite counts scatter, see the table for what stands out from chance.",
    draw,
  )
