"""Writes the numbers of `results/` into the README and `docs/`: `python docs/quote.py`.

A page has a pair of comments, `<!-- name -->` and `<!-- /name -->`; what stands between them is
made by the block of that name below. Figures are copied to `docs/figures/`. A test runs this and
finds nothing to change, so no quoted number is typed by hand.
"""

import functools
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = ROOT / "results"
sys.path[:0] = [str(ROOT), str(HERE)]

import quote_compiled  # noqa: E402 - the folder of this file is no package
import quote_decode  # noqa: E402
import quote_depth  # noqa: E402
import quote_faults  # noqa: E402
import quote_fields  # noqa: E402
import quote_noise  # noqa: E402
import quote_studies as studies  # noqa: E402
import quote_whole  # noqa: E402
from quote_tables import markdown  # noqa: E402

from moe_parity.report import glossary  # noqa: E402

FIGURES = (
  "demo/curve.png",
  "mixture_small/activation_rate.png",
  "mixture_small/loss_curves.png",
  "architecture_small/shape_scatter.png",
  "data_reuse_small/reuse_by_scheme.png",
  "data_reuse_small/reuse_decay.png",
  "whole_small/downstream.png",
  "depth/n200_b5/activation_rate.png",
  "depth/n200_b20/activation_rate.png",
  "decode.png",
)


def bench() -> str:
  """The benchmarks that have a target."""
  table = json.loads((RESULTS / "bench.json").read_text())
  lines = markdown(
    ["start-up", "median s", "min", "max"],
    [[row["what"], *_two_digits(row, "median_s", "min_s", "max_s")] for row in table["startup"]],
  )[1:]
  lines += markdown(
    ["full train step", "dtype", "tokens/s", "CPU s per step", "share of peak"],
    [
      [row["work"], row["dtype"], f"{row['tokens_per_s']:,.0f}",
       *_two_digits(row, "cpu_s_per_step", "share_of_peak")]
      for row in table["step"]
    ],
  )  # fmt: skip
  peak = {row["dtype"]: row["peak_gflop_per_s"] for row in table["step"]}
  reached = " and ".join(f"{value:.0f} GFLOP/s in {dtype}" for dtype, value in peak.items())
  lines += ["", f"Peak: matrix products reached {reached} in that run."]
  lines += markdown(
    ["MoE layer, speed relative to a dense FFN of equal activated FLOPs", "MaxVio", "ratio", "min",
     "max"],
    [
      [row["shape"], *_two_digits(row, "max_vio", "ratio", "ratio_min", "ratio_max")]
      for row in table["layer"]
    ],
  )  # fmt: skip
  lines += markdown(
    ["compile a train step", "6 layers, s", "24 layers, s", "24 over 6 layers"],
    [
      [row["work"], f"{row['layers_6_s']:.1f}", f"{row['layers_24_s']:.1f}", f"{row['ratio']:.2f}"]
      for row in table["compile"]
    ],
  )
  rate = table["loader"][0]
  lines += ["", f"Loader, {rate['what']}: {rate['tokens_per_s'] / 1e6:.0f} M tokens/s."]
  return "\n".join(lines)


def _two_digits(row: dict, *names: str) -> list[str]:
  return [f"{row[name]:.2f}" for name in names]


def maxtext() -> str:
  """The same work in MaxText, in alternating steps."""
  peer = json.loads((RESULTS / "maxtext.json").read_text())
  rows = []
  for work in ("dense", "moe"):
    for name in ("wall", "cpu"):
      row = peer[work][name]
      spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
      rows.append([work, name, *_two_digits(row, "maxtext_s", "ours_s", "ratio"), spread])
  about = (
    f"{peer['what']}, {peer['when']}, {peer['machine']} shared with other work, {peer['rounds']}"
    f" rounds; {peer['note']}. Each ratio compares two consecutive steps; the last column is the"
    " range over all rounds."
  )
  names = ["full train step", "seconds", "MaxText", "ours", "MaxText over ours", "range"]
  return "\n".join([about, *markdown(names, rows)])


def stacked() -> str:
  """Seeds stacked with vmap against seeds one after the other."""
  table = json.loads((RESULTS / "stacked_seeds.json").read_text())
  rows = []
  for row in table["rows"]:
    cpu = row["cpu"]
    rows.append([
      f"{row['arm']} of {row['config']}", f"{row['tokens']:,}", row["seeds"],
      f"{cpu['one_by_one_s']:.3f}", f"{cpu['stacked_s']:.3f}", f"{cpu['ratio']:.2f}",
      f"{cpu['ratio_min']:.2f} to {cpu['ratio_max']:.2f}",
    ])  # fmt: skip
  names = ["step", "tokens per seed", "seeds", "separate steps, CPU s", "one stacked step, CPU s",
           "separate over stacked", "range"]  # fmt: skip
  about = f"{table['machine']}, {table['rounds']} rounds; above 1 stacking is faster."
  return "\n".join([about, *markdown(names, rows)])


