"""Writes the figures of this folder into the README, between markers: `python results/quote.py`.

A test runs it and finds nothing to change, so no number there is typed by hand."""

import json
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def demo() -> str:
  """The demo's verdict and its arms."""
  analysis = json.loads((HERE / "demo" / "analysis.json").read_text())
  rows = ["| arm | N_a / N | tokens | epochs | bits per character |", "|---|---|---|---|---|"]
  for arm in sorted(analysis["arms"], key=lambda arm: arm["activation_rate"]):
    rows.append(
      f"| {arm['name']} | {arm['activation_rate']:.3f} | {arm['num_tokens']:,} |"
      f" {arm['epochs']:.2f} | {arm['bpc']:.4f} |"
    )
  return "The page says: *" + analysis["verdict"]["headline"] + "*\n\n" + "\n".join(rows)


def mixture() -> str:
  """The sweep on a mixture of text: verdict, arms, and what it says for and against the paper."""
  folder = HERE / "mixture_small"
  analysis = json.loads((folder / "analysis.json").read_text())
  step = json.loads((folder / "activation_rate.json").read_text())
  sweep = step["sweeps"][0]
  against = {row["name"]: row for row in analysis["comparisons"]}
  rows = []
  for arm in sweep["arms"]:
    row = against.get(arm["name"])
    told = ["", "", ""]
    if row:
      low, high = row["simultaneous"]
      told = [f"{row['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", row["verdict"]]
    rows.append([
      arm["name"], f"{arm['activation_rate']:.3f}", f"{arm['num_tokens']:,}",
      f"{arm['epochs']:.2f}", arm["num_seeds"], f"{arm['bpc']:.4f}", *told,
    ])  # fmt: skip
  seed_sd, df = analysis["noise"]["sd"], analysis["noise"]["df"]
  runs = sum(arm["num_seeds"] for arm in sweep["arms"])
  lines = [
    f"{runs} runs, N = {sweep['num_params']:,}, C = {sweep['train_flops']:.3g} FLOPs, every arm on"
    f" the same {sweep['dense_tokens']:,} bytes of text; seeds vary by {seed_sd:.4f} BPC ({df}"
    f" degrees of freedom). *{analysis['verdict']['headline']}*",
    *markdown(
      ["arm", "N_a / N", "tokens", "epochs", "seeds", "bits per character", "minus dense",
       "95 %, all rows at once", ""],
      rows,
    ),
    "",
  ]  # fmt: skip
  named = ("BPC is lowest", "The best activation rate", "The curve is lowest", "The fitted curve",
           "Against dense_2c")  # fmt: skip
  said = [s for s in analysis["verdict"]["sentences"] if s.startswith(named)]
  said += [s for s in step["sentences"] if s.startswith("Learning rates")]
  return "\n".join(lines + [f"- {s}" for s in said])


def search() -> str:
  """The architecture search: what it locked, and every question with its answer."""
  folder = HERE / "architecture_small"
  step = json.loads((folder / "architecture.json").read_text())
  budget = json.loads((folder / "plan.json").read_text())["budget"]
  noise = step["noise"]
  lines = [
    f"{sum(step['num_runs'].values())} runs, N = {budget['num_params']:,}, C ="
    f" {budget['train_flops']:.3g} FLOPs, {budget['num_unique_tokens']:,} bytes of text; seeds vary"
    f" by {noise['sd']:.4f} BPC ({noise['df']} degrees of freedom). *{step['headline']}*",
    "",
  ]
  return "\n".join(lines + [f"- {s}" for s in step["sentences"]])


def reuse() -> str:
  """Data reuse: every arm under every scheme, against dense and against reading no text twice."""
  folder = HERE / "data_reuse_small"
  step = json.loads((folder / "data_reuse.json").read_text())
  budget = json.loads((folder / "plan.json").read_text())["budget"]
  cost = {(row["part"], row["name"]): row for row in step["costs"]}
  rows = []
  for scheme in step["schemes"]:
    name = f"{scheme['epochs']:g} epochs" if scheme["reuse"] == "epochs" else scheme["reuse"]
    arms = {arm["name"]: arm for arm in scheme["arms"]}
    for row in scheme["comparisons"]:
      arm, (low, high) = arms[row["name"]], row["simultaneous"]
      again, told = cost.get((scheme["part"], row["name"])), ["", ""]
      if again:
        told = [f"{again['difference']:+.4f}", "{:+.4f} to {:+.4f}".format(*again["interval"])]
      rows.append([
        name, f"{arm['activation_rate']:.3f}", f"{arm['epochs']:.2f}", f"{arm['bpc']:.4f}",
        f"{row['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", row["verdict"], *told,
      ])  # fmt: skip
  noise = step["noise"]
  names = ["reuse", "N_a / N", "epochs", "bits per character", "minus dense",
           "95 %, a scheme's rows at once", "", "minus unique", "95 %, each"]  # fmt: skip
  lines = [
    f"{sum(step['num_runs'].values())} runs, N = {budget['num_params']:,}, C ="
    f" {budget['train_flops']:.3g} FLOPs, dense reads {budget['dense_tokens']:,} bytes once and"
    f" scores {step['schemes'][0]['baseline']['bpc']:.4f}; two seeds each vary by"
    f" {noise['sd']:.4f} BPC ({noise['df']} degrees of freedom). What stands against unique is of"
    " the same seeds.",
    *markdown(names, rows),
    "",
    f"*{step['headline']}* {step['sentences'][-1]}",
  ]
  return "\n".join(lines)


