"""A study's own points with the published ones (arXiv 2506.12119v1), on axes that allow it.

Text, tokenizer and size differ, so BPC itself cannot be compared: losses are shown in percent of
the dense arm at the same compute, FLOPs a token as a ratio to dense.
"""

import dataclasses
from typing import Any

from moe_parity.paper import tables
from moe_parity.report import figure_style
from moe_parity.study import reading

COLORS = ("#c98a00", "#8e4585")


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A published sweep over activation rate at fixed N and C.

  Attributes:
    label: size and table. reuse: what its tokens were, in words.
    rates: activation rates, 0..1.
    excess_pct: BPC over that of the dense run at about the same C, minus 1, in percent.
    compute_ratio: training FLOPs a token over those of the dense run.
    reference_pct, reference_multiple: the same excess of the larger dense run, and its C over the
      smaller one's (1.75 for 2B and 2.0 for 3B, though the paper calls both 2C).
  """

  label: str
  reuse: str
  rates: list[float]
  excess_pct: list[float]
  compute_ratio: list[float]
  reference_pct: int | float
  reference_multiple: int | float


def published_sweeps() -> list[Sweep]:
  """Table 10 (2B, every token new) and Table 16 (3B, 114B unique tokens) against Table 14."""
  sweeps = []
  for size, name, row, reuse in (
    ("2B", "table10", 1, "unique"),
    ("3B", "table16", 3, "114B unique"),
  ):
    label = f"paper {size} (Table {name[-2:]})"
    dense, larger = tables.row("table14", row), tables.row("table14", row + 1)
    rows = tables.table(name)
    sweeps.append(
      Sweep(
        label,
        reuse,
        [float(r["ra_pct"]) / 100 for r in rows],
        [_excess(r["bpc"], dense["bpc"]) for r in rows],
        [r["M_flops_per_token"] / dense["M_flops_per_token"] for r in rows],
        _excess(larger["bpc"], dense["bpc"]),
        larger["C_flops"] / dense["C_flops"],
      )
    )
  return sweeps


def excess_over_dense(report: dict) -> figure_style.Drawing | None:
  """Figures 4 to 6 of the paper: excess over dense against r_a, this study and the published."""
  rows = report["comparisons"]
  if not rows:
    return None
  dense = {g["name"]: g["bpc"] for g in report["groups"]}[report["baseline"]]

  def draw(width: int | float) -> Any:
    sweeps = published_sweeps()
    figure, axis = figure_style.new_figure(width, 4.6 if width < 5 else 3.9)
    axis.axhline(0, color=figure_style.DENSE, linewidth=1.3, label="dense at the same C")
    for sweep, color in zip(sweeps, COLORS, strict=True):
      axis.plot(
        sweep.rates, sweep.excess_pct, "o-", color=color, markersize=3.5, linewidth=1,
        label=sweep.label
      )  # fmt: skip
      axis.axhline(
        sweep.reference_pct, color=color, linestyle=(0, (2, 2)), linewidth=1,
        label=f"dense at {sweep.reference_multiple:.2f} C, {sweep.label.split(' (')[0]}"
      )  # fmt: skip
    rates = [r["activation_rate"] for r in rows]
    values = [100 * r["difference"] / dense for r in rows]
    for place, (row, rate, value) in enumerate(zip(rows, rates, values, strict=True)):
      ends = row["simultaneous"] and [100 * end / dense for end in row["simultaneous"]]
      axis.errorbar(
        rate,
        value,
        figure_style.bars(value, ends),
        fmt="o",
        color=figure_style.FIT,
        capsize=3,
        markersize=6,
        label="" if place else "this study",
        zorder=5,
      )
    for group in report["groups"]:
      if group["kind"] == "dense" and group["role"] == "reference":
        axis.axhline(
          _excess(group["bpc"], dense), color=figure_style.FIT, linestyle=(0, (5, 3)), linewidth=1,
          label=f"dense at {group['compute_multiple']:g} C, this study"
        )  # fmt: skip
    every = rates + [rate for sweep in sweeps for rate in sweep.rates]
    figure_style.rate_axis(axis, every, round_ticks=True)
    axis.set_ylabel("BPC over dense at the same C (%)")
    figure_style.legend_below(figure, 1 if width < 5 else 2)
    return figure

  return figure_style.Drawing(
    "versus_paper",
    "Compared with the paper: excess over dense",
    "BPC minus that of the dense arm at the same compute, in percent of it; below zero, MoE is "
    "better. Published points have one seed, no intervals, and more unique text than their dense "
    "run: Table 10 never repeats a token, Table 16 has 114B unique tokens against 62.6B of dense "
    "3B. Model size, text and tokenizer differ, so shapes can be compared and heights hardly.",
    draw,
  )


def compute_ratio(study: reading.StudyRecord) -> figure_style.Drawing | None:
  """Figure 2 of the paper: what a token costs against r_a, as a ratio to the dense arm."""
  plans = {arm["name"]: arm for arm in study.plan.get("arms", []) if arm["role"] == "arm"}.values()
  dense = next((arm for arm in plans if arm["kind"] == "dense"), None)
  moe = [arm for arm in plans if arm["kind"] == "moe"]
  if not dense or not moe:
    return None

  def draw(width: int | float) -> Any:
    sweeps = published_sweeps()
    figure, axis = figure_style.new_figure(width, 4.2 if width < 5 else 3.6)
    for sweep, color in zip(sweeps, COLORS, strict=True):
      axis.plot(sweep.rates, sweep.compute_ratio, "o", color=color, markersize=4, label=sweep.label)
    rates = [arm["activation_rate"] for arm in moe]
    cost = dense["train_flops_per_token"]
    axis.plot(
      rates,
      [arm["train_flops_per_token"] / cost for arm in moe],
      "o",
      color=figure_style.FIT,
      markersize=6,
      label="this study",
    )
    every = rates + [rate for sweep in sweeps for rate in sweep.rates]
    ends = [min(every), max(every)]
    axis.plot(
      ends, ends, color=figure_style.MUTED, linewidth=1, label="r_a alone: parameters, nothing else"
    )
    figure_style.rate_axis(axis, every, round_ticks=True)
    figure_style.percent_ticks(axis)
    axis.set_ylabel("FLOPs per token, MoE / dense (%)")
    figure_style.legend_below(figure, 1 if width < 5 else 2)
    return figure

  return figure_style.Drawing(
    "compute_ratio",
    "What a token costs",
    "Training FLOPs a token over those of the dense arm (R_c), both axes logarithmic, each study's "
    "by its own convention. An arm above the line pays for what does not shrink with r_a: "
    "attention scores and, where C counts them, router and output head. At fixed C an arm sees "
    "1 / R_c times the tokens of dense.",
    draw,
  )


def loss_over_data(study: reading.StudyRecord) -> figure_style.Drawing | None:
  """Figure 3 of the paper: loss over tokens for each activation rate, this study and Table 9."""
  runs: dict[str, tuple[float, list[dict]]] = {}
  for run in study.runs:
    _, lines, _ = reading.read_metrics(run.folder)
    lines = [line for line in lines if line.get("bpc") is not None]
    if run.plan and run.plan["role"] == "arm" and len(lines) > 1 and run.name not in runs:
      runs[run.name] = (run.plan["activation_rate"], lines)
  if not runs or all(rate == 1 for rate, _ in runs.values()):
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    shape = {"nrows": 2} if narrow else {"ncols": 2}
    figure, (own, other) = figure_style.new_figure(width, 6.4 if narrow else 3.6, **shape)
    colors = figure_style.run_colors({name: rate for name, (rate, _) in runs.items()})
    for name, (_, lines) in runs.items():
      tokens, bpc = [line["num_tokens"] for line in lines], [line["bpc"] for line in lines]
      color = colors[name]
      own.plot(tokens, bpc, color=color, linewidth=1.2)
      own.plot(tokens[-1], bpc[-1], "o", color=color, markersize=3.5, label=name)
    rows = tables.table("table09")
    printed = sorted({row["ra_pct"] for row in rows})
    for rate in printed:
      line = [(row["D_tokens"], row["bpc"]) for row in rows if row["ra_pct"] == rate]
      color = figure_style.rate_color(rate, printed[0], printed[-1])
      other.plot(*zip(*line, strict=True), "o-", color=color, markersize=3.5, linewidth=1)
      other.annotate(f"{rate:.3g} %", line[-1], xytext=(4, 0), textcoords="offset points",
                     fontsize=7.5, color=figure_style.MUTED, va="center")  # fmt: skip
    seen = [line["num_tokens"] for _, lines in runs.values() for line in lines]
    for axis, title, ends in (
      (own, "this study", (min(seen), max(seen))),
      (other, "paper 2B (Table 9)", (1e11, 7e11)),
    ):
      figure_style.log_ticks(axis.xaxis, ends, figure_style.tokens)
      axis.set_title(title)
      axis.set_xlabel("training tokens D, logarithmic")
    own.set_ylabel("validation BPC during training")
    other.set_ylabel("validation BPC at the end")
    figure_style.legend_below(figure, 2 if narrow else 4)
    return figure

  return figure_style.Drawing(
    "loss_over_data",
    "Loss over data for each activation rate",
    "Left: bits per character of a sample of held-out text while each arm trains (packed windows, "
    "so not the reported scores); one seed an arm, the dot is its last check. Right: separate runs "
    "of the paper, each trained to its end, labeled with r_a. A line within a run is not a line "
    "over runs: the learning rate has not yet decayed.",
    draw,
  )


def _excess(bpc: int | float, dense: int | float) -> float:
  return 100 * (bpc / dense - 1)
