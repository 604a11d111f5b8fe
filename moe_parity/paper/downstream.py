"""Downstream scores as the paper prints them, in percent: the cells of Table 2 that are held here.

downstream.csv has five of its cells; the rest of Table 2 and the curves of the poster's Figure 8
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
  """All that are held, in the file's order."""
  text = (resources.files(__package__) / "downstream.csv").read_text("utf-8")
  return tuple(PublishedScore(**row) for row in csv.DictReader(text.splitlines()))