def log() -> str:
  """The index of the log, newest first: number, date, question with its result, summary."""
  rows = []
  for path in sorted((HERE / "log").glob("[0-9]*.md"), reverse=True):
    title, summary, _ = path.read_text().split("\n\n", 2)
    number, date, question = title.removeprefix("# ").split(" · ", 2)
    summary = summary.removeprefix("**TL;DR.** ")
    rows.append([number, date, f"[{question}]({path.name})", " ".join(summary.split())])
  return "\n".join(markdown(["", "date", "question and result", "in short"], rows))


def campaign() -> str:
  """When the faults of `python -m tests.campaign` were injected, and what became of them."""
  table = json.loads((RESULTS / "campaign.json").read_text())
  outcomes = ["injected", "survived", "named", "silently wrong", "traceback", "lost run"]
  rows = [
    [row["group"], row["kind"], *(f"{row[name]:,}" for name in outcomes)] for row in table["rows"]
  ]
  begun, ended = (table[name].replace("T", " ").removesuffix("+00:00") for name in ("from", "to"))
  seeds = ", ".join(map(str, table["seeds"]))
  said = f"Injected from {begun} to {ended} (UTC), seeds {seeds}."
  return "\n".join([said, "", *markdown(["where", "what", *outcomes], rows)])


def rounds() -> str:
  """How often the tests of the worker contract passed in a row, from `python -m tests.rounds`."""
  table = json.loads((RESULTS / "contract_rounds.json").read_text())
  rows, well = table["rounds"], table["passed_in_a_row"]
  loads, took = [row["load"] for row in rows], [row["seconds"] for row in rows]
  failed = "" if well == len(rows) else f" Round {len(rows)} failed, which ended it."
  return (
    f"These {rows[0]['tests']} tests passed {well} times in a row ({table['wanted']} were required)"
    f" on {table['cores']} cores that other processes also used: a load average of"
    f" {min(loads):.0f} to {max(loads):.0f}, and {min(took)} to {max(took):,} s a round.{failed}"
  )


def symbols() -> str:
  """The paper's letters with their names in code, as the report page explains them."""
  rows = [
    [symbol.letters, ", ".join(f"`{name}`" for name in symbol.code), symbol.meaning]
    for symbol in glossary.TABLE
  ]
  return "\n".join(markdown(["symbol", "in code", "meaning"], rows)[1:])


BLOCKS = {
  "demo": studies.demo,
  "findings": lambda: studies.findings([*quote_depth.lead(), quote_whole.finding()]),
  "mixture": studies.mixture,
  "search": studies.search,
  "reuse": studies.reuse,
  "durations": studies.durations,
  "validation_documents": studies.validation_documents,
  "depth": quote_depth.depth,
  "depth_narrow": quote_depth.narrow,
  "depth_controls": quote_depth.controls,
  "depth_shapes": quote_depth.shapes,
  "whole_pretrained": quote_whole.pretrained,
  "whole_fine_tuned": quote_whole.fine_tuned,
  "whole_examined": quote_whole.examined,
  "whole_both": quote_whole.both_runs,
  "bench": bench,
  "maxtext": maxtext,
  "stacked": stacked,
  "compiled": quote_compiled.compiled,
  "gpu_compiled": quote_compiled.gpu_compiled,
  "mesh_price": quote_compiled.mesh_price,
  "mesh_parts": quote_compiled.mesh_parts,
  "decode_measured": quote_decode.measured,
  "decode_prefill": quote_decode.prefill,
  "decode_computed": quote_decode.computed,
  "coverage": quote_noise.coverage_chosen,
  "coverage_unseen": quote_noise.coverage_unseen,
  "noise_of_kinds": quote_noise.kinds,
  "routed_scale": studies.routed_scale,
  "campaign": campaign,
  "rounds": rounds,
  "faults_before": quote_faults.summary,
  **{f"faults_{name}": functools.partial(quote_faults.block, name) for name in quote_faults.ROWS},
  "log": log,
  "symbols": symbols,
  "fields": quote_fields.fields,
}


def pages() -> list[pathlib.Path]:
  """The README and every page of the documentation."""
  return [ROOT / "README.md", *sorted(HERE.rglob("*.md"))]


def quoted(text: str) -> str:
  """A page with its blocks as the files have them.

  Raises:
    KeyError: the page has a block that is not made here.
  """
  for name in re.findall(r"<!-- /(\w+) -->", text):
    marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    block = BLOCKS[name]()
    text = re.sub(marked, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
  return text


def main() -> None:
  """Rewrites all pages and copies the figures."""
  for path in pages():
    path.write_text(quoted(path.read_text()))
  for name in FIGURES:
    copy_of(name).write_bytes((RESULTS / name).read_bytes())


def copy_of(figure: str) -> pathlib.Path:
  """Where a figure of `results/` is shown from: docs that become a site hold their own files."""
  return HERE / "figures" / figure.replace("/", "_")


if __name__ == "__main__":
  main()
