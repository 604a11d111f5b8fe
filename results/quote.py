"""Writes the figures of this folder into the README, between its markers: `python results/quote.py`.

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


def bench() -> str:
  """The benchmarks that have a bar to reach."""
  table = json.loads((HERE / "bench.json").read_text())
  lines = ["| start-up | median s | min | max |", "|---|---|---|---|"]
  for row in table["startup"]:
    lines.append(f"| {row['what']} | {row['median_s']:.2f} | {row['min_s']:.2f} | {row['max_s']:.2f} |")
  lines += ["", "The common work that MaxText 0.2.5 was timed on here earlier, on the same kind of"]
  lines += ["machine (1,953 tokens/s dense, 1,998 its best MoE, which drops; ours is dropless):", ""]
  lines += ["| full train step | dtype | tokens/s | x MaxText's best | CPU s a step | of matmul peak |"]
  lines += ["|---|---|---|---|---|---|"]
  for row in table["step"]:
    best = {"dense": 1953, "moe": 1998}[row["work"]]
    lines.append(
      f"| {row['work']} | {row['dtype']} | {row['tokens_per_s']:,.0f} |"
      f" {row['tokens_per_s'] / best:.2f} | {row['cpu_s_per_step']:.2f} |"
      f" {row['share_of_peak']:.2f} |"
    )
  lines += ["", "| MoE layer against dense FFN of equal activated FLOPs | skew | ratio | min | max |"]
  lines += ["|---|---|---|---|---|"]
  for row in table["layer"]:
    lines.append(
      f"| {row['shape']} | {row['skew']} | {row['ratio']:.2f} | {row['ratio_min']:.2f} |"
      f" {row['ratio_max']:.2f} |"
    )
  lines += ["", "| compile the train step | 6 layers, s | 24 layers, s | ratio |", "|---|---|---|---|"]
  for row in table["compile"]:
    lines.append(
      f"| {row['work']} | {row['layers_6_s']:.1f} | {row['layers_24_s']:.1f} | {row['ratio']:.2f} |"
    )
  rate = table["loader"][0]
  lines += ["", f"Loader, {rate['what']}: {rate['tokens_per_s'] / 1e6:.0f} M tokens/s."]
  return "\n".join(lines)


def quoted(text: str) -> str:
  """The README with both blocks as the files have them."""
  for name, block in (("demo", demo()), ("bench", bench())):
    marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    text = re.sub(marked, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
  return text


if __name__ == "__main__":
  README.write_text(quoted(README.read_text()))
