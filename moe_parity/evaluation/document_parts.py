"""Which validation documents score tries of learning rates, and which the comparison.

A rate that is chosen on the documents of the comparison is a little too good on them. With
`evaluation.tuning_share` that share of each domain's validation documents, drawn by seed, scores
tries and nothing else, and the comparison uses the others. With 0 both use all.
"""

from typing import Any

import numpy as np

from moe_parity.data.token_store import Documents
from moe_parity.data.window_order import key, permute
from moe_parity.errors import UserError
from moe_parity.evaluation.bits_per_character import choose_documents

TRIES, COMPARISON = "tries", "comparison"
_DRAW = 0x7E57  # sets this draw apart from that of `choose_documents`


def part_of(documents: Documents, share: float, seed: int, is_try: bool) -> np.ndarray | None:
  """Rows of the documents of one part, in stream order; None where share is 0: all of them.

  A domain of one document gives it to the comparison, one of more gives each part at least one.

  Raises:
    UserError: no domain has two documents.
  """
  if not share:
    return None
  is_for_tries = np.zeros(len(documents), bool)
  for domain in np.unique(documents.domain):
    members = np.flatnonzero(documents.domain == domain)
    number = min(max(round(share * members.size), 1), members.size - 1)
    order = permute(np.arange(members.size), members.size, key(seed, int(domain), _DRAW))
    is_for_tries[members[order[:number]]] = True
  if not is_for_tries.any():
    raise UserError(
      f"evaluation.tuning_share={share}: no domain of the held-out text has two documents to"
      " divide; hold out more (data.held_out), or use 0"
    )
  return np.flatnonzero(is_for_tries == is_try)


def rows_of_run(documents: Documents, config: Any, is_try: bool) -> np.ndarray:
  """Rows of the documents that a run with this config is scored on when it ends."""
  evaluation, seed = config.evaluation, config.data.seed
  among = part_of(documents, evaluation.tuning_share, seed, is_try)
  return choose_documents(documents, evaluation.max_tokens, seed, among)
