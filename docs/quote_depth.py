"""The blocks of `quote.py` on the study at depth: the cells, and the shapes tried on both sides."""

import itertools
import math

import numpy as np
from quote_studies import RESULTS, arms_table, headline, is_earlier, mark, read
from quote_tables import interval, markdown, percent


def cells(study: str = "depth") -> list[str]:
  """Finished cells of a study, from the least text a parameter; at one text the smaller first."""
  folders = (RESULTS / study).glob("*/analysis.json")
  names = [f"{study}/{path.parent.name}" for path in folders]
  return sorted(names, key=lambda name: (bytes_per_param(name), size(name)))


def size(cell: str) -> int:
  """N of a cell's budget; its arms differ from it by at most its tolerance."""
  return read(cell, "plan.json")["budget"]["num_params"]


def bytes_per_param(cell: str) -> int:
  """Tokens, which are bytes, that the dense arm of a cell reads for each of its parameters."""
  return round(dense(cell)["num_tokens"] / dense(cell)["num_params"])


def dense(cell: str) -> dict:
  """The dense arm of a cell's plan."""
  return next(arm for arm in read(cell, "plan.json")["arms"] if arm["name"] == "dense")


def depth() -> str:
  """A table of the cells where there are several, then each with its arms and its verdict."""
  parts = [one for cell in cells() for one in _cell(cell)]
  return "\n".join([*_overview(), *parts]).rstrip()


def lead() -> list[str]:
  """Where MoE leads: the table of the cells, what it comes to, and the best rates."""
  seeds, documents = set(), set()
  for cell in cells():
    analysis = read(cell, "analysis.json")
    seeds |= {group["num_seeds"] for group in analysis["groups"]}
    documents.add(analysis["documents"]["num_documents"])
  leading = [cell for cell in cells() if _num_better(cell)]
  found = f"MoE arms beat dense in {len(leading)} of {len(cells())} cells of the table"
  if level := [_named(cell) for cell in cells() if cell not in leading]:
    found += f", not {' and '.join(level)}"
  return [
    *_cells_table(cells()), "",
    "- **At equal N, executed FLOPs and unique data, every arm at its own best learning rate,"
    f" {found}.**"
    f" {_explained(leading)} {_either(seeds)} seeds of weights and text, {_either(documents)}"
    f" documents. Doubts: small sizes, little text, {_routers(cells())}.{_searched_again()}"
    f"{_marked(cells())}"
    " [The study at depth](docs/results/depth.md)",
    _optima(),
  ]  # fmt: skip


def _marked(names: list[str]) -> str:
  """What the mark of some cells' intervals means, where any has it."""
  if not any(map(is_earlier, names)):
    return ""
  return (
    " Intervals of what is marked † leave out what a seed does to dense arms alone: they are too"
    " narrow."
  )


def _routers(names: list[str]) -> str:
  """How many parameters MoE arms of some cells have over dense with what N leaves out."""
  shares = [share for name in names for share in _beyond_n(name).values()]
  return (
    f"routers that N leaves out (with them and the norms MoE arms have {min(shares):.3f} to"
    f" {max(shares):.3f} times the non-vocabulary parameters of dense)"
  )


def _beyond_n(cell: str) -> dict[str, float]:
  """Parameters of each MoE arm over those of dense, with router and norms, without vocabulary."""
  arms = {arm["name"]: arm for arm in read(cell, "plan.json")["arms"] if arm["role"] == "arm"}
  own = {name: _without_vocabulary(arm) for name, arm in arms.items()}
  return {name: own[name] / own["dense"] for name, arm in arms.items() if arm["kind"] == "moe"}


def _without_vocabulary(arm: dict) -> int:
  """All parameters of an arm but embedding and head."""
  shape = arm["architecture"]
  return arm["exact_num_params"] - 2 * shape["vocab_size"] * shape["d_model"]


def _searched_again() -> str:
  """Says where MoE's shape was searched again because it had not beaten dense."""
  sizes = sorted({size(cell) for cell in cells("depth_narrow") if not _num_better(cell)})
  if not sizes:
    return ""
  where = " and ".join(f"{each / 1e6:.1f}M" for each in sizes)
  return f" At {where} MoE's shape was searched again after a first one had not beaten dense."


