"""Several sources in fixed shares: an order over windows with a budget and epochs for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moe_parity.data.order import Order, key, permute, splitmix64
from moe_parity.data.token_store import Split
from moe_parity.errors import UserError

CYCLE = 1000  # positions in which a mixture meets its shares exactly
_ARRANGEMENT, _GROUP = 3, 4  # what a key is for


@dataclass(frozen=True)
class Group:
  """Windows first ... first + count - 1, of which `num_unique` are read, `share` times a cycle."""

  first: int
  count: int
  share: int
  num_unique: int


class Mixture:
  """Groups of windows in exact shares: a pure function of (seed, position), like `Order`.

  Every cycle of 1000 positions holds each group `share` times, in an arrangement of its own; within
  a group the order is that of `Order`, so each group has its own epochs and nested budgets.
  """

  def __init__(self, num_windows: int, groups: Sequence[Group], seed: int):
    assert sum(group.share for group in groups) == CYCLE
    self.num_windows, self.groups, self.seed = num_windows, tuple(groups), seed
    self.num_unique = sum(group.num_unique for group in groups)

  @cached_property
  def _orders(self) -> list[Order | None]:
    return [
      Order(group.count, group.num_unique, key(self.seed, _GROUP, number)) if group.share else None
      for number, group in enumerate(self.groups)
    ]

  def windows(self, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the windows at these positions, counted from the start of the run."""
    cycles = np.arange(start // CYCLE, -(-stop // CYCLE), dtype=np.int64)
    noise = splitmix64(cycles.astype(np.uint64))
    keys = splitmix64(np.uint64(key(self.seed, _ARRANGEMENT)) ^ noise)
    places = np.tile(np.arange(CYCLE), (cycles.size, 1))
    places = permute(places, CYCLE, np.repeat(keys, CYCLE))
    edges = np.cumsum([group.share for group in self.groups])
    chosen = np.searchsorted(edges, places, side="right")
    out = np.empty_like(places)
    for group, order, number in zip(self.groups, self._orders, range(len(edges)), strict=True):
      if order is not None:
        here = chosen == number
        turn = cycles[:, None] * group.share + np.cumsum(here, axis=1) - 1
        out[here] = group.first + order.at(turn[here])
    return out.reshape(-1)[start - start // CYCLE * CYCLE :][: stop - start]

  def to_dict(self) -> dict:
    """What names this order; two runs with equal dicts over one stream have the same order."""
    groups = [[g.first, g.count, g.share, g.num_unique] for g in self.groups]
    return {
      "num_windows": self.num_windows,
      "num_unique": self.num_unique,
      "seed": self.seed,
      "groups": groups,
    }


def order_from(named: dict) -> Order | Mixture:
  """The order that `to_dict` described."""
  if "groups" in named:
    groups = [Group(*numbers) for numbers in named["groups"]]
    return Mixture(named["num_windows"], groups, named["seed"])
  return Order(named["num_windows"], named["num_unique"], named["seed"])


def groups_of(split: Split, seq_len: int) -> list[tuple[int, int]]:
  """(first window, windows) of each source of a store, in the manifest's order of sources.

  A window at the border belongs to the source of its first target, so a group may hold up to
  seq_len - 1 tokens of the next; `audit` counts tokens, not windows.
  """
  starts = split.document_starts[:-1]
  origin = split.documents.origin
  num_windows = split.num_windows(seq_len)
  groups = []
  for number in range(len(split.entry["by_origin"])):
    tokens = starts[origin == number]
    if tokens.size == 0:
      groups.append((0, 0))
      continue
    after = starts[origin > number]
    end = int(after[0]) if after.size else split.num_tokens
    # Window i is of the source that holds token i * seq_len + 1.
    first = max(0, -(-(int(tokens[0]) - 1) // seq_len))
    last = min(num_windows, -(-(end - 1) // seq_len))
    groups.append((first, max(0, last - first)))
  return groups


def plan_mixture(
  groups: Sequence[tuple[int, int]],
  weights: Sequence[float | int],
  seed: int,
  *,
  num_windows: int,
  num_unique: int = 0,
  num_rows: int = 0,
  max_epochs: float | int = 0.0,
) -> Mixture:
  """A mixture that keeps its promises, or a refusal before training.

  Args:
    groups: (first window, windows) of each source.
    weights: one a source, at least 0; rounded to thousandths of their sum by largest remainder.
    num_unique: budget of unique windows, given to the sources by share; 0 is all they have.
    num_rows: rows of the run, to bound reuse; 0 is not known.
    max_epochs: times a source may be read; 0 is no bound.
  Raises:
    UserError: weights that name no shares, a source too small for its share of the budget, or one
      that would be read too often.
  """
  if len(weights) != len(groups) or min(weights) < 0 or sum(weights) <= 0:
    raise UserError(
      f"weights={list(weights)} for {len(groups)} sources; give each a weight of at least 0, not "
      f"all of them 0"
    )
  planned = []
  for number, ((first, count), share) in enumerate(zip(groups, shares_of(weights), strict=True)):
    wanted = num_unique * share // CYCLE if num_unique else count
    wanted = wanted if share else 0
    if share and not 1 <= wanted <= count:
      raise UserError(
        f"source {number} has {count} windows, its share {share / CYCLE:.3f} of {num_unique} "
        f"unique windows is {wanted}; change its weight or the budget, or give it more text"
      )
    epochs = num_rows * share / CYCLE / wanted if wanted else 0.0
    if max_epochs and epochs > max_epochs:
      raise UserError(
        f"source {number} would be read {epochs:.2f} times, max_epochs is {max_epochs}; lower its "
        f"weight ({share / CYCLE:.3f}) or give it more text"
      )
    planned.append(Group(first, count, share, wanted))
  return Mixture(num_windows, planned, seed)


def shares_of(weights: Sequence[float | int]) -> list[int]:
  """Integers that sum to 1000, nearest to the weights' proportions (largest remainder)."""
  exact = [weight / sum(weights) * CYCLE for weight in weights]
  shares = [int(value) for value in exact]
  by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
  for i in by_remainder[: CYCLE - sum(shares)]:
    shares[i] += 1
  return shares
