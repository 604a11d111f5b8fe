"""Benchmarks: the poster's Figure 8 and the paper's Table 2 from a study's own runs."""

import pathlib
from typing import Any

from moe_parity.downstream import contamination, registry
from moe_parity.paper.downstream import published
from moe_parity.report import figure_style
from moe_parity.report.markup import Section, figure, paragraphs, table
from moe_parity.report.table_formats import Column, Table, fixed, interval, signed
from moe_parity.stored import read as stored
from moe_parity.study.analysis.downstream import ALL, FILE, STATES
from moe_parity.study.analysis.downstream_scales import left_out_lines

REUSED = 1.05  # epochs from which an arm counts as reusing its text
PANELS = (  # state, category, title
  (STATES[0], ALL, "pretrained, average"),
  (STATES[1], ALL, "fine-tuned, average"),
  ("", "knowledge", "knowledge"),
  ("", "reasoning", "reasoning"),
)


def read(folder: str | pathlib.Path) -> dict:
  """downstream.json of a study; {} where its runs were not examined.

  Raises:
    UserError: it is damaged.
  """
  path = pathlib.Path(folder) / FILE
  return stored.read_json(path, "run `moe-parity downstream` again") if path.is_file() else {}


def scores(found: dict) -> Table:
  """Every arm's score on every task, category and average."""
  rows = [
    {"state": state, **row, "score": row["score"] * _scale(row),
     "interval": _scaled(row), "chance": row["chance"] and 100 * row["chance"]}
    for state, part in found.get("states", {}).items() for row in part["scores"]
  ]  # fmt: skip
  return Table(
    "downstream_scores",
    "Benchmarks: accuracy in percent, bits per byte of gold answers, other metrics as they are",
    (
      Column("state", "model", number=False),
      Column("scale", "scale", number=False),
      Column("label", "task or category", number=False),
      Column("arm", "arm", number=False),
      Column("score", "score", fixed(3)),
      Column("interval", "95 % interval", interval),
      Column("chance", "chance", fixed(1)),
    ),
    rows,
  )


def comparisons(found: dict) -> Table:
  """MoE minus dense, with intervals that hold for all rows of a kind at once."""
  rows = [
    {"state": state, **row, "difference": row["difference"] * _scale(row),
     "interval": _scaled(row, "simultaneous")}
    for state, part in found.get("states", {}).items() for row in part["comparisons"]
  ]  # fmt: skip
  return Table(
    "downstream_comparisons",
    "Benchmarks: MoE minus dense",
    (
      Column("state", "model", number=False),
      Column("scale", "scale", number=False),
      Column("label", "task or category", number=False),
      Column("arm", "arm", number=False),
      Column("difference", "minus dense", signed),
      Column("interval", "95 % interval, all at once", interval),
      Column("verdict", "verdict", number=False),
    ),
    rows,
  )


def table_2(found: dict) -> Table:
  """The paper's Table 2 and, next to it, this study's fine-tuned arms, or its pretrained ones.

  Rows are the average, categories and benchmarks; the paper's category is the mean of its rows.
  """
  state = STATES[1] if STATES[1] in found.get("states", {}) else STATES[0]
  part = found.get("states", {}).get(state, {"arms": [], "scores": []})
  examined = {row["label"] for row in part["scores"] if row["scale"] == "accuracy"}
  of_paper = [row for row in registry.benchmarks() if row.group == "SFT"]
  names = {row.name: row.name.removesuffix(" (SFT)") for row in of_paper}
  labels = {ALL: "average", **{name: name for name in registry.CATEGORIES}}
  tasks = {row.name: next((task for task in row.tasks if task in examined), "") for row in of_paper}
  rows: dict[str, dict[str, Any]] = {label: {"row": shown} for label, shown in labels.items()}
  for row in of_paper:
    task = tasks[row.name]
    shown = f"{names[row.name]} ({task})" if task else names[row.name]
    rows[task or row.name] = {"row": shown, "category": row.category, **_printed([names[row.name]])}
  rows[ALL] |= _printed(["average of 16"])
  for category in registry.CATEGORIES:
    members = [names[row.name] for row in of_paper if row.category == category]
    rows[category] |= _printed(members)
  for row in part["scores"]:
    if row["scale"] == "accuracy" and row["label"] in rows:
      rows[row["label"]][f"arm {row['arm']}"] = 100 * row["score"]
  arms = [arm["name"] for arm in part["arms"]]
  columns = [Column(f"paper {arm}", f"paper, 7B: {arm}", fixed(2)) for arm in _printed_arms()]
  columns += [Column(f"arm {name}", name, fixed(2)) for name in arms]
  return Table(
    "downstream_table_2",
    f"Table 2: accuracy in percent, the paper's 7B and {state} arms of this study",
    (
      Column("row", "benchmark", number=False),
      Column("category", "category", number=False),
      *columns,
    ),
    list(rows.values()),
  )


def _printed_arms() -> list[str]:
  return list(dict.fromkeys(cell.arm for cell in published()))


def _printed(benchmarks: list[str]) -> dict[str, float]:
  """The paper's mean score on some benchmarks, by column."""
  scores = {(cell.arm, cell.benchmark): float(cell.score) for cell in published()}
  return {
    f"paper {arm}": sum(scores[arm, name] for name in benchmarks) / len(benchmarks)
    for arm in _printed_arms()
  }


def _scale(row: dict) -> float:
  return 100.0 if row["scale"] == "accuracy" else 1.0


def _scaled(row: dict, key: str = "interval") -> list[float] | None:
  return row[key] and [_scale(row) * end for end in row[key]]


