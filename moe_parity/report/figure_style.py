"""How figures look: one size for a desk, one for a phone; colors that survive print and color
blindness. matplotlib is imported where a figure is made, so that planning and tables need none."""

import contextlib
import dataclasses
import functools
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

DESK, PHONE = 6.6, 3.75  # width in inches at which a figure is drawn, with the same 9-point text
MAX_LETTERS = 56  # of a name in a figure; tables have it whole
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#dde1e6"
DENSE, REFERENCE, FIT = "#1b1f24", "#7a828c", "#0b6e99"
BETTER, WORSE, ACCENT = "#1a7f4b", "#b3362b", "#c4501b"
SERIES = ("#0b6e99", "#c98a00", "#8e4585", "#1a7f4b", "#c4501b", "#5b6470", "#d6277c", "#86a81b")
MARKERS = "osD^vPX"  # one fewer than colors: 56 lines before a look comes again
SAME_RATE = 1.05  # arms of a search differ by less in what whole numbers make of one rate
ROUND_RATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
SETTINGS = {
  "font.family": "DejaVu Sans",
  "font.size": 9,
  "axes.titlesize": 9.5,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.labelsize": 9,
  "axes.edgecolor": MUTED,
  "axes.labelcolor": INK,
  "axes.linewidth": 0.7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.labelsize": 8,
  "ytick.labelsize": 8,
  "legend.fontsize": 8,
  "legend.frameon": False,
  "lines.linewidth": 1.4,
  "text.parse_math": False,  # a dollar in a name is a dollar
  "svg.hashsalt": "moe_parity",
  "svg.fonttype": "none",
}


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure that can be drawn at any width.

  Attributes:
    name: file name without ending.
    title, caption: plain text; the caption says what is plotted, in which units.
    draw: width in inches -> matplotlib Figure; called inside `settings()`.
  """

  name: str
  title: str
  caption: str
  draw: Callable[[float], Any]

  @functools.cache  # noqa: B019  drawings are few and live as long as one report
  def svg(self, width: int | float) -> str:
    with settings():
      return _lighter(_save(self._figure(width), "svg", metadata={"Date": None}).decode())

  def png(self, width: int | float, dpi: int = 150) -> bytes:
    with settings():
      return _save(self._figure(width), "png", dpi=dpi)

  def _repr_svg_(self) -> str:
    """What a notebook shows."""
    return self.svg(DESK)

  @functools.cache  # noqa: B019
  def _figure(self, width: int | float) -> Any:
    """The figure with its layout solved: that is the slow part, and the same for every format."""
    figure = self.draw(width)
    _shorten(figure)
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    return figure


def short(text: str, most: int) -> str:
  """A text cut to so many letters, the last of which then says so."""
  return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _shorten(figure: Any) -> None:
  """Cuts names that would leave no room for what is drawn: in legends, titles and tick labels."""
  from matplotlib.text import Text

  for text in figure.findobj(Text):
    if len(text.get_text()) > MAX_LETTERS:
      text.set_text(short(text.get_text(), MAX_LETTERS))


def _save(figure: Any, kind: str, **options: Any) -> bytes:
  target = io.BytesIO()
  figure.savefig(target, format=kind, **options)
  return target.getvalue()


def _lighter(svg: str) -> str:
  """Coordinates to a tenth of a point and text in the reader's own font: a third of the weight.

  Layout was made with DejaVu Sans, which is wide: another font leaves room and never overlaps.
  """
  number = re.compile(r"(-?\d+\.\d)\d+")
  places = re.compile(r'\b(?:d|x|y|points)="[^"]*"')
  svg = places.sub(lambda place: number.sub(r"\1", place[0]), svg)
  svg = re.sub(r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", svg, flags=re.DOTALL)
  return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, system-ui, sans-serif")


@contextlib.contextmanager
def settings() -> Iterator[None]:
  """The look, for the figures made inside and no others."""
  import matplotlib

  with matplotlib.rc_context(SETTINGS):
    yield


def new_figure(width: int | float, height: int | float, **grid: Any) -> tuple[Any, Any]:
  """A Figure of its own (no pyplot, no global state, no display) and its axes."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  return figure, figure.subplots(**grid)


def legend_below(figure: Any, ncols: int) -> None:
  """One legend of all axes, below them."""
  figure.legend(loc="outside lower center", ncols=ncols)


def draw_minimum(axis: Any, minimum: dict, color: Any, label: str) -> None:
  """The lowest point of a fitted curve; a cross where the rates tried do not bracket it."""
  axis.plot(
    minimum["activation_rate"],
    minimum["bpc"],
    "v" if minimum["bracketed"] else "x",
    color=color,
    markersize=7,
    zorder=6,
    label=label,
  )


