"""Several domains in fixed shares: which one each row of a run is of, and what a run sees of each.

Rows are dealt out in a cycle of as many rows as the weights have units: 'prose=2,code=1' deals
prose code prose, for ever. After n rows a domain of weight w has had n w rows to within
(1 + w m) / 2 for m domains, so what a run reads of each is known before it runs, and every batch is
mixed alike. The first U rows of a run name its budget of U unique windows: each domain's part is
what they read of it, and rows after them read that part again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from moe_parity.errors import UserError
from moe_parity.escapes import split, split_at_last, unescape

LONGEST_CYCLE = 10_000


@dataclass(frozen=True)
class Shares:
  """Rows of each name in every cycle of sum(counts) rows."""

  names: tuple[str, ...]
  counts: tuple[int, ...]

  @cached_property
  def pattern(self) -> tuple[int, ...]:
    """The number of the name each row of a cycle is of: evenly spread, the earlier name first."""
    due = [
      ((2 * turn + 1) / (2 * count), number)
      for number, count in enumerate(self.counts)
      for turn in range(count)
    ]
    return tuple(number for _, number in sorted(due))

  def rows(self, num_rows: int) -> list[int]:
    """How many of the first num_rows rows each name has."""
    cycles, rest = divmod(num_rows, len(self.pattern))
    begun = self.pattern[:rest]
    return [cycles * count + begun.count(number) for number, count in enumerate(self.counts)]


def read_shares(weights: str) -> Shares | None:
  r"""'prose=2,code=0.5' as whole rows of a cycle; None where it is empty. `a\,b=1` is "a,b".

  Raises:
    UserError: not of that form, a name twice, or weights finer than a cycle of 10,000 rows can
      give exactly.
  """
  if not weights:
    return None
  shares: dict[str, Fraction] = {}
  for part in split(weights, ","):
    before, number = split_at_last(part, "=")
    name = unescape(before)
    try:
      weight = Fraction(number)
    except (ValueError, ZeroDivisionError):
      weight = Fraction(-1)
    if not name or weight < 0 or name in shares:
      raise UserError(
        f"data.weights={weights!r}: {part!r} is not <name>=<weight of at least 0> of a name"
        " not given before; write prose=2,code=1, and a comma in a name as \\,"
      )
    shares[name] = weight
  unit = Fraction(1, math.lcm(*(weight.denominator for weight in shares.values())))
  counts = [int(weight / unit) for weight in shares.values()]
  if not sum(counts):
    raise UserError(f"data.weights={weights!r} are all 0; give one domain at least some weight")
  counts = [count // math.gcd(*counts) for count in counts]
  if sum(counts) > LONGEST_CYCLE:
    raise UserError(
      f"data.weights={weights!r} meet their proportions only every {sum(counts):,} rows, over"
      f" {LONGEST_CYCLE:,}; round them to four decimals that sum to 1"
    )
  return Shares(tuple(shares), tuple(counts))


def plan_mixture(
  arm: str,
  reuse: str,
  shares: Shares,
  num_tokens: int,
  num_unique_tokens: int,
  seq_len: int,
  available: Mapping[str, int] | None,
  max_epochs: float | int,
) -> dict[str, dict]:
  """What an arm sees of each domain, or a refusal.

  A domain that holds less than its part of the unique tokens gives all it has and is read more
  often, where max_epochs allows it; then the arm's unique tokens are fewer than asked for.

  Args:
    num_unique_tokens: of all domains together. available: tokens each holds in whole windows; None
      does not check. max_epochs: times a domain may be read; 0 lets none be read more often than
      the others.
  Returns:
    name -> {"share" (rows a cycle), "num_tokens", "num_unique_tokens", "epochs"}.
  Raises:
    UserError: a domain too small, or read too often.
  """
  wanted = shares.rows(num_unique_tokens // seq_len)
  seen = shares.rows(num_tokens // seq_len)
  planned = {}
  for number, name in enumerate(shares.names):
    unique, num_windows = wanted[number], None
    if available is not None:
      num_windows = available[name] // seq_len
      unique = min(unique, num_windows)
    if (
      num_windows is not None and unique < wanted[number] and (reuse == "unique" or not max_epochs)
    ):
      repeat = "" if reuse == "unique" else ", or let it repeat by data.max_epochs"
      raise UserError(
        f"arm {arm!r}: {name!r} holds {num_windows * seq_len:,} tokens, its part of"
        f" {num_unique_tokens:,} unique ones is {wanted[number] * seq_len:,}; lower its weight or"
        f" the budget, give it more text{repeat}"
      )
    if seen[number] and not unique:
      raise UserError(
        f"arm {arm!r}: {name!r} has no whole window of {seq_len} tokens among the"
        f" {num_unique_tokens:,} unique ones; raise its weight, or give it none or more text"
      )
    epochs = seen[number] / unique if unique else 0.0
    check_epochs(arm, name, epochs, max_epochs)
    planned[name] = {
      "share": shares.counts[number],
      "num_tokens": seen[number] * seq_len,
      "num_unique_tokens": unique * seq_len,
      "epochs": epochs,
    }
  return planned


def check_epochs(arm: str, name: str, epochs: float, max_epochs: float | int) -> None:
  """Refuses data that an arm would read more often than data.max_epochs, to two decimals."""
  if max_epochs and round(epochs, 2) > max_epochs:
    raise UserError(
      f"arm {arm!r} would read {name!r} {epochs:.2f} times, data.max_epochs={max_epochs:g}; give"
      " more unique tokens, less compute, less weight to what is scarce, or raise the bound"
    )
