"""How much the routed experts add: gate sums over training, and norms in every MoE layer."""

from typing import Any

import numpy as np

from moe_parity.report import figure_style
from moe_parity.report.table_formats import Column, Table, fixed, percent, signed
from moe_parity.report.table_formats import interval as show_interval
from moe_parity.study import reading

MAX_STEPS = 100
MAX_PANELS = 6
TITLE_LETTERS = 20  # as many as a panel is wide
NORMS = (
  ("residual_rms", "residual stream", figure_style.DENSE),
  ("shared_rms", "shared expert", figure_style.REFERENCE),
  ("routed_rms", "routed experts", figure_style.FIT),
)


def gate_sums(study: reading.StudyRecord) -> figure_style.Drawing | None:
  """The sum of a token's gates over training, mean over MoE layers, a line for each run."""
  runs = []
  for run in study.runs:
    train, _, _ = reading.read_metrics(run.folder)
    lines = [line for line in train if line.get("gate_sum")]
    if lines and run.plan:
      runs.append((run, lines[:: max(1, len(lines) // MAX_STEPS)]))
  if not runs:
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    figure, axis = figure_style.new_figure(width, 3.4)
    colors = figure_style.run_colors({run.name: run.plan["activation_rate"] for run, _ in runs})
    seen: set[str] = set()
    for run, lines in runs:
      label = "" if run.name in seen else run.name
      seen.add(run.name)
      share = [100 * line["step"] / run.plan["num_steps"] for line in lines]
      sums = [np.mean(line["gate_sum"]) for line in lines]
      axis.plot(share, sums, linewidth=1.2, color=colors[run.name], label=label)
    axis.axhline(1, color=figure_style.MUTED, linewidth=0.8)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("share of training (%)")
    axis.set_ylabel("sum of a token's gates")
    figure_style.legend_below(figure, 2 if narrow else 5)
    return figure

  return figure_style.Drawing(
    "gate_sums",
    "What the gates of a token add up to, over training",
    "Mean over tokens and MoE layers. Gates weight the routed experts' outputs: where they add up "
    "to little, the routed experts add little, however good they are. The gray line is 1.",
    draw,
  )


def layer_norms(study: reading.StudyRecord) -> figure_style.Drawing | None:
  """Routed, shared and residual RMS of every MoE layer, a panel for each arm."""
  arms = _averaged(study)
  if not arms:
    return None
  shown = arms[:MAX_PANELS]

  def draw(width: int | float) -> Any:
    columns = min(len(shown), 2 if width < 5 else 3)
    rows = -(-len(shown) // columns)
    figure, axes = figure_style.new_figure(
      width, 2.1 * rows + 0.7, nrows=rows, ncols=columns, sharey=True, squeeze=False
    )
    for axis, (name, layers) in zip(axes.flat, shown, strict=False):
      place = np.arange(1, len(layers["routed_rms"]) + 1)
      for key, label, color in NORMS:
        if any(layers[key]):
          only = label if axis is axes.flat[0] else ""
          axis.plot(place, layers[key], "o-", markersize=3.5, color=color, label=only)
      axis.xaxis.get_major_locator().set_params(integer=True)
      axis.set_title(figure_style.short(name, TITLE_LETTERS))
    for axis in axes.flat[len(shown) :]:
      axis.set_visible(False)
    sizes = [x for _, layers in shown for key, _, _ in NORMS for x in layers[key] if x > 0]
    figure_style.log_ticks(axes[0, 0].yaxis, sizes, "{:g}".format)
    for axis in axes[:, 0]:
      axis.set_ylabel("RMS")
    for axis in axes[-1]:
      axis.set_xlabel("MoE layer")
    figure_style.legend_below(figure, 3)
    return figure

  more = ""
  if arms[MAX_PANELS:]:
    more = f" The first {MAX_PANELS} of {len(arms)} MoE arms; the table has all."
  return figure_style.Drawing(
    "layer_norms",
    "How large what the routed experts add is, layer by layer",
    "RMS over tokens and width, mean over seeds, of the finished model on held-out text: the "
    "residual stream that a MoE layer adds to, the shared expert's output and the gated sum of the "
    f"routed experts'. The vertical axis is logarithmic.{more}",
    draw,
  )


def layers(study: reading.StudyRecord) -> Table:
  """Gate sum and norms in every MoE layer of every finished run."""
  rows = []
  for run in study.runs:
    layers = run.result.get("layers") or {}
    for place, routed in enumerate(layers.get("routed_rms", ())):
      values = {key: layers[key][place] for key in ("gate_sum", "shared_rms", "residual_rms")}
      rows.append({
        "name": run.name, "seed": run.seed, "layer": place + 1, "routed_rms": routed, **values,
        "to_shared": routed / values["shared_rms"] if values["shared_rms"] else None,
        "to_residual": routed / values["residual_rms"] if values["residual_rms"] else None,
      })  # fmt: skip
  return Table(
    "layers",
    "Gate sums and norms in every MoE layer",
    (
      Column("name", "arm", number=False),
      Column("seed", "seed"),
      Column("layer", "MoE layer"),
      Column("gate_sum", "sum of gates", fixed(4)),
      Column("routed_rms", "routed RMS", fixed(4)),
      Column("shared_rms", "shared RMS", fixed(4)),
      Column("residual_rms", "residual RMS", fixed(4)),
      Column("to_shared", "routed / shared", fixed(3)),
      Column("to_residual", "routed / residual", fixed(3)),
    ),
    rows,
  )


def controls(report: dict) -> Table:
  """Every dense control against the dense arm, and the best MoE arm against it."""
  controls = report["controls"] or {"controls": [], "best": ""}
  rows = [
    {
      "name": row["name"],
      "num_params": row["num_params"],
      "best": controls["best"],
      **{f"dense_{key}": value for key, value in row["to_dense"].items()},
      **{f"moe_{key}": value for key, value in row["moe_to_control"].items()},
    }
    for row in controls["controls"]
  ]
  return Table(
    "controls",
    "Dense controls at equal compute and data, BPC",
    (
      Column("name", "control", number=False),
      Column("num_params", "N", lambda x: f"{x:,}"),
      Column("dense_difference", "minus dense", signed),
      Column("dense_simultaneous", "simultaneous 95 % interval", show_interval),
      Column("best", "best MoE arm", number=False),
      Column("moe_difference", "MoE minus control", signed),
      Column("moe_interval", "pointwise 95 % interval of it", show_interval),
      Column("moe_verdict", "verdict", number=False),
    ),
    rows,
  )


def ablations(report: dict) -> Table:
  """What each ablation of the best MoE arm costs, and what is left of its lead: no more than
  nothing, and nothing is said of it where the arm does not lead."""
  controls = report["controls"] or {"ablations": {}, "best": "", "lead": 0.0}
  lead, rows = controls["lead"], []
  for name, row in controls["ablations"].items():
    left = max(row["lead_left"], 0.0) if lead > 0 else None
    rows.append({
      "best": controls["best"], "name": _WORDS.get(name, name), "cost": row["cost"],
      "minus_dense": -lead, "minus_dense_without": -row["lead_left"],
      "share_left": None if left is None else left / lead,
    })  # fmt: skip
  return Table(
    "ablations",
    "The best MoE arm with parts of it taken away, BPC",
    (
      Column("best", "arm", number=False),
      Column("name", "ablation", number=False),
      Column("minus_dense", "minus dense", signed),
      Column("cost", "ablation costs", signed),
      Column("minus_dense_without", "minus dense, ablated", signed),
      Column("share_left", "share of the lead that remains, %", percent),
    ),
    rows,
  )


_WORDS = {
  "routed_removed": "routed experts removed",
  "router_shuffled": "router's columns shuffled",
  "top_1": "only the first of the chosen experts",
}


def _averaged(study: reading.StudyRecord) -> list[tuple[str, dict[str, np.ndarray]]]:
  """(arm, its layers' numbers as means over seeds)."""
  by_arm: dict[str, list[dict]] = {}
  for run in study.runs:
    if (run.result.get("layers") or {}).get("routed_rms"):
      by_arm.setdefault(run.name, []).append(run.result["layers"])
  return [
    (name, {key: np.mean([one[key] for one in found], axis=0) for key, _, _ in NORMS})
    for name, found in by_arm.items()
  ]