def rate_color(
  rate: int | float, low: int | float, high: int | float
) -> tuple[float, float, float, float]:
  """A color for an activation rate, from dark violet (few experts) to green (many)."""
  import math

  from matplotlib import colormaps

  position = 0.5 if low == high else math.log(rate / low) / math.log(high / low)
  return colormaps["viridis"](0.05 + 0.78 * position)


def run_colors(rates: Mapping[str, int | float]) -> dict[str, Any]:
  """A color for each arm: black for dense, grays for further dense arms, others by activation
  rate; where the MoE arms of a search share one rate, a color each.

  Args:
    rates: activation rate by arm, 1 for dense.
  """
  moe = {name: rate for name, rate in rates.items() if rate < 1}
  looks = dict(zip((name for name in rates if name not in moe), _grays(), strict=False))
  if len(moe) > 1 and max(moe.values()) < SAME_RATE * min(moe.values()):
    return looks | dict(zip(moe, _distinct(len(moe)), strict=True))
  ends = (min(moe.values(), default=1), max(moe.values(), default=1))
  return looks | {name: rate_color(rate, *ends) for name, rate in moe.items()}


def _grays() -> Iterator[str]:
  """DENSE, then ever lighter ones."""
  yield from (DENSE, "#6b737d", "#a3abb5")
  yield from itertools.repeat("#c3c9d0")


def _distinct(count: int) -> list[Any]:
  """So many colors, no two alike."""
  from matplotlib import colormaps

  if count <= len(SERIES):
    return list(SERIES[:count])
  return [colormaps["turbo"](0.06 + 0.9 * i / (count - 1)) for i in range(count)]


def rate_axis(axis: Any, rates: list[float], round_ticks: bool = False) -> None:
  """A logarithmic x axis of activation rates in percent, labeled at the arms or at round rates."""
  from matplotlib import ticker

  axis.set_xscale("log")
  shown: list[float] = []
  for rate in ROUND_RATES if round_ticks else sorted(rates):
    if not shown or rate / shown[-1] > 1.13:
      shown.append(rate)
  axis.xaxis.set_major_locator(ticker.FixedLocator(shown))
  axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{100 * x:.3g}"))
  axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.set_xlim(min(rates) / 1.15, max(rates) * 1.15)
  axis.set_xlabel("activation rate r_a (%), logarithmic")


def percent_ticks(axis: Any) -> None:
  """A logarithmic y axis of shares, labeled in percent at round values."""
  from matplotlib import ticker

  axis.set_yscale("log")
  axis.yaxis.set_major_locator(ticker.FixedLocator(ROUND_RATES))
  axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{100 * y:.3g}"))
  axis.yaxis.set_minor_locator(ticker.NullLocator())


def series(count: int) -> list[tuple[str, str]]:
  """A color and a marker for each of `count` lines."""
  return [(SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i in range(count)]


def log_ticks(
  axis: Any, values: Iterable[int | float], show: Callable[[float], str] = "{:.4g}".format
):
  """Makes an axis (`axes.xaxis` or `.yaxis`) logarithmic, with a few labels at round places inside
  the range of `values`, however narrow or wide it is."""
  from matplotlib import ticker

  values = list(values)
  low, high = min(values), max(values)
  pad = max((high / low) ** 0.06, 1.01)
  axis._set_axes_scale("log")
  ends = (low / pad, high * pad)
  if high / low > 12:
    digits = (1, 2, 5) if high / low < 200 else (1,)
    places = [m * 10.0**e for e in range(-12, 30) for m in digits]
  elif high / low > 3:
    places = [m * 10.0**e for e in range(-12, 30) for m in (1, 1.5, 2, 3, 4, 6, 8)]
  else:
    places = list(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(*ends))
  axis.set_major_locator(ticker.FixedLocator([p for p in places if ends[0] <= p <= ends[1]]))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: show(x)))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_view_interval(*ends, ignore=True)


def tokens(x: int | float) -> str:
  """1.2K, 500M, 2B: short, for ticks."""
  for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
    if x >= size:
      return f"{x / size:.3g}{unit}"
  return f"{x:.3g}"


def power(x: int | float) -> str:
  """3e12: short, for ticks."""
  return f"{x:.0e}".replace("e+", "e").replace("e0", "e")


def bars(value: int | float, ends: Sequence[float] | None) -> list[list[float]] | None:
  """Lengths for `errorbar` of one point; None without an interval. An interval from resampling need
  not hold its point: an end on the wrong side gets no length."""
  if not ends:
    return None
  return [[max(value - ends[0], 0.0)], [max(ends[1] - value, 0.0)]]