def _num_better(cell: str) -> int:
  """How many MoE arms of a cell are better than dense."""
  rows = read(cell, "analysis.json")["comparisons"]
  return sum(row["verdict"] == "MoE better" for row in rows)


def _explained(leading: list[str]) -> str:
  """In which cells MoE beats smaller dense models too, and how much of a lead they reach there."""
  shares, equalled = [], []
  for cell in leading:
    rows = read(cell, "analysis.json")["controls"]["controls"]
    if any(row["moe_to_control"]["verdict"] != "MoE better" for row in rows):
      equalled.append(_named(cell))
      continue
    best = min(row["to_dense"]["difference"] for row in rows)
    shares.append(max(best / _best(cell)["difference"], 0.0))
  found = (
    "Smaller dense models with the same compute and text, one of them of the best arm's active size"
    f" (dense_active), reach at most {percent(max(shares))} of a lead"
  )
  if equalled:
    found += f", except {' and '.join(equalled)}, where MoE is not better than such a model"
  return f"{found}."


def _optima() -> str:
  """The best activation rates, with an optimum inside the rates tried and without; and what twice
  the compute buys dense."""
  inside, low, high, ahead, tried = [], [], [], 0, []
  for cell in cells():
    references = read(cell, "analysis.json")["references"]
    ahead += sum(row["verdict"] == "MoE better" for row in references)
    tried += [_named(cell)] if references else []
    optimum, rows = _optimum(cell), read(cell, "analysis.json")["comparisons"]
    at_low = optimum["interval"][0] <= 1.01 * min(row["activation_rate"] for row in rows)
    (inside if optimum["bracketed"] else low if at_low else high).append(cell)
  found = [f"{_best_rates(inside)}, inside the rates tried"] if inside else []
  for some, end in ((low, "lowest"), (high, "highest")):
    found += [f"{_best_rates(some)}, where its interval reaches the {end} of them"] if some else []
  return (
    f"- **The best rate.** The fitted curve is lowest at {'; at '.join(found)}. {ahead or 'No'} MoE"
    f" arm beats dense at twice the compute, which was tried {' and '.join(tried)}."
  )


def _best_rates(some: list[str]) -> str:
  """The range of the best rates of some cells, and how much text those have."""
  rates = sorted(_optimum(cell)["activation_rate"] for cell in some)
  texts = sorted({bytes_per_param(cell) for cell in some})
  said = percent(rates[0]) if len(rates) == 1 else f"{percent(rates[0])} to {percent(rates[-1])}"
  return f"{said} with {' or '.join(map(str, texts))} bytes a parameter"


def _optimum(cell: str) -> dict:
  """Where the curve over activation rates is lowest."""
  return read(cell, "activation_rate.json")["sweeps"][0]["optimum"]


def _named(cell: str) -> str:
  return f"at {size(cell) / 1e6:.1f}M with {bytes_per_param(cell)} bytes a parameter"


def _either(values: set) -> str:
  return " or ".join(map(str, sorted(values)))


def _overview() -> list[str]:
  """MoE's lead in every cell: does it shrink as text a parameter grows, and grow with N?"""
  if len(cells()) == 1:
    return []
  marked = _marked(cells()).strip()
  return [*_cells_table(cells()), "", marked, "", *_more_text(), "", *_more_parameters(), ""]


def narrow() -> str:
  """The cells whose MoE arms were narrower, before a shape of one layer was tried, and how far the
  scores of equal dense runs differ between such a cell and the new one."""
  earlier = cells("depth_narrow")
  sentences = []
  for cell in earlier:
    old, new = _dense_tries(cell), _dense_tries(cell.replace("depth_narrow", "depth"))
    moved = [abs(old[rate] - new[rate]) for rate in old.keys() & new.keys()]
    sentences.append(
      f"with {bytes_per_param(cell)} bytes a parameter by {min(moved):.4f} to {max(moved):.4f} BPC"
    )
  differ = f"Tries of the dense arm that are equal in both differ {' and '.join(sentences)}."
  return "\n".join([*_cells_table(earlier), "", f"{differ}{_marked(earlier)}"])


