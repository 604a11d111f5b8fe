"""The figure on the first screen: BPC of every MoE arm with dense arms and controls as lines.

Inline SVG with a link and a hover text at every point, drawn for a desk or a phone. Without the
page's script the browser shows the same hover texts, and on paper the figure is complete.
"""

import html
import math
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from moe_parity.report import figure_style
from moe_parity.report.markup import words
from moe_parity.report.table_formats import interval, signed
from moe_parity.study import reading

DESK, PHONE = 860, 370  # widths in pixels at which the text has its natural size
MAX_LABELS = 8  # arms that are named along the axis where all have one activation rate
LINE_GAP = 15  # pixels between names of horizontal lines


def first_figure(study: reading.StudyRecord, report: dict) -> str:
  """The figure as HTML, for desk and phone; "" where no MoE arm is done."""
  groups = _moe_arms(report)
  if not groups:
    return ""
  plot = "".join(
    f'<div class="{name}">{_Plot(study, report, groups, width).svg()}</div>\n'
    for name, width in (("desk", DESK), ("phone", PHONE))
  )
  return (
    f'<figure class="first">\n{plot}<figcaption>{words(_caption(report))}</figcaption></figure>\n'
  )


def _moe_arms(report: dict) -> list[dict]:
  return [g for g in report["groups"] if g["kind"] == "moe" and g["role"] == "arm"]


def _caption(report: dict) -> str:
  """What the marks are."""
  sentences = ["Blue points are MoE arms, means over their seeds (small dots)."]
  if report["noise"].get("max_seeds", 1) < 2:
    sentences = ["Hollow points are MoE arms with one seed, which proves nothing."]
  elif any(g["num_seeds"] < 2 for g in _moe_arms(report)):
    sentences.append("A hollow point has one seed, which proves nothing.")
  if any(row["simultaneous"] for row in report["comparisons"]):
    covers = "" if report["noise"]["df"] else ", by the choice of text only"
    sentences.append(
      "Bars are 95 % intervals of the difference to dense, for all arms at once: where a bar"
      f" crosses the line of {report['baseline']}, the two are not distinguishable{covers}."
    )
  if any(group["role"] == "control" for group in report["groups"]):
    sentences.append("Dashed lines are dense controls: other N, equal compute and data.")
  if any(group["role"] == "reference" for group in report["groups"]):
    sentences.append("Dotted lines are references with more compute, not at parity.")
  if report["curve"]:
    sentences.append("The curve is the fit to the MoE arms.")
  sentences.append(
    "Lower is better. Point at a mark for its numbers; it links to the run's folder."
  )
  return " ".join(sentences)


def run_links(study: reading.StudyRecord, name: str) -> list[str]:
  """Links from the page to an arm's run folders, in the order of its seeds.

  They are relative to the study's folder report/ and start with "..", so that no name makes one
  leave for elsewhere than a folder.
  """
  page = pathlib.Path(study.folder) / "report"
  links = []
  for run in study.runs:
    if run.name == name:
      path = os.path.relpath(run.folder, page).replace(os.sep, "/")
      links.append(urllib.parse.quote(path, safe="/") + "/")
  return links


def hover_text(group: Mapping, plan: Mapping, row: Mapping | None = None) -> str:
  """What a point says: arm, score with interval, shape and seeds, a line each.

  Args:
    group, row: of analysis.json's `groups` and `comparisons`. plan: of one of the arm's runs.
  """
  shape = plan.get("architecture", {})
  low, high = group["interval"]
  score = f"{group['bpc']:.4f} BPC"
  if low < high:
    score += f" (95 % interval {low:.4f} to {high:.4f}, on any text)"
  lines = [group["name"], score]
  if row:
    ends = f" ({interval(row['simultaneous'])})" if row["simultaneous"] else ""
    lines.append(f"minus {row['baseline']}: {signed(row['difference'])}{ends}, {row['verdict']}")
  lines.append(f"activation rate {100 * group['activation_rate']:.1f} %")
  lines.append(
    f"{group['num_params']:,} parameters, {shape.get('num_layers', '?')} layers of width"
    f" {shape.get('d_model', '?')}"
  )
  if shape.get("num_experts"):
    lines.append(
      f"{shape['num_experts']} experts of width {shape.get('d_expert', '?')},"
      f" {shape.get('experts_per_token', '?')} a token; shared expert {shape.get('d_shared', 0)}"
    )
  seeds = ", ".join(f"{value:.4f}" for value in group["bpc_by_seed"])
  lines.append(f"seeds: {seeds}" if group["num_seeds"] > 1 else "one seed")
  return "\n".join(lines)


