"""Step 3, data reuse: the paper's Figures 5 to 7 from data_reuse.json."""

from typing import Any

from moe_parity.report import figure_style, paper_figures
from moe_parity.report.table_formats import Column, Table, count, fixed, interval, percent, signed

SHIFT = 1.012  # schemes of one activation rate are drawn apart by this factor, or bars hide bars


def schemes(step: dict) -> Table:
  """Every arm under every scheme, with its difference to dense."""
  rows = []
  for scheme in step.get("schemes", []):
    versus = {row["name"]: row for row in scheme["comparisons"]}
    for arm in scheme["arms"]:
      row = {k: versus.get(arm["name"], {}).get(k) for k in ("difference", "simultaneous")}
      verdict = versus.get(arm["name"], {}).get("verdict")
      rows.append({**arm, **row, "verdict": verdict, "scheme": scheme_name(scheme)})
  return Table(
    "data_reuse",
    "Data reuse: every arm under every scheme",
    (
      Column("scheme", "scheme", number=False),
      Column("name", "arm", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("num_tokens", "D", count),
      Column("num_unique_tokens", "D^", count),
      Column("epochs", "epochs", fixed(2)),
      Column("num_seeds", "seeds"),
      Column("bpc", "BPC", fixed(4)),
      Column("difference", "minus dense", signed),
      Column("simultaneous", "95 % interval", interval),
      Column("verdict", "verdict", number=False),
    ),
    rows,
  )


def costs(step: dict) -> Table:
  """What repetition costs: every arm under every scheme minus the same arm with nothing twice."""
  names = {scheme["part"]: scheme_name(scheme) for scheme in step.get("schemes", [])}
  rows = [{**row, "scheme": names.get(row["part"], row["part"])} for row in step.get("costs", [])]
  return Table(
    "reuse_cost",
    "What repetition costs: BPC minus that of the same arm reading no text twice",
    (
      Column("name", "arm", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("scheme", "scheme", number=False),
      Column("epochs", "epochs", fixed(2)),
      Column("difference", "cost", signed),
      Column("interval", "95 % interval, each by itself", interval),
    ),
    rows,
  )


def scheme_name(scheme: dict) -> str:
  """Such as "strict" or "4 epochs"."""
  if scheme["reuse"] == "epochs" and scheme.get("epochs"):
    return f"{scheme['epochs']:g} epochs"
  return scheme["reuse"]


def scheme_label(scheme: dict, passes: str) -> str:
  """The scheme with its epochs where its name does not hold them."""
  name = scheme_name(scheme)
  return name if "epochs" in name else f"{name} ({passes} epoch{'s' * (passes != '1')})"


def by_scheme(step: dict) -> figure_style.Drawing | None:
  """Excess over dense against r_a, a line a scheme, and the published sweeps."""
  lines = []
  for scheme in step.get("schemes", []):
    arms = [a for a in scheme["arms"] if a["kind"] == "moe" and a["bpc"] is not None]
    if arms and scheme.get("baseline") and scheme["baseline"].get("bpc"):
      lines.append((scheme, sorted(arms, key=lambda arm: arm["activation_rate"])))
  if not lines:
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    figure, axes = figure_style.new_figure(
      width,
      6.8 if narrow else 3.9,
      nrows=2 if narrow else 1,
      ncols=1 if narrow else 2,
      sharey=_comparable(lines),
    )
    own, other = axes
    every, published = _draw_schemes(own, lines), _draw_published(other)
    for axis, rates, title in ((own, every, "this study"), (other, published, "the paper")):
      axis.axhline(0, color=figure_style.DENSE, linewidth=1.3)
      figure_style.rate_axis(axis, rates, round_ticks=True)
      axis.set_title(title)
    own.set_ylabel("BPC over dense at the same C (%)")
    if narrow:
      other.set_ylabel("BPC over dense at the same C (%)")
    figure_style.legend_below(figure, 1 if narrow else 2)
    return figure

  return figure_style.Drawing(
    "reuse_by_scheme",
    "Data reuse: excess over dense",
    "BPC over that of the dense arm of the same scheme, in percent; below zero MoE is better. "
    "Strict: every arm draws from the tokens dense reads once. Loose: MoE makes two epochs. "
    "Unique: nothing repeats, so a smaller r_a has seen more different text. Intervals hold for "
    "all arms of a scheme at once, where the study has them; the paper has none. Points side by "
    "side have one activation rate.",
    draw,
  )


def _draw_schemes(axis: Any, lines: list[tuple[dict, list[dict]]]) -> list[float]:
  """A line a scheme, arms of one rate alongside each other; returns the rates of all points."""
  every = []
  looks = figure_style.series(len(lines))
  for i, ((scheme, arms), (color, marker)) in enumerate(zip(lines, looks, strict=True)):
    dense = scheme["baseline"]["bpc"]
    every += [arm["activation_rate"] for arm in arms]
    shift = SHIFT ** (i - (len(lines) - 1) / 2)
    rates = [shift * arm["activation_rate"] for arm in arms]
    errors = {row["name"]: row for row in scheme["comparisons"]}
    values = [100 * (arm["bpc"] / dense - 1) for arm in arms]
    axis.plot(rates, values, "-", color=color, linewidth=1)
    for arm, rate, value in zip(arms, rates, values, strict=True):
      ends = (errors.get(arm["name"]) or {}).get("simultaneous")
      bars = figure_style.bars(value, ends and [100 * end / dense for end in ends])
      axis.errorbar(rate, value, bars, fmt=marker, color=color, capsize=2.5, markersize=4.5)
    epochs = [arm["epochs"] for arm in arms]
    passes = " to ".join(dict.fromkeys(f"{epoch:.2g}" for epoch in (min(epochs), max(epochs))))
    axis.plot([], [], marker + "-", color=color, label=scheme_label(scheme, passes))
  return every


def _draw_published(axis: Any) -> list[float]:
  """The paper's sweeps; returns the rates of all points."""
  rates = []
  for sweep, color in zip(paper_figures.published_sweeps(), paper_figures.COLORS, strict=True):
    axis.plot(sweep.rates, sweep.excess_pct, "o-", color=color, markersize=3.5, linewidth=1,
              label=f"{sweep.label}, {sweep.reuse}")  # fmt: skip
    rates += sweep.rates
  return rates


def _comparable(lines: list[tuple[dict, list[dict]]]) -> bool:
  """Whether the study's points fill enough of the paper's range to share its vertical axis."""
  own = [abs(a["bpc"] / scheme["baseline"]["bpc"] - 1) for scheme, arms in lines for a in arms]
  printed = [abs(x) for sweep in paper_figures.published_sweeps() for x in sweep.excess_pct]
  return 100 * max(own) < 3 * max(printed)


def decay(step: dict) -> figure_style.Drawing | None:
  """Cross-entropy over epochs with Muennighoff's law, fitted here and as published (Fig. 7)."""
  law = step.get("law")
  if not law or not law.get("points"):
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    figure, axis = figure_style.new_figure(width, 4.6 if narrow else 3.8)
    rates = [point["activation_rate"] for point in law["points"]]
    shown = set()
    moe = [rate for rate in rates if rate < 1] or [1.0]

    def look(rate):
      return figure_style.DENSE if rate == 1 else figure_style.rate_color(rate, min(moe), max(moe))

    for curve in law["curves"]:
      color = look(curve["activation_rate"])
      axis.plot(curve["epochs"], curve["cross_entropy"], color=color, linewidth=1.3)
      axis.plot(curve["epochs"], curve["cross_entropy_published"], color=color, linewidth=1,
                linestyle=(0, (2, 2)))  # fmt: skip
    for point in law["points"]:
      rate = point["activation_rate"]
      label = "" if rate in shown else ("dense" if rate == 1 else f"r_a {100 * rate:.3g} %")
      shown.add(rate)
      axis.plot(point["epochs"], point["cross_entropy"], "o", markersize=5.5, label=label,
                color=look(rate))  # fmt: skip
    axis.plot([], [], color=figure_style.INK, label=f"R* = {law['token_decay']:.4g}, fitted here")
    axis.plot([], [], color=figure_style.INK, linestyle=(0, (2, 2)),
              label=f"R* = {law['token_decay_published']:.4g}, published")  # fmt: skip
    figure_style.log_ticks(axis.xaxis, [point["epochs"] for point in law["points"]])
    axis.set_xlabel("epochs over the unique tokens, logarithmic")
    axis.set_ylabel("cross-entropy (nats per token)")
    figure_style.legend_below(figure, 2 if narrow else 4)
    return figure

  ends = law.get("interval")
  sure = f" (95 % interval {ends[0]:.4g} to {ends[1]:.4g})" if ends else ""
  return figure_style.Drawing(
    "reuse_decay",
    "What a repeated token is worth",
    f"Points are runs. Lines: the law of Muennighoff et al. (2305.16264), in which D tokens of U "
    f"unique ones count as U (1 + R* (1 - exp(-(epochs - 1) / R*))); solid with R* = "
    f"{law['token_decay']:.4g} fitted to {law['num_runs']} runs{sure}, dotted with their "
    f"{law['token_decay_published']:.4g} for dense models.",
    draw,
  )
