"""Step 2, activation rate over several budgets: the paper's Figures 3 to 6 from
activation_rate.json."""

from typing import Any

from moe_parity.paper import tables as published
from moe_parity.report import figure_style
from moe_parity.report.paper_figures import COLORS
from moe_parity.report.table_formats import (
  Column,
  Table,
  count,
  fixed,
  interval,
  levels,
  percent,
  scientific,
  signed,
)

MAX_PANELS = 8
PUBLISHED_OPTIMA = (("2B", "table10"), ("3B", "table16"))
FIXED_DATA = (("2B", "table09", 1.14e11, 2), ("7B", "table11", 1.30e11, 6))


def panels(step: dict) -> figure_style.Drawing | None:
  """BPC against r_a with dense lines, a panel a sweep; None for a single sweep (it has its own)."""
  sweeps = [s for s in step.get("sweeps", []) if _scored(s)][:MAX_PANELS]
  if len(sweeps) < 2:
    return None

  def draw(width: int | float) -> Any:
    columns = 1 if width < 5 else 2
    rows = -(-len(sweeps) // columns)
    figure, axes = figure_style.new_figure(
      width, 0.7 + 2.6 * rows, nrows=rows, ncols=columns, squeeze=False
    )
    for axis in list(axes.flat)[len(sweeps) :]:
      axis.set_visible(False)
    for axis, sweep in zip(axes.flat, sweeps, strict=False):
      _panel(axis, sweep)
    for row in axes:
      row[0].set_ylabel("validation BPC")
    labels: dict[str, Any] = {}
    for axis in list(axes.flat)[: len(sweeps)]:
      labels |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center",
                  ncols=2 if columns == 1 else 4)  # fmt: skip
    return figure

  return figure_style.Drawing(
    "sweeps",
    "BPC over activation rate, budget by budget",
    "Each panel holds one budget. Points are MoE arms (mean over seeds) with their own 95 % "
    "intervals; lines are dense arms, dashed at another compute; the shaded range of r_a is where "
    "the fitted curve lies below dense at the same C with 95 % confidence.",
    draw,
  )


def _panel(axis: Any, sweep: dict) -> None:
  moe = _scored(sweep)
  for arm in moe:
    bars = figure_style.bars(arm["bpc"], arm.get("interval"))
    axis.errorbar(
      arm["activation_rate"],
      arm["bpc"],
      bars,
      fmt="o",
      color=figure_style.FIT,
      capsize=2.5,
      markersize=4.5,
      elinewidth=1.1,
    )
  axis.plot([], [], "o", color=figure_style.FIT, label="MoE arm")
  for arm in sweep["arms"]:
    if arm["kind"] == "dense" and arm["role"] != "check" and arm["bpc"] is not None:
      own = arm["role"] == "arm"
      axis.axhline(
        arm["bpc"], color=figure_style.DENSE if own else figure_style.REFERENCE, linewidth=1.2,
        linestyle="-" if own else (0, (5, 3)),
        label="dense" if own else f"dense at {arm['compute_multiple']:g} C",
      )  # fmt: skip
  best = sweep.get("optimum")
  if best and best.get("bpc") is not None:
    figure_style.draw_minimum(axis, best, figure_style.ACCENT, "fitted minimum")
  for low, high in _surely(sweep):
    axis.axvspan(low, high, color=figure_style.BETTER, alpha=0.12, linewidth=0)
  figure_style.rate_axis(axis, [arm["activation_rate"] for arm in moe])
  axis.set_title(sweep_name(sweep))