def figure_8(found: dict) -> figure_style.Drawing | None:
  """Averages and two categories over r_a; None without an MoE arm that was examined."""
  panels = [(title, points) for state, label, title in PANELS
            if (points := _points(found, state, label))["moe"]]  # fmt: skip
  if not panels:
    return None

  def draw(width: int | float) -> Any:
    narrow = width < 5
    columns = 1 if narrow or len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    figure, axes = figure_style.new_figure(
      width, 2.7 * lines + 0.4, nrows=lines, ncols=columns, squeeze=False
    )
    for axis, (title, points) in zip(axes.flat, panels, strict=False):
      _panel(axis, points)
      axis.set_title(title)
    for axis in axes.flat[len(panels) :]:
      axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure

  return figure_style.Drawing(
    "downstream",
    "Benchmarks over activation rate",
    "Mean accuracy in percent over the tasks of each panel (every task counts alike) against r_a; "
    "the horizontal line is the dense arm and its interval. Dashed: arms that read their text more "
    "than once. Intervals are 95 %, each by itself, over items and seeds where there are several.",
    draw,
  )


def _points(found: dict, state: str, label: str) -> dict:
  """moe: [(rate, score, interval, reuses text)], dense: (score, interval) or None. Without a state
  the fine-tuned arms count where there are any."""
  states = found.get("states", {})
  part = states.get(state or (STATES[1] if STATES[1] in states else STATES[0]))
  if part is None:
    return {"moe": [], "dense": None}
  arms = {arm["name"]: arm for arm in part["arms"]}
  own = [r for r in part["scores"] if (r["scale"], r["kind"], r["label"]) ==
         ("accuracy", "category", label)]  # fmt: skip
  moe, dense = [], None
  for row in own:
    arm, ends = arms[row["arm"]], row["interval"] and [100 * end for end in row["interval"]]
    if arm["kind"] == "moe":
      reuses = (arm["epochs"] or 1) > REUSED
      moe.append((arm["activation_rate"], 100 * row["score"], ends, reuses))
    elif row["arm"] == part["baseline"]:
      dense = 100 * row["score"], ends
  return {"moe": sorted(moe, key=lambda point: point[0]), "dense": dense}


def _panel(axis: Any, points: dict) -> None:
  for reuses, style, name in ((False, "-", "MoE"), (True, "--", "MoE, text reused")):
    those = [point for point in points["moe"] if point[3] == reuses]
    if not those:
      continue
    rates, values = [p[0] for p in those], [p[1] for p in those]
    axis.plot(rates, values, style, color=figure_style.FIT, linewidth=1, label=name)
    for rate, value, ends, _ in those:
      offsets = figure_style.bars(0, ends and [end - value for end in ends])
      axis.errorbar(rate, value, offsets, fmt="o", color=figure_style.FIT, capsize=2.5,
                    markersize=4)  # fmt: skip
  if points["dense"]:
    value, ends = points["dense"]
    axis.axhline(value, color=figure_style.DENSE, linewidth=1.3, label="dense")
    if ends:
      axis.axhspan(*ends, color=figure_style.DENSE, alpha=0.08, linewidth=0)
  figure_style.rate_axis(axis, [point[0] for point in points["moe"]])
  axis.set_ylabel("accuracy (%)")


def all_tables(found: dict) -> list[Table]:
  """Of a study whose runs were examined; none otherwise."""
  return [scores(found), comparisons(found), table_2(found)] if found else []


def section(found: dict, drawings: dict, tables: dict[str, Table]) -> list[Section]:
  """Nothing where no run was examined."""
  if not found:
    return []
  absent = [row for row in registry.benchmarks() if not row.tasks]
  words = [
    "Pretrained and fine-tuned runs are compared among themselves, on the same items.",
    f"Of the paper's {len(registry.benchmarks())} benchmarks {len(absent)} cannot be had here "
    "without a network: " + "; ".join(f"{row.name} ({row.reason})" for row in absent) + ".",
    *_left_out(found),
    *_contamination(found),
  ]
  body = figure(drawings.get("downstream"), "no MoE arm has an accuracy yet")
  body += "".join(table(tables[name]) for name in (
    "downstream_comparisons", "downstream_table_2", "downstream_scores"))  # fmt: skip
  return [Section("Benchmarks", body + paragraphs(words))]


def _left_out(found: dict) -> list[str]:
  """Which metrics no average has, once where pretrained and fine-tuned runs share them."""
  lines = (line for part in found["states"].values() for line in left_out_lines(part))
  return [f"{line}." for line in dict.fromkeys(lines)]


def _contamination(found: dict) -> list[str]:
  """Items in the text of pretraining and in the chats, and what could not be searched."""
  lines = []
  for kind, where in contamination.IN_WORDS.items():
    by_counts: dict[str, list[str]] = {}
    for label, by_task in (found.get(kind) or {}).items():
      counts = (
        f"{t} {row['num_contaminated']} of {row['num_items']}" for t, row in by_task.items()
      )
      by_counts.setdefault(", ".join(counts), []).append(label)
    for counts, labels in by_counts.items():
      lines.append(f"Items that share {contamination.NUM_WORDS} words in a row with {where}"
                   f" ({', '.join(labels)}): {counts}.")  # fmt: skip
  if not found.get(contamination.TEXT):
    lines.append("Overlap of the items with the training text was not counted.")
  by_reason: dict[str, list[str]] = {}
  for label, reasons in (found.get(contamination.NOT_SEARCHED) or {}).items():
    for reason in reasons:
      by_reason.setdefault(reason, []).append(label)
  return lines + [f"{', '.join(those)}: {reason}." for reason, those in by_reason.items()]
