"""Several domains in fixed shares: an order over windows with a budget and epochs for each.

Which domain a row is of and how many windows of each a run draws from is planned (see
`planning.domain_shares`); here the rows get windows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_parity.data.token_store import Split, TokenStore
from moe_parity.data.window_order import Order, key
from moe_parity.errors import UserError
from moe_parity.escapes import escape
from moe_parity.planning.domain_shares import Shares, read_shares

_GROUP = 4  # what a key is for


class Mixture:
  """Windows of several groups in exact shares: a pure function of (seed, position), like `Order`.

  Within a group the order is that of `Order`, so each group has its own epochs, and a smaller
  budget of a group is a prefix of a larger one.

  Args:
    domain_ids: the group of each window, in [0, groups).
    num_unique: windows of each group that a run draws from.
  """

  def __init__(self, domain_ids: np.ndarray, shares: Shares, num_unique: Sequence[int], seed: int):
    self.num_windows, self.domain_ids, self.shares, self.seed = (
      domain_ids.size,
      domain_ids,
      shares,
      seed,
    )
    self.unique_by_group = tuple(int(n) for n in num_unique)
    self.num_unique = sum(self.unique_by_group)
    pattern = np.array(shares.pattern)
    self._pattern, self._rank = pattern, np.zeros(pattern.size, np.int64)
    self._groups = []
    for number, (name, count) in enumerate(zip(shares.names, shares.counts, strict=True)):
      self._rank[pattern == number] = np.arange(count)
      members, unique = _Members(domain_ids == number), self.unique_by_group[number]
      if count and not 1 <= unique <= members.count:
        raise UserError(
          f"{unique} unique windows of {name!r} do not fit the {members.count} there are; plan"
          " again with the store the run is to read"
        )
      order = Order(members.count, unique, key(seed, _GROUP, number)) if count else None
      self._groups.append((order, members))

  def windows(self, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the windows at these positions, counted from the start of the run."""
    cycles, places = np.divmod(np.arange(start, stop, dtype=np.int64), self._pattern.size)
    chosen = self._pattern[places]
    out = np.empty_like(places)
    for number, (order, members) in enumerate(self._groups):
      is_member = chosen == number
      if is_member.any():
        turn = cycles[is_member] * self.shares.counts[number] + self._rank[places[is_member]]
        out[is_member] = members.window(order.at(turn))
    return out

  def to_dict(self) -> dict:
    """What names this order, given `domain_ids`: equal dicts and ids have the same order."""
    return {
      "num_windows": self.num_windows,
      "num_unique": self.num_unique,
      "seed": self.seed,
      "groups": list(self.shares.names),
      "shares": list(self.shares.counts),
      "unique_by_group": list(self.unique_by_group),
    }


class _Members:
  """The windows of a group, kept as runs of neighbors."""

  def __init__(self, mask: np.ndarray):
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    self._first, lengths = edges[0::2], edges[1::2] - edges[0::2]
    self._before = np.cumsum(lengths) - lengths
    self.count = int(lengths.sum())

  def window(self, index: np.ndarray) -> np.ndarray:
    """The windows that are `index` in the group's order in the stream."""
    run = np.searchsorted(self._before, index, side="right") - 1
    return self._first[run] + index - self._before[run]


def order_from(named: dict, domain_ids: np.ndarray | None = None) -> Order | Mixture:
  """The order that `to_dict` described."""
  if "groups" in named:
    shares = Shares(tuple(named["groups"]), tuple(named["shares"]))
    return Mixture(domain_ids, shares, named["unique_by_group"], named["seed"])
  return Order(named["num_windows"], named["num_unique"], named["seed"])


def mixture_of(split: Split, seq_len: int, planned: Mapping[str, Mapping], seed: int) -> Mixture:
  """The order of an arm's plan (`ArmPlan.mixture`) over a stream."""
  shares = Shares(tuple(planned), tuple(entry["share"] for entry in planned.values()))
  unique = [entry["num_unique_tokens"] // seq_len for entry in planned.values()]
  return Mixture(window_domain_ids(split, seq_len, shares.names), shares, unique, seed)


def planner_inputs(store: TokenStore, config: Any) -> dict[str, Any]:
  """What the planner of a config takes from a store: arguments of `make_plan`.

  Raises:
    UserError: data.weights does not name the store's domains.
  """
  seq_len, shares = config.budget.seq_len, read_shares(config.data.weights)
  return {
    "available_tokens": store.train.num_windows(seq_len) * seq_len,
    "available_by_domain": shares and available_tokens(store.train, seq_len, shares.names),
    "vocab_size": store.tokenizer.vocab_size,
  }


def available_tokens(split: Split, seq_len: int, names: Sequence[str]) -> dict[str, int]:
  """Tokens in whole windows of each of these domains; see `window_domain_ids`."""
  counts = np.bincount(window_domain_ids(split, seq_len, names), minlength=len(names))
  return {name: int(count) * seq_len for name, count in zip(names, counts, strict=True)}


def window_domain_ids(split: Split, seq_len: int, names: Sequence[str]) -> np.ndarray:
  """Which of these domains each window is of: that of the document its first target is in.

  A window at a border may hold up to seq_len - 1 tokens of the next; `audit` counts tokens.

  Raises:
    UserError: a name is no domain of the store, or a domain that has windows is not named.
  """
  domains, names = split.documents.domains, list(names)
  position = np.arange(split.num_windows(seq_len), dtype=np.int64) * seq_len + 1
  document = np.searchsorted(split.document_starts, position, side="right") - 1
  domain = split.documents.domain[document]
  present = [domains[number] for number in np.unique(domain)]
  if not set(present) <= set(names) <= set(domains):
    raise UserError(
      f"data.weights names {', '.join(map(escape, names))}; the store has the domains"
      f" {', '.join(map(escape, present))}:"
      " name each, those to leave out with weight 0"
    )
  number_of = np.array([names.index(name) if name in names else 0 for name in domains])
  return number_of[domain].astype(np.min_scalar_type(len(names)))