def _dense_tries(cell: str) -> dict[float, float]:
  """BPC of the dense arm's tries by learning rate."""
  arms = {arm["name"]: arm for arm in read(cell, "analysis.json")["tuning"]["arms"]}
  return {t["peak_learning_rate"]: t["bpc"] for t in arms["dense"]["tries"]}


def _cells_table(names: list[str]) -> list[str]:
  rows = []
  for cell in names:
    analysis, best = read(cell, "analysis.json"), _best(cell)
    scores = {group["name"]: group["bpc"] for group in analysis["groups"]}
    controls = {row["name"]: row for row in analysis["controls"]["controls"]}
    rows.append([
      f"{dense(cell)['num_params']:,}{mark(cell)}", str(bytes_per_param(cell)),
      f"{scores['dense']:.4f}",
      f"{_num_better(cell)} of {len(analysis['comparisons'])}",
      f"{best['name']}, {percent(best['activation_rate'])}",
      _with_interval(best),
      _with_interval(controls["dense_active"]["moe_to_control"]), _lowest(cell),
    ])  # fmt: skip
  columns = ["N", "bytes of text a parameter", "BPC of dense", "MoE arms better",
             "the best, its r_a", "minus dense (simultaneous 95 %)", "minus dense_active",
             "curve lowest at r_a (95 %)"]  # fmt: skip
  return markdown(columns, rows)[1:]


def _lowest(cell: str) -> str:
  optimum = _optimum(cell)
  low, high = (percent(bound) for bound in optimum["interval"])
  return f"{percent(optimum['activation_rate'])} ({low} to {high})"


def _more_text() -> list[str]:
  """How the best lead over dense changes from a cell to the next one of its size."""
  sentences = []
  by_size = sorted(cells(), key=size)
  for first, second in itertools.pairwise(by_size):
    if size(first) != size(second):
      continue
    rows = [_best(first), _best(second)]
    change = rows[1]["difference"] - rows[0]["difference"]
    half = math.hypot(*(np.ptp(row["simultaneous"]) / 2 for row in rows))
    sentences.append(
      f"At N = {size(first):,} the best MoE arm minus dense goes from"
      f" {rows[0]['difference']:+.4f} with {bytes_per_param(first)} bytes a parameter to"
      f" {rows[1]['difference']:+.4f} with {bytes_per_param(second)}: by {change:+.4f}"
      f" ({interval([change - half, change + half])})."
    )
  if sentences:
    sentences.append(
      "These intervals of 95 % join the simultaneous ones of the two leads as if the cells did not"
      " depend on each other; they have the same validation documents."
    )
  return sentences


def _more_parameters() -> list[str]:
  """The best lead over dense at every size that was tried with as much text a parameter."""
  sentences = []
  for text, of_text in itertools.groupby(cells(), key=bytes_per_param):
    leads = [f"{_best(c)['difference']:+.4f} at N = {size(c):,}" for c in of_text]
    if len(leads) > 1:
      sentences.append(
        f"With {text} bytes a parameter the best MoE arm minus dense is {', '.join(leads)}."
      )
  return sentences


def _best(cell: str) -> dict:
  """The comparison of the best MoE arm with dense."""
  return min(read(cell, "analysis.json")["comparisons"], key=lambda row: row["difference"])


def _with_interval(row: dict) -> str:
  low, high = row["simultaneous"]
  return f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def _cell(cell: str) -> list[str]:
  analysis = read(cell, "analysis.json")
  seeds = sum(group["num_seeds"] for group in analysis["groups"])
  documents = analysis["documents"]
  title = f"### N = {dense(cell)['num_params']:,}, {bytes_per_param(cell)} bytes a parameter"
  return [
    title, "",
    f"{seeds} runs are compared, after {_tries(analysis)}. Validation holds"
    f" {documents['num_documents']} documents, which count as {documents['df'] + 1:.0f}."
    f" {_router_sentence(cell)}",
    "", *arms_table(cell), "", headline(analysis), "", _said(analysis), "", _rates(analysis), "",
  ]  # fmt: skip


