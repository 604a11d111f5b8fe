"""Finished runs as rows for a surrogate: the paper's tables, or a user's own folders."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from moe_parity.errors import UserError
from moe_parity.paper import tables
from moe_parity.planning.accounting import cost_of
from moe_parity.study import reading
from moe_parity.study.surrogate.laws import ArmFeatures

SAME_SIZE = math.log(1.15)  # a gap in ln N that parts two sizes
SAME_REUSE = math.log(1.25)  # a gap in ln epochs that parts two ways to reuse text
PUBLISHED = ("table09", "table10", "table11", "table14", "table16")


@dataclasses.dataclass(frozen=True)
class ScoredRuns:
  """Runs with their score, all on one held-out text.

  Attributes:
    labels: where each row stands. inputs, bpc: [rows].
    shape: index of the row's shape (N and r_a): rows of one shape are near-duplicates.
    size: index of the row's kind and size (dense or MoE; sizes closer than 15 % are one).
    reuse: index of size and epochs (closer than 25 % are one).
    source: what the rows are, in words.
  """

  labels: tuple[str, ...]
  inputs: ArmFeatures
  bpc: np.ndarray
  shape: np.ndarray
  size: np.ndarray
  reuse: np.ndarray
  source: str

  def __len__(self) -> int:
    return len(self.bpc)

  def keep(self, chosen: np.ndarray) -> "ScoredRuns":
    """The rows where `chosen` is true; groups keep their numbers."""
    labels = tuple(label for label, kept in zip(self.labels, chosen, strict=True) if kept)
    fields = (self.inputs, self.bpc, self.shape, self.size, self.reuse)
    return ScoredRuns(labels, *(field[chosen] for field in fields), self.source)

  def size_name(self, size: int | np.integer) -> str:
    """Such as "MoE 2.15B"."""
    rows = self.inputs[self.size == size]
    millions = float(np.exp(np.log(rows.num_params).mean())) / 1e6
    number = f"{millions / 1e3:.3g}B" if millions >= 1e3 else f"{millions:.3g}M"
    return f"{'dense' if rows.dense[0] else 'MoE'} {number}"


def make_rows(
  labels: Sequence[str], inputs: ArmFeatures, bpc: np.ndarray, source: str
) -> ScoredRuns:
  """Runs with their groups."""
  shapes = [(round(float(n)), round(float(r), 6)) for n, r in _pairs(inputs)]
  shape = np.unique(np.array(shapes), axis=0, return_inverse=True)[1].reshape(-1)
  size = _clusters(inputs.num_params, inputs.dense.astype(int), SAME_SIZE)
  reuse = _clusters(inputs.epochs, size, SAME_REUSE)
  return ScoredRuns(tuple(labels), inputs, np.asarray(bpc, np.float64), shape, size, reuse, source)


def published_rows() -> ScoredRuns:
  """The 46 runs of Tables 9, 10, 11, 14 and 16 that have a BPC; a run printed twice counts once.

  N and r_a by the `paper` convention, tokens from iterations x batch x S, so that no row rests on
  a printed figure that contradicts another. Only Table 16 repeats tokens.
  """
  shapes: dict[tuple, tuple[str, list, float]] = {}
  for name in PUBLISHED:
    for row in tables.table(name):
      cost = cost_of(row.architecture, row["seq_len"], "paper")
      tokens = float(row.num_tokens)
      unique = float(row.printed.get("D_unique_tokens", tokens))
      inputs = [cost.num_params, cost.activation_rate, tokens, max(1.0, tokens / unique)]
      label = f"Table {int(name[-2:])} row {row.number}"
      shapes.setdefault(tuple(inputs), (label, inputs, row["bpc"]))
  labels, inputs, bpc = zip(*shapes.values(), strict=True)
  arrays = ArmFeatures(*np.array(inputs, np.float64).T)
  return make_rows(labels, arrays, np.array(bpc), "the tables of arXiv:2506.12119v1")


def study_rows(folders: Sequence[str | pathlib.Path]) -> ScoredRuns:
  """Every finished run of study (or run) folders, and of all comparisons of a study.

  Raises:
    UserError: no finished run; folders whose scores cannot be compared (other held-out text,
      another mode or context of evaluation).
  """
  labels, inputs, bpc, texts = [], [], [], {}
  for folder in folders:
    for label, run in reading.read_everything(folder):
      validation = run.result.get("validation", {})
      if not run.done or not run.plan or not math.isfinite(validation.get("bpc", math.nan)):
        continue
      plan = run.plan
      if plan.get("tunes"):
        continue  # a try at a learning rate that may be a poor one
      key = (validation["mode"], validation["seq_len"], validation["stride"])
      documents = tuple((d["source"], d["num_chars"]) for d in validation["documents"])
      texts.setdefault((*key, validation["num_chars"], documents), []).append(str(folder))
      labels.append(f"{pathlib.Path(folder).name}/{label}")
      rate = 1.0 if plan["kind"] == "dense" else plan["activation_rate"]
      inputs.append([plan["num_params"], rate, plan["num_tokens"], max(1.0, plan["epochs"])])
      bpc.append(validation["bpc"])
  if not labels:
    names = ", ".join(str(folder) for folder in folders)
    raise UserError(f"--runs {names}: no finished run in there; give folders with result.json")
  if len(texts) > 1:
    first, second = list(texts.values())[:2]
    raise UserError(
      f"{first[0]} and {second[0]} were scored on different held-out text, mode or seq_len, so "
      "their BPC cannot be compared; give --runs that share them"
    )
  arrays = ArmFeatures(*np.array(inputs, np.float64).T)
  return make_rows(labels, arrays, np.array(bpc), f"{len(labels)} finished runs")


def _pairs(inputs: ArmFeatures):
  return zip(inputs.num_params, inputs.activation_rate, strict=True)


def _clusters(values: np.ndarray, within: np.ndarray, gap: float) -> np.ndarray:
  """Groups within each number of `within` whose sorted logarithms leave no gap above `gap`."""
  group = np.zeros(len(values), int)
  count = 0
  for number in np.unique(within):
    members = np.flatnonzero(within == number)
    members = members[np.argsort(values[members], kind="stable")]
    gaps = np.diff(np.log(values[members])) > gap
    group[members] = count + np.concatenate([[0], np.cumsum(gaps)])
    count = int(group[members].max()) + 1
  return group
