"""Tables and verdicts as text."""

import pathlib
import textwrap
from collections.abc import Sequence


def print_table(rows: Sequence[dict]) -> None:
  """Rows of equal keys in aligned columns, numbers to the right, as wide as they are."""
  if not rows:
    print("(nothing)")
    return
  cells = [[name.replace("_", " ") for name in rows[0]]]
  cells += [[show(value) for value in row.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  right = [isinstance(value, int | float) for value in rows[0].values()]
  cells.insert(1, ["-" * width for width in widths])
  for line in cells:
    columns = zip(line, widths, right, strict=True)
    print("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in columns).rstrip())


def show(value) -> str:
  """A cell: integers with separators, other numbers to four digits."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return "" if value is None else str(value)
  if isinstance(value, int):
    return f"{value:,}" if abs(value) < 10**9 else f"{value:.4g}"
  return f"{value:.4g}"


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


def _print_words(headline: str, sentences: Sequence[str]) -> None:
  print("\n" + textwrap.fill(headline, 96))
  for sentence in sentences:
    print(textwrap.fill(sentence, 96, initial_indent="- ", subsequent_indent="  "))
