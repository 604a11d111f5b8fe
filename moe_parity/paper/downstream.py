"""Downstream scores as the paper prints them, in percent: Table 2 of version 2.

downstream.csv has its 48 cells and the averages of its columns. The curves of the poster's Figure 8
are not held. Scores are printed without seeds or intervals (see `anomalies`, A17).
"""

import csv
import dataclasses
import functools
from importlib import resources


@dataclasses.dataclass(frozen=True)
class PublishedScore:
  """One printed score: `score` keeps its digits."""

  arm: str
  group: str
  benchmark: str
  score: str
  source: str


@functools.cache
def published() -> tuple[PublishedScore, ...]:
  """All cells, in the file's order."""
  text = (resources.files(__package__) / "downstream.csv").read_text("utf-8")
  return tuple(PublishedScore(**row) for row in csv.DictReader(text.splitlines()))