def fixed_data(step: dict) -> figure_style.Drawing | None:
  """BPC over dense at the same tokens against r_a, log-log (Fig. 3), with the published sweeps."""
  own = []
  for sweep in step.get("sweeps", []):
    dense = [a for a in sweep["arms"] if a["kind"] == "dense" and a["role"] == "arm"]
    if sweep["held"] == "tokens" and _scored(sweep) and dense and dense[0]["bpc"] is not None:
      own.append((sweep, dense[0]["bpc"]))
  if not own:
    return None

  def draw(width: int | float) -> Any:
    figure, axis = figure_style.new_figure(width, 4.4 if width < 5 else 3.8)
    every, heights = [], []
    for (label, rates, ratios), color in zip(published_fixed_data(), COLORS, strict=True):
      axis.plot(rates, ratios, "o-", color=color, markersize=3.5, linewidth=1, label=label)
      every += rates
      heights += ratios
    for (sweep, dense), (color, marker) in zip(own, figure_style.series(len(own)), strict=True):
      arms = _scored(sweep)
      rates, ratios = [a["activation_rate"] for a in arms], [a["bpc"] / dense for a in arms]
      check = sweep.get("log_log")
      slope = f", slope {check['slope']:+.3f}" if check else ""
      axis.plot(rates, ratios, marker, color=color, markersize=6,
                label=f"this study, {sweep_name(sweep)}{slope}")  # fmt: skip
      every += rates
      heights += ratios
    axis.axhline(1, color=figure_style.DENSE, linewidth=1.3, label="dense at the same tokens")
    figure_style.rate_axis(axis, every, round_ticks=True)
    figure_style.log_ticks(axis.yaxis, [*heights, 1.0])
    axis.set_ylabel("BPC / dense at the same tokens")
    figure_style.legend_below(figure, 1 if width < 5 else 2)
    return figure

  return figure_style.Drawing(
    "fixed_data",
    "Activation rate at fixed data",
    "BPC over that of dense at the same N and the same tokens, both axes logarithmic; nothing is "
    "equal here but N and D, for a smaller r_a spends less compute. The slope is that of ln loss "
    "against ln r_a over the MoE arms. Published: Table 9 at 114B tokens and Table 11 at 130B "
    "against the dense runs of Table 14 at those tokens.",
    draw,
  )


def published_fixed_data() -> list[tuple[str, list[float], list[float]]]:
  """Label, r_a and BPC over dense for the published rows at one number of tokens."""
  series = []
  for size, name, tokens, dense_row in FIXED_DATA:
    dense = published.row("table14", dense_row)["bpc"]
    rows = [r for r in published.table(name) if r["D_tokens"] == tokens]
    rates = [r["ra_pct"] / 100 for r in rows]
    label = f"paper {size} (Table {int(name[-2:])}), {tokens / 1e9:.0f}B tokens"
    series.append((label, rates, [r["bpc"] / dense for r in rows]))
  return series


def transfer(step: dict) -> figure_style.Drawing | None:
  """The best activation rate against N, with the published ones."""
  optima = (step.get("transfer") or {}).get("optima", [])
  optima = [o for o in optima if o.get("activation_rate")]
  if len(optima) < 2:
    return None

  def draw(width: int | float) -> Any:
    figure, axis = figure_style.new_figure(width, 3.8 if width < 5 else 3.2)
    for o in optima:
      bars = figure_style.bars(o["activation_rate"], o.get("interval"))
      axis.errorbar(o["num_params"], o["activation_rate"], bars, fmt="o" if o["bracketed"] else "x",
                    color=figure_style.FIT, capsize=3, markersize=6)  # fmt: skip
    axis.plot([], [], "o", color=figure_style.FIT, label="this study, minimum of the fit")
    if not all(o["bracketed"] for o in optima):
      axis.plot([], [], "x", color=figure_style.FIT, label="this study, not bracketed")
    sizes = [o["num_params"] for o in optima]
    shown = [rate for o in optima for rate in (o["activation_rate"], *(o.get("interval") or ()))]
    for (size, name), color in zip(PUBLISHED_OPTIMA, COLORS, strict=True):
      best = min(published.table(name), key=lambda row: row["bpc"])
      axis.plot(best["N_params"], best["ra_pct"] / 100, "D", color=color, markersize=5,
                label=f"paper {size}, best run of Table {int(name[-2:])}")  # fmt: skip
      sizes.append(best["N_params"])
      shown.append(best["ra_pct"] / 100)
    figure_style.log_ticks(axis.xaxis, sizes, figure_style.tokens)
    figure_style.log_ticks(axis.yaxis, shown, lambda rate: f"{100 * rate:.3g}")
    axis.set_xlabel("total parameters N, without vocabulary")
    axis.set_ylabel("best activation rate (%)")
    figure_style.legend_below(figure, 1 if width < 5 else 2)
    return figure

  return figure_style.Drawing(
    "transfer",
    "The best activation rate at each size",
    "The minimum of each size's fitted curve with its 95 % interval; the paper's points are its "
    "best single runs, without interval. Both axes are logarithmic.",
    draw,
  )