class _Plot:
  """Scales and marks of the figure at one width."""

  def __init__(self, study: reading.StudyRecord, report: dict, moe: Sequence[dict], width: int):
    self.study, self.report, self.moe, self.width = study, report, moe, width
    self.lines = [g for g in report["groups"] if g["kind"] == "dense" and g["role"] != "check"]
    self.rows = {row["name"]: row for row in report["comparisons"]}
    self.plans = {run.name: run.plan for run in reversed(study.runs)}
    rates = [g["activation_rate"] for g in moe]
    self.is_sweep = len(moe) == 1 or max(rates) > figure_style.SAME_RATE * min(rates)
    narrow = width < 500
    self.left, self.right, self.top = 56, (16 if narrow else 230), 14
    self.height = 330 if narrow else 360
    self.bottom = self.height - 46
    self._set_ranges(rates)
    self.legend_rows = self.lines if narrow else []
    self.total = self.height + 18 * len(self.legend_rows)

  def _set_ranges(self, rates: Sequence[int | float]) -> None:
    self.low_x, self.high_x = math.log(min(rates) / 1.2), math.log(max(rates) * 1.2)
    shown = [g["bpc"] for g in [*self.moe, *self.lines]]
    for group in self.moe:
      shown += [*group["bpc_by_seed"], *self._bar(group)]
    curve = self.report["curve"]
    if curve and self.is_sweep:
      shown += curve["bpc"]
    pad = 0.06 * (max(shown) - min(shown)) or 0.01
    self.low_y, self.high_y = min(shown) - pad, max(shown) + pad

  def _bar(self, group: Mapping) -> list[int | float]:
    """The interval of the difference to dense, set off from dense's line; [] without one."""
    row = self.rows.get(group["name"])
    if not row or not row["simultaneous"]:
      return []
    dense = next(g["bpc"] for g in self.lines if g["name"] == row["baseline"])
    return [dense + end for end in row["simultaneous"]]

  def x(self, group: Mapping) -> int | float:
    if self.is_sweep:
      return self.x_of(group["activation_rate"])
    place = (self.moe.index(group) + 0.5) / len(self.moe)
    return self.left + place * (self.width - self.right - self.left)

  def x_of(self, rate: int | float) -> int | float:
    share = (math.log(rate) - self.low_x) / (self.high_x - self.low_x)
    return self.left + share * (self.width - self.right - self.left)

  def y(self, bpc: int | float) -> int | float:
    share = (self.high_y - bpc) / (self.high_y - self.low_y)
    return self.top + share * (self.bottom - self.top)

  def svg(self) -> str:
    title = "Held-out bits per character of every arm"
    body = [*self._grid(), *self._dense(), *self._curve(), *self._points()]
    return (
      f'<svg viewBox="0 0 {self.width} {self.total}" role="img" aria-label="{title}">'
      + "\n".join(body)
      + "</svg>"
    )

  def _grid(self) -> list[str]:
    end, parts = self.width - self.right, []
    for tick in _ticks(self.low_y, self.high_y):
      y = self.y(tick)
      parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
      parts.append(_text(self.left - 7, y + 4, f"{tick:g}", "end"))
    for place, label in self._labels():
      parts.append(_text(place, self.bottom + 17, label, "middle"))
    what = "activation rate: share of the parameters that a token uses (%)"
    if self.width < 500:
      what = "activation rate (%), logarithmic"
    if not self.is_sweep:
      rate = f"{100 * self.moe[0]['activation_rate']:.1f} %"
      what = f"MoE arms, all of activation rate {rate}"
    parts.append(_text((self.left + end) / 2, self.bottom + 38, what, "middle"))
    middle = (self.top + self.bottom) / 2
    turn = f' transform="rotate(-90 12 {middle:.0f})"'
    parts.append(_text(12, middle, "bits per character", "middle", turn))
    return parts

  def _labels(self) -> list[tuple[int | float, str]]:
    if not self.is_sweep:
      many = len(self.moe) > (3 if self.width < 500 else MAX_LABELS)
      return [] if many else [(self.x(g), figure_style.short(g["name"], 16)) for g in self.moe]
    labels: list[tuple[int | float, str]] = []
    for group in sorted(self.moe, key=self.x):
      if not labels or self.x(group) - labels[-1][0] > 34:
        labels.append((self.x(group), f"{100 * group['activation_rate']:.3g}"))
    return labels

  def _dense(self) -> list[str]:
    """A line for each dense arm, control and reference, named at its right end or below."""
    end, parts = self.width - self.right, []
    beside = _apart([self.y(g["bpc"]) for g in self.lines], self.top + 5, self.bottom)
    for place, (group, label_y) in enumerate(zip(self.lines, beside, strict=True)):
      y, look = self.y(group["bpc"]), _LINE_LOOKS[group["role"]]
      inner = f'<line class="{look}" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>'
      wide = f'<line class="target" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>'
      parts.append(self._linked(group, inner + wide))
      name = line_name(group)
      if self.legend_rows:
        row = self.height + 18 * place + 6
        parts.append(f'<line class="{look}" x1="8" x2="36" y1="{row}" y2="{row}"/>')
        parts.append(_text(42, row + 4, figure_style.short(name, 46), "start"))
      else:
        parts.append(
          f'<line class="lead" x1="{end}" x2="{end + 12}" y1="{y:.1f}" y2="{label_y:.1f}"/>'
        )
        parts.append(_text(end + 16, label_y + 4, figure_style.short(name, 30), "start"))
    return parts

  def _curve(self) -> list[str]:
    curve = self.report["curve"]
    if not curve or not self.is_sweep:
      return []
    pairs = zip(curve["grid"], curve["bpc"], strict=True)
    points = " ".join(f"{self.x_of(rate):.1f},{self.y(bpc):.1f}" for rate, bpc in pairs)
    return [f'<polyline class="fit" points="{points}"/>']

  def _points(self) -> list[str]:
    parts = []
    for group in self.moe:
      x, y, marks = self.x(group), self.y(group["bpc"]), ""
      if ends := self._bar(group):
        low, high = (self.y(end) for end in ends)
        marks += f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
      if group["num_seeds"] > 1:
        marks += "".join(
          f'<circle class="seed" cx="{x:.1f}" cy="{self.y(bpc):.1f}" r="2"/>'
          for bpc in group["bpc_by_seed"]
        )
      face = "moe" if group["num_seeds"] > 1 else "moe single"
      marks += f'<circle class="{face}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
      marks += f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="14"/>'
      parts.append(self._linked(group, marks))
    return parts

  def _linked(self, group: Mapping, marks: str) -> str:
    row = self.rows.get(group["name"])
    tip = html.escape(hover_text(group, self.plans.get(group["name"], {}), row), quote=True)
    links = run_links(self.study, group["name"])
    link = html.escape(links[0], quote=True) if links else "#"
    return f'<a href="{link}" data-tip="{tip}"><title>{tip}</title>{marks}</a>'


