"""Lists and counts in words, for the sentences of a verdict."""

from collections.abc import Sequence


def count(some: int, total: int, noun: str) -> str:
  """`2 of 3 MoE arms`; of runs with the verb, `1 of 3 runs is`."""
  verb = "is" if some == 1 else "are"
  if noun == "run":
    return f"{some} of {total} runs {verb}"
  return f"{some} of {total} {noun}s"


def listed(items: Sequence[str]) -> str:
  """`a, b and c`."""
  if len(items) < 2:
    return "".join(items)
  return ", ".join(items[:-1]) + " and " + items[-1]