def table(step: dict) -> Table:
  """Every arm of every sweep."""
  rows = [
    {**arm, "sweep": sweep_name(sweep)} for sweep in step.get("sweeps", []) for arm in sweep["arms"]
  ]
  return Table(
    "activation_rate",
    "Activation rate: every arm of every sweep",
    (
      Column("sweep", "sweep", number=False),
      Column("name", "arm", number=False),
      Column("role", "role", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("train_flops_per_token", "M train", scientific),
      Column("train_flops", "C", scientific),
      Column("num_tokens", "D", count),
      Column("epochs", "epochs", fixed(2)),
      Column("num_seeds", "seeds"),
      Column("loss", "train CE", fixed(4)),
      Column("bpc", "BPC", fixed(4)),
      Column("interval", "95 % interval", levels),
    ),
    rows,
  )


def tuning(step: dict) -> Table:
  """The check of learning rate and batch around the arms' own, for both sides."""
  sides = (step.get("tuning") or {}).get("sides", [])
  rows = [
    {**arm, "kind": side["kind"], "best": "best" if arm["name"] == side["best"] else ""}
    for side in sides
    for arm in side["arms"]
  ]
  return Table(
    "tuning",
    "Learning rates and batches around the arms' own",
    (
      Column("kind", "side", number=False),
      Column("name", "arm", number=False),
      Column("learning_rate_multiplier", "x lr", lambda x: f"{x:g}"),
      Column("peak_learning_rate", "peak lr", scientific),
      Column("batch_sequences", "batch"),
      Column("num_seeds", "seeds"),
      Column("bpc", "BPC", fixed(4)),
      Column("best", "", number=False),
    ),
    rows,
  )


def tuning_words(step: dict) -> list[str]:
  """What tuning changed, in sentences."""
  check = step.get("tuning")
  if not check:
    return []
  sentences = []
  for side in check["sides"]:
    if side.get("gain") is None:
      continue
    if side["gain"] <= 0:
      sentences.append(f"{side['kind']}: its own setting is the best of those tried.")
      continue
    ends = side["gain_interval"]
    sure = f" (95 % interval {interval(ends)})" if ends else ""
    sentences.append(
      f"{side['kind']}: the best setting is {side['best']}, {side['gain']:.4f} BPC better than its "
      f"own{sure}."
    )
  if check.get("difference_tuned") is not None and check.get("difference_at_law") is not None:
    sentences.append(
      f"MoE minus dense is {signed(check['difference_at_law'])} BPC at the arms' own settings and "
      f"{signed(check['difference_tuned'])} when each side takes its best."
    )
  return sentences


def sweep_name(sweep: dict) -> str:
  """Such as "N 1.2M, C 3e13, strict"."""
  held = f"C {sweep['train_flops']:.3g}" if sweep["held"] == "compute" else "equal tokens"
  if sweep["held"] == "tokens" and sweep.get("dense_tokens"):
    held = f"D {count(sweep['dense_tokens'])}"
  reuse = f", {sweep['reuse']}" if sweep.get("reuse") else ""
  return f"N {count(sweep['num_params'])}, {held.replace('e+', 'e')}{reuse}"


def _scored(sweep: dict) -> list[dict]:
  arms = [a for a in sweep["arms"] if a["kind"] == "moe" and a["role"] == "arm"]
  return [a for a in arms if a["bpc"] is not None]


def _surely(sweep: dict) -> list[list[float]]:
  for row in sweep.get("below", []):
    if row["compute_multiple"] == 1:
      return row["surely"]
  return []