_LINE_LOOKS = {"arm": "dense", "control": "control", "reference": "reference"}


def line_name(group: Mapping) -> str:
  """How a dense arm, a control or a reference is named at its line."""
  if group["role"] == "reference":
    return f"{group['name']}: {group['compute_multiple']:g} times C"
  return f"{group['name']}: N {figure_style.tokens(group['num_params'])}"


def _text(x: int | float, y: int | float, text: str, anchor: str, more: str = "") -> str:
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'


def _ticks(low: int | float, high: int | float) -> list[int | float]:
  """Four to eight round places inside a range."""
  size = 10.0 ** math.floor(math.log10((high - low) / 4))
  step = next(m * size for m in (1, 2, 5, 10) if (high - low) / (m * size) <= 8)
  first = math.ceil(low / step)
  return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _apart(places: Sequence[int | float], low: int | float, high: int | float) -> list[int | float]:
  """The places moved as little as it takes to stand LINE_GAP apart, inside [low, high] if they
  fit there, in their own order."""
  order = sorted(range(len(places)), key=lambda i: places[i])
  moved: list[int | float] = [0.0] * len(places)
  last = low - LINE_GAP
  for i in order:
    last = moved[i] = max(places[i], last + LINE_GAP)
  limit = high
  for i in reversed(order):
    limit = moved[i] = min(moved[i], limit)
    limit -= LINE_GAP
  return moved
