"""The figure of `bench --only=decode`: speed-up over a dense model of equal N by batch size."""

from typing import Any

from moe_parity.report import figure_style


def figure(result: dict[str, Any]) -> figure_style.Drawing:
  """Left what was measured, with the roofline of the same device; right what published peaks allow
  the paper's 7B, computed.

  Args:
    result: of `benchmarks.decode.run`.
  """
  caption = (
    "Decode speed-up over the dense arm of equal N against the number of sequences. Left: measured"
    f" on {result['device']} in {result['dtype']}, {result['context']} positions in the cache;"
    " dashed: its roofline. Right: computed for the paper's 7B from the published peaks of one"
    " chip, at two lengths of the cache; open points do not fit its memory."
  )

  def draw(width: int | float) -> Any:
    narrow = width < 5
    grid = dict(nrows=2) if narrow else dict(ncols=2, sharey=True)
    fig, (left, right) = figure_style.new_figure(width, 5.8 if narrow else 3.5, **grid)
    _measured(left, result)
    _computed(right, result["computed"])
    batches = [row["batch"] for row in result["decode"]]
    figure_style.log_ticks(left.xaxis, batches, "{:.0f}".format)
    figure_style.log_ticks(
      right.xaxis, [row["batch"] for row in result["computed"]], "{:.0f}".format
    )
    for axis in (left, right):
      axis.axhline(1, color=figure_style.DENSE, linewidth=0.8)
      axis.set_xlabel("sequences decoded together")
      axis.set_ylim(bottom=0)
    left.set_ylabel("speed-up over dense of equal N")
    fig.legend(loc="outside lower center", ncols=2 if narrow else 3)
    return fig

  return figure_style.Drawing("decode", "Decode speed-up at equal N", caption, draw)


def _measured(axis: Any, result: dict[str, Any]) -> None:
  names = [name for name in result["arms"] if name != "dense"]
  for name, (color, marker) in zip(names, figure_style.series(len(names)), strict=True):
    rows = [row for row in result["decode"] if row["arm"] == name]
    batches, rate = [row["batch"] for row in rows], result["arms"][name]["activation_rate"]
    label = f"r_a = {100 * rate:.0f} %, measured"
    axis.plot(batches, [row["speed_up"] for row in rows], marker, ls="-", color=color, label=label)
    axis.plot(batches, [row["roofline_speed_up"] for row in rows], ls="--", color=color)
  axis.set_title("Measured here; dashed: roofline")


def _computed(axis: Any, rows: list[dict[str, Any]]) -> None:
  name = "moe_20"
  lines = sorted({(row["context"], row["chip"]) for row in rows})
  contexts = sorted({context for context, _ in lines})
  colors = dict(zip(contexts, figure_style.SERIES[2:], strict=False))
  for context, chip in lines:
    own = [
      row for row in rows if (row["arm"], row["context"], row["chip"]) == (name, context, chip)
    ]
    color, dots = colors[context], "-" if chip == lines[0][1] else ":"
    batches, speed_ups = [row["batch"] for row in own], [row["speed_up"] for row in own]
    label = f"{chip}, {context:,} positions"
    axis.plot(batches, speed_ups, color=color, ls=dots, lw=1.4 if dots == "-" else 3, label=label)
    for fits, face in ((True, color), (False, "white")):
      at = [(row["batch"], row["speed_up"]) for row in own if row["fits"] == fits]
      axis.plot(*zip(*at, strict=True) if at else ([], []), "o", color=color, mfc=face, ms=4)
  axis.set_title("Computed: paper's 7B, r_a = 20 %")
