"""Blocks of results/decode.json for docs/inference.md."""

import json
import pathlib

from quote_tables import markdown, percent

FILE = pathlib.Path(__file__).resolve().parent.parent / "results" / "decode.json"
BATCHES = (1, 4, 16, 32, 64, 256, 1024, 4096)  # of the computed curve that are shown


def measured() -> str:
  """A row a batch size: the dense arm's rate, and each MoE arm's speed-up next to its roofline."""
  result = json.loads(FILE.read_text())
  sparse = [name for name in result["arms"] if name != "dense"]
  names = ["sequences", "dense, tokens/s", "of bandwidth", "of peak"]
  for name in sparse:
    rate = percent(result["arms"][name]["activation_rate"])
    names += [f"r_a {rate}: speed-up", "roofline", "of bandwidth", "experts read"]
  lines = []
  for batch, by_arm in _by_batch(result["decode"]).items():
    dense = by_arm["dense"]
    cells = [batch, f"{dense['tokens_per_s']:,.0f}", *_shares(dense, "bandwidth", "peak")]
    for name in sparse:
      row, experts = by_arm[name], result["arms"][name]["architecture"]["num_experts"]
      cells += [f"{row['speed_up']:.1f}", f"{row['roofline_speed_up']:.1f}"]
      cells += [*_shares(row, "bandwidth"), f"{row['distinct_experts']:.0f} of {experts}"]
    lines.append(cells)
  reached = f"{result['bandwidth'] / 1e9:.0f} GB/s and {result['peak'] / 1e9:.0f} GFLOP/s"
  about = (
    f"{result['device']}, {result['dtype']}, {result['context']} positions in the cache; the same"
    f" process reached {reached}."
  )
  return "\n".join([about, *markdown(names, lines)])


def prefill() -> str:
  """The same of prompts."""
  result = json.loads(FILE.read_text())
  sparse = [name for name in result["arms"] if name != "dense"]
  rates = [percent(result["arms"][name]["activation_rate"]) for name in sparse]
  names = ["prompts", "dense, tokens/s", *[f"r_a {rate}: speed-up" for rate in rates]]
  lines = [
    [batch, f"{by_arm['dense']['tokens_per_s']:,.0f}"]
    + [f"{by_arm[name]['speed_up']:.1f}" for name in sparse]
    for batch, by_arm in _by_batch(result["prefill"]).items()
  ]
  return "\n".join(markdown(names, lines)[1:])


def computed() -> str:
  """A row a chip and length of the cache, for the arm at 20 %."""
  rows, lines = json.loads(FILE.read_text())["computed"], []
  for chip, context in sorted({(row["chip"], row["context"]) for row in rows}):
    own = [row for row in rows if (row["chip"], row["context"]) == (chip, context)]
    by_batch, cells = _by_batch(own), []
    for batch in BATCHES:
      sparse, dense = by_batch[batch]["moe_20"], by_batch[batch]["dense"]
      text = f"{sparse['speed_up']:.1f}" if sparse["fits"] else "-"
      cells.append(text if dense["fits"] or not sparse["fits"] else f"({text})")
    lines.append([f"{chip}, {context:,} positions", *cells])
  return "\n".join(markdown(["sequences", *map(str, BATCHES)], lines)[1:])


def _by_batch(rows: list[dict]) -> dict[int, dict]:
  """Batch -> arm -> row."""
  found: dict[int, dict] = {}
  for row in rows:
    found.setdefault(row["batch"], {})[row["arm"]] = row
  return found


def _shares(row: dict, *names: str) -> list[str]:
  return [f"{100 * row[f'share_of_{name}']:.0f} %" for name in names]
