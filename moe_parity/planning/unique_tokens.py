"""Data as a resource: how many different tokens an arm may see, by the scheme of the budget.

  strict  every arm draws from the tokens the dense arm reads once (of several, the fewest), or from
          budget.unique_tokens
  loose   every MoE arm makes two epochs and the dense arm one, as in the paper's Tables 14 and 17,
          where D^ = tokens / 2 row by row: the arms' unique tokens differ, and the plan says so
  epochs  every arm makes the given number of epochs, the dense arm too; D^ differs likewise
  unique  no arm sees a token twice; D^ differs likewise

A reference (compute_multiple not 1, such as dense at 2C) may see as many times more unique tokens
as it has compute, as the paper's does; it takes no part in the comparison. A control (a dense model
of another N) has the budget's C and, under `strict`, the same unique tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_parity.errors import UserError
from moe_parity.planning.budget import ArmSpec, Budget


def unique_tokens(budget: Budget, arms: Sequence[tuple[ArmSpec, int]]) -> list[int]:
  """Tokens of the whole windows each arm may draw from, in the order of the arms.

  Args:
    arms: each arm with the tokens it sees.
  Raises:
    UserError: strict reuse without a dense arm or a number; an arm that sees more than the unique
      tokens allow, or too few to see those of the others.
  """
  shared = budget.unique_tokens // budget.seq_len * budget.seq_len
  if budget.reuse == "strict" and not shared:
    dense = [tokens for spec, tokens in arms if spec.kind == "dense" and spec.is_at_parity]
    if not dense:
      raise UserError(
        "budget.reuse='strict' takes the dense arm's tokens and there is no arm of "
        "kind 'dense' at compute_multiple=1; add one or give budget.unique_tokens"
      )
    shared = min(dense)
  rule = {"unique": _unique, "strict": _strict, "loose": _epochs, "epochs": _epochs}[budget.reuse]
  return [rule(budget, spec, tokens, shared) for spec, tokens in arms]


REPEATS_MORE = {  # scheme -> what makes arms read less text more often
  "unique": "reuse='strict'",
  "loose": "reuse='strict'",
  "strict": "fewer budget.unique_tokens",
  "epochs": "more budget.epochs",
}


def check_corpus(
  budget: Budget, spec: ArmSpec, num_unique_tokens: int, available_tokens: int
) -> None:
  """Refuses a corpus that holds fewer tokens than the arm that needs most."""
  if num_unique_tokens > available_tokens:
    raise UserError(
      f"arm {spec.name!r} needs {num_unique_tokens:,} unique tokens with reuse={budget.reuse!r} "
      f"and the corpus holds {available_tokens:,}; use more text, less compute, or"
      f" {REPEATS_MORE[budget.reuse]}"
    )


def _unique(budget: Budget, spec: ArmSpec, tokens: int, shared: int) -> int:
  if shared and tokens > shared:
    raise UserError(
      f"arm {spec.name!r} sees {tokens:,} tokens, over budget.unique_tokens="
      f"{budget.unique_tokens:,} with reuse='unique'; give more unique tokens, less "
      f"compute, or reuse='strict'"
    )
  return tokens


def _strict(budget: Budget, spec: ArmSpec, tokens: int, shared: int) -> int:
  windows = max(int(shared * spec.compute_multiple) // budget.seq_len, 1)
  unique = min(windows * budget.seq_len, tokens)
  if not spec.is_reference and shared - unique > budget.flops_tolerance * shared:
    raise UserError(
      f"arm {spec.name!r} sees {tokens:,} tokens and so cannot see the {shared:,} "
      f"unique ones of the others; lower budget.unique_tokens or use reuse='unique'"
    )
  return unique


def _epochs(budget: Budget, spec: ArmSpec, tokens: int, shared: int) -> int:
  epochs = budget.epochs if budget.reuse == "epochs" else 2 if spec.kind == "moe" else 1
  return math.ceil(tokens // budget.seq_len / epochs) * budget.seq_len
