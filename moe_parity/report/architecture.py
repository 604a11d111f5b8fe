"""Step 1, the architecture search: the paper's Tables 5 to 8, and where shapes lie.

Reads what `study.methods.architecture` left in architecture.json.
"""

import math
from typing import Any

import numpy as np

from moe_parity.paper import tables as published
from moe_parity.report import figure_style
from moe_parity.report.table_formats import (
  Column,
  Table,
  count,
  fixed,
  interval,
  percent,
  scientific,
  signed,
)

TITLES = {
  "layout": "Layer arrangement (the paper's Table 5)",
  "gates": "Gate normalization (the paper's Table 6)",
  "granularity": "Experts per token at constant K x D_e (the paper's Table 7)",
  "shape": "Shape ratios (the paper's Table 8)",
  "scale": "What the sum of the routed experts is multiplied by",
  "dense_aspect": "Dense baseline: width over depth",
  "dense_ffn": "Dense baseline: feed-forward ratio",
}
_SIZE = (
  Column("num_params", "N", count),
  Column("num_active_params", "N_a", count),
  Column("activation_rate", "r_a %", percent),
  Column("train_flops_per_token", "M train", scientific),
)
_WIDTH = (
  Column("num_layers", "L"),
  Column("d_model", "D_m"),
  Column("d_ffn", "D_ffn"),
  Column("num_heads", "H"),
  Column("d_head", "D_h"),
)
_EXPERTS = (
  Column("num_experts", "E"),
  Column("experts_per_token", "K"),
  Column("d_expert", "D_e"),
  Column("d_shared", "D_se"),
)
_RATIOS = (
  Column("total_ffn_ratio", "mu", fixed(2)),
  Column("aspect_ratio", "zeta", fixed(2)),
  Column("ffn_ratio", "alpha", fixed(2)),
)
_GATES = (Column("gates", "gates", number=False),)
_BALANCE = (Column("balance_loss", "balance loss", fixed(3)),)
_COLUMNS = {
  "layout": _SIZE + _WIDTH + _EXPERTS,
  "gates": _GATES + _EXPERTS + _BALANCE,
  "granularity": _SIZE + _EXPERTS,
  "shape": _SIZE[:2] + _WIDTH + _EXPERTS + _RATIOS[:2],
  "scale": _EXPERTS + _BALANCE,
  "dense_aspect": _SIZE[:1] + _SIZE[3:] + _WIDTH + _RATIOS[1:],
  "dense_ffn": _SIZE[:1] + _SIZE[3:] + _WIDTH + _RATIOS[1:],
}
_RESULT = (
  Column("loss", "loss", fixed(4)),
  Column("bpc", "BPC", fixed(4)),
  Column("num_seeds", "seeds"),
  Column("difference", "to the choice", signed),
  Column("simultaneous", "95 % interval", interval),
)
_OPTION = (Column("label", "option", number=False), Column("verdict", "verdict", number=False))


def stage_tables(step: dict) -> list[Table]:
  """A table a stage, in the paper's columns. Loss is training cross-entropy, nats a token."""
  tables = []
  for stage in step.get("stages", []):
    columns = _COLUMNS.get(stage["name"], _SIZE + _WIDTH + _EXPERTS)
    tables.append(
      Table(
        f"architecture_{stage['name']}",
        TITLES.get(stage["name"], stage["name"]),
        (*_OPTION, *columns, *_RESULT),
        stage["options"],
      )
    )
  return tables


def backbones(step: dict) -> Table:
  """What the search settled on for each side."""
  rows = [
    {"side": side, **step[key]}
    for side, key in (("MoE", "backbone"), ("dense", "dense_backbone"))
    if step.get(key)
  ]
  columns = (Column("side", "side", number=False), Column("layout", "layout", number=False))
  columns += _SIZE + _WIDTH + _EXPERTS + _RATIOS
  columns += (Column("kappa", "kappa", fixed(3)), Column("bpc", "BPC", fixed(4)))
  return Table("backbones", "The locked backbones", columns, rows)


def shape_scatter(step: dict) -> figure_style.Drawing | None:
  """Shapes by zeta and mu, colored by loss over the best: this search, and the paper's Table 8."""
  stage = next((s for s in step.get("stages", []) if s["name"] == "shape"), None)
  own = [
    (o["aspect_ratio"], o["total_ffn_ratio"], o["loss"], o["label"])
    for o in (stage or {"options": []})["options"]
    if o.get("loss") is not None and math.isfinite(o["loss"]) and o.get("total_ffn_ratio")
  ]
  if len(own) < 2:
    return None
  table8 = [
    (row["d_model"] / row["n_layers"], row["mu"], row["loss"], str(row.number))
    for row in published.table("table08")
  ]

  def draw(width: int | float) -> Any:
    narrow = width < 5
    shape = {"nrows": 2} if narrow else {"ncols": 2}
    figure, axes = figure_style.new_figure(width, 6.4 if narrow else 3.6, **shape)
    panels = (("this search", own), ("paper, Table 8 (2B)", table8))
    excess = [_excess(points) for _, points in panels]
    top = max(float(values.max()) for values in excess)
    for axis, (title, points), values in zip(axes, panels, excess, strict=True):
      zeta, mu = (np.array([p[i] for p in points]) for i in (0, 1))
      drawn = axis.scatter(
        zeta, mu, c=values, cmap="cividis_r", vmin=0, vmax=top, s=46, edgecolor=figure_style.INK,
        linewidth=0.5, zorder=3,
      )  # fmt: skip
      best = int(values.argmin())
      axis.plot(zeta[best], mu[best], "o", markersize=12, markerfacecolor="none",
                markeredgecolor=figure_style.ACCENT, markeredgewidth=1.6, zorder=4)  # fmt: skip
      axis.set_title(title)
      figure_style.log_ticks(axis.xaxis, zeta)
      figure_style.log_ticks(axis.yaxis, mu)
      axis.set_xlabel("aspect ratio: d_model / layers")
      axis.set_ylabel("width of all experts / d_model")
    figure.colorbar(
      drawn, ax=list(axes), label="loss over the best (%)", location="bottom", aspect=40, shrink=0.7
    )
    return figure

  return figure_style.Drawing(
    "shape_scatter",
    "Shape ratios and loss",
    "Each point is a shape at equal N, r_a and C, darker where its training cross-entropy is "
    "further above the best of its panel (in percent); the best is ringed. Both axes are "
    "logarithmic. Table 8's printed zeta is d_model / (layers - 1) + 1; here it is d_model / layers"
    " on both sides.",
    draw,
  )


def _excess(points: list[tuple]) -> np.ndarray:
  loss = np.array([p[2] for p in points], dtype=np.float64)
  return 100 * (loss / loss.min() - 1)