def stacked() -> str:
  """Seeds stacked with vmap against seeds one after the other."""
  told = json.loads((HERE / "stacked_seeds.json").read_text())
  rows = []
  for row in told["rows"]:
    cpu = row["cpu"]
    rows.append([
      f"{row['arm']} of {row['config']}", f"{row['tokens']:,}", row["seeds"],
      f"{cpu['one_by_one_s']:.3f}", f"{cpu['stacked_s']:.3f}", f"{cpu['ratio']:.2f}",
      f"{cpu['ratio_min']:.2f} to {cpu['ratio_max']:.2f}",
    ])  # fmt: skip
  names = ["step", "tokens a seed", "seeds", "one by one, CPU s", "stacked, CPU s", "ratio",
           "of all rounds"]  # fmt: skip
  about = f"{told['machine']}, {told['rounds']} rounds; above 1 stacking is faster."
  return "\n".join([about, *markdown(names, rows)])


def markdown(names: list[str], rows: list[list]) -> list[str]:
  """A Markdown table, with an empty line before it."""
  lines = [names, ["---"] * len(names), *rows]
  return ["", *("| " + " | ".join(map(str, line)) + " |" for line in lines)]


def bench() -> str:
  """The benchmarks that have a bar to reach."""
  table = json.loads((HERE / "bench.json").read_text())
  lines = markdown(
    ["start-up", "median s", "min", "max"],
    [
      [row["what"], *(f"{row[name]:.2f}" for name in ("median_s", "min_s", "max_s"))]
      for row in table["startup"]
    ],
  )[1:]
  lines += markdown(
    ["full train step", "dtype", "tokens/s", "CPU s a step", "of peak"],
    [
      [
        row["work"],
        row["dtype"],
        f"{row['tokens_per_s']:,.0f}",
        f"{row['cpu_s_per_step']:.2f}",
        f"{row['share_of_peak']:.2f}",
      ]
      for row in table["step"]
    ],
  )
  peak = {row["dtype"]: row["peak_gflop_per_s"] for row in table["step"]}
  reached = " and ".join(f"{value:.0f} GFLOP/s in {dtype}" for dtype, value in peak.items())
  lines += ["", f"Of peak: matrix products reached {reached} in that run."]
  lines += markdown(
    ["MoE layer against a dense FFN of equal activated FLOPs", "MaxVio", "ratio", "min", "max"],
    [
      [row["shape"], *(f"{row[n]:.2f}" for n in ("max_vio", "ratio", "ratio_min", "ratio_max"))]
      for row in table["layer"]
    ],
  )
  lines += markdown(
    ["compile a train step", "6 layers, s", "24 layers, s", "ratio"],
    [
      [row["work"], f"{row['layers_6_s']:.1f}", f"{row['layers_24_s']:.1f}", f"{row['ratio']:.2f}"]
      for row in table["compile"]
    ],
  )
  rate = table["loader"][0]
  lines += ["", f"Loader, {rate['what']}: {rate['tokens_per_s'] / 1e6:.0f} M tokens/s."]
  return "\n".join(lines)


def maxtext() -> str:
  """The same work in MaxText, step about."""
  peer = json.loads((HERE / "maxtext.json").read_text())
  rows = []
  for work in ("dense", "moe"):
    for name in ("wall", "cpu"):
      row = peer[work][name]
      spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
      rows.append([work, name, *(f"{row[f'{side}_s']:.2f}" for side in ("maxtext", "ours")),
                   f"{row['ratio']:.2f}", spread])  # fmt: skip
  about = (
    f"{peer['what']}, {peer['when']}, {peer['machine']} shared with other work, {peer['rounds']}"
    f" rounds; {peer['note']}. A ratio is of neighbouring steps."
  )
  names = ["full train step", "seconds", "MaxText", "ours", "ratio", "of all rounds"]
  return "\n".join([about, *markdown(names, rows)])


def compiled() -> str:
  """What the compiler says of steps for TPU slices, a row a file."""
  gib, rows = 2**30, []
  for path in sorted(HERE.glob("compile_*.json")):
    report = json.loads(path.read_text())
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items() if size > 1)
    memory, seconds = report["memory"], report.get("seconds")
    row = [f"{report['arm']} of {report['config']}", report["topology"], mesh, report["remat"],
           f"{report['tokens_per_device']:,}"]  # fmt: skip
    if not report["fits"]:
      rows.append([*row, "does not fit", *[""] * 4])
      continue
    rows.append(
      [*row, f"{memory['total'] / gib:.1f} of {memory['hbm'] / gib:.1f}",
       f"{1e3 * seconds['step']:.0f}", f"{1e3 * seconds['collective']:.0f}",
       f"{1e3 * seconds['roofline']:.0f}", f"{seconds['step'] / seconds['roofline']:.2f}"]
    )  # fmt: skip
  names = ["arm", "slice", "mesh", "remat", "tokens a device", "GiB", "step, ms",
           "of it links, ms", "FLOPs at peak, ms", "ratio"]  # fmt: skip
  return "\n".join(markdown(names, rows))


def quoted(text: str) -> str:
  """The README with its blocks as the files have them."""
  blocks = {"demo": demo(), "mixture": mixture(), "search": search(), "reuse": reuse()}
  blocks |= {"bench": bench(), "maxtext": maxtext(), "compiled": compiled(), "stacked": stacked()}
  for name, block in blocks.items():
    marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    text = re.sub(marked, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
  return text


if __name__ == "__main__":
  README.write_text(quoted(README.read_text()))
