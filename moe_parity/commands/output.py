"""Tables and verdicts as text."""

import pathlib
import textwrap
from collections.abc import Sequence

from moe_parity.report.table_formats import of_rows


def print_table(rows: Sequence[dict]) -> None:
  """Rows of equal keys in aligned columns, numbers to the right, as wide as they are."""
  print(of_rows(rows).text() if rows else "(nothing)\n", end="")


def print_lost_text(validation: dict) -> None:
  """A line below bits per character where the run's tokenizer does not give all text back."""
  if lost := validation.get("text_lost"):
    print(
      f"the tokenizer loses {100 * lost['share']:.2f} % of the characters, which count here and are"
      f" never scored: these numbers are too low by about as much"
    )


def print_verdict(analysis: dict, page: str | pathlib.Path, step: dict | None = None) -> None:
  """What a step of the paper found and the verdict, in words, then where the page is."""
  if step and step.get("headline"):
    _print_words(step["headline"], step["sentences"])
    step = None
  verdict = analysis["verdict"]
  _print_words(verdict["headline"], verdict["sentences"] + (step["sentences"] if step else []))
  print(f"\nreport: {page}")


def print_finetuning(tuned: dict) -> None:
  """finetuning.json of a study: what each arm kept, and its scores on held-out chats and text."""
  from moe_parity.finetuning.sweep import label

  rows = [
    {
      "arm": label(arm),
      "seed": arm["seed"],
      "candidate": arm["chosen"],
      "chats before": arm["before"]["bpc"],
      "chats after": arm["after"]["bpc"],
      "text before": arm["text_bpc_before"],
      "text after": arm["text_bpc_after"],
    }
    for arm in tuned["chosen"]
  ]
  for arm in tuned["chosen"]:
    for words in arm["edges"]:
      print(f"note: {arm['name']} (seed {arm['seed']}): {words}; a better one may lie beyond")
  words = {True: "passed", False: "FAILED", None: "not whole"}[tuned["passed"]]
  left = len(tuned["arms"]) - len(rows)
  print("\nfine-tuned, bits per character:")
  print_table(rows)
  if compared := tuned["chats"]["comparisons"]:
    baseline = tuned["chats"]["baseline"]
    print(f"on {tuned['chats']['num_chats']} held-out chats, MoE minus {baseline}:")
    print_table([
      {"arm": row["name"], "difference": row["difference"],
       "95 % interval": bounds(row["simultaneous"]), "verdict": row["verdict"]}
      for row in compared
    ])  # fmt: skip
  print(f"certificate of fine-tuning: {words}" + (f"; {left} runs are not there yet" * bool(left)))


def print_examined(found: dict) -> None:
  """downstream.json of a study: MoE against dense, category by category."""
  from moe_parity.study.analysis.downstream_scales import left_out_lines

  for state, part in found["states"].items():
    rows = [comparison_row(row) for row in part["comparisons"] if row["kind"] == "category"]
    if rows:
      print(f"\nbenchmarks, {state}: MoE minus {part['baseline']}; all intervals hold at once")
      print_table(rows)
    for line in left_out_lines(part):
      print(line)
  if found["failed"]:
    print(f"examinations that failed: {', '.join(found['failed'])}")


def comparison_row(row: dict) -> dict:
  """A row of downstream.json's comparisons for `print_table`."""
  return {
    "scale": row["scale"],
    "task or category": row["label"],
    "arm": row["arm"],
    "minus dense": row["difference"],
    "95 % interval": bounds(row["simultaneous"]),
    "verdict": row["verdict"],
  }


def bounds(low_high: Sequence[float] | None) -> str:
  """An interval in words."""
  return "unknown" if low_high is None else f"{low_high[0]:.4f} .. {low_high[1]:.4f}"


def _print_words(headline: str, sentences: Sequence[str]) -> None:
  print("\n" + textwrap.fill(headline, 96))
  for sentence in sentences:
    print(textwrap.fill(sentence, 96, initial_indent="- ", subsequent_indent="  "))