def _router_sentence(cell: str) -> str:
  shares = _beyond_n(cell).values()
  return (
    "With router and norms, which N leaves out, MoE arms have"
    f" {min(shares):.3f} to {max(shares):.3f} times the non-vocabulary parameters of dense."
  )


def _said(analysis: dict) -> str:
  """The verdict's sentences on the optimum, on twice the compute and on what was unequal."""
  begin = ("The curve is lowest", "The best activation rate", "BPC is lowest", "Against dense_2c",
           "Equal compute is no")  # fmt: skip
  return " ".join(s for s in analysis["verdict"]["sentences"] if s.startswith(begin))


def _tries(analysis: dict) -> str:
  number = sum(len(arm["tries"]) for arm in analysis["tuning"]["arms"])
  return f"{number} runs on another seed that chose each arm's learning rate"


def _rates(analysis: dict) -> str:
  """Which learning rates were tried, and which was each arm's best."""
  arms = analysis["tuning"]["arms"]
  rates = ", ".join(f"{t['peak_learning_rate']:g}" for t in arms[0]["tries"])
  best = ", ".join(f"{arm['name']} {arm['best']:g}" for arm in arms)
  ends = ", ".join(f"{arm['name']} at the {arm['edge']}" for arm in arms if arm["edge"])
  at_end = f" Best at an end of the grid: {ends}." if ends else ""
  return f"Learning rates tried by every arm: {rates}. Best: {best}.{at_end}"


def controls() -> str:
  """Dense models of other shapes and the best MoE arm: `configs/depth_controls.py`, a table for
  every amount of text."""
  folders = (RESULTS / "depth_controls").glob("*/analysis.json")
  names = sorted((f"depth_controls/{path.parent.name}" for path in folders), key=bytes_per_param)
  parts = []
  for name in names:
    analysis = read(name, "analysis.json")
    title = f"With {bytes_per_param(name)} bytes a parameter:"
    parts += [title, "", *arms_table(name), "", headline(analysis), "", _rates(analysis), ""]
  return "\n".join(parts).rstrip()


def shapes() -> str:
  """Every shape of `configs/depth_shapes.py` at its own best learning rate, best first by side; a
  table for every size and amount of text tried."""
  folders = sorted((RESULTS / "depth_shapes").glob("*/analysis.json"))
  parts = [one for path in folders for one in _shapes_table(f"depth_shapes/{path.parent.name}")]
  return "\n".join(parts).rstrip()


def _shapes_table(folder: str) -> list[str]:
  analysis, plan = read(folder, "analysis.json"), read(folder, "plan.json")
  arms = {arm["name"]: arm for arm in plan["arms"]}
  tuned = {arm["name"]: arm for arm in analysis["tuning"]["arms"]}
  budget, rows = plan["budget"], []
  for group in sorted(analysis["groups"], key=lambda g: (g["kind"], g["bpc"])):
    arm, tries = arms[group["name"]], tuned[group["name"]]
    best = min(one["bpc"] for one in tries["tries"])
    rows.append([
      group["kind"], _shape(arm["architecture"]), f"{tries['best']:g}", tries["num_tries"],
      f"{best:.4f}", f"{group['bpc']:.4f}",
    ])  # fmt: skip
  names = ["side", "shape", "best learning rate", "tries", "BPC of its best try",
           "BPC on the other seed"]  # fmt: skip
  text = budget["num_unique_tokens"] / budget["num_params"]
  title = f"N = {budget['num_params']:,}, {text:.0f} bytes a parameter:"
  return [title, *markdown(names, rows), ""]


def _shape(architecture: dict) -> str:
  a = architecture
  layers = a["num_layers"]
  text = f"{layers} layer{'s' if layers > 1 else ''} of {a['d_model']}"
  if a["d_ffn"]:  # else all layers are MoE ones
    text += f", d_ffn {a['d_ffn']}"
  if a["num_experts"]:
    text += f", {a['experts_per_token']} of {a['num_experts']} experts of {a['d_expert']}"
  return text
