"""What a request scored. No JAX: results are read without it."""

from typing import NamedTuple

import numpy as np


class RequestNats(NamedTuple):
  """Of requests: nats of the continuation, whether each of its tokens was the most likely one, and
  how many ids of the context did not fit into the window. Nats are nan where not computed yet."""

  nats: np.ndarray
  is_greedy: np.ndarray
  num_cut: np.ndarray


def empty(number: int) -> RequestNats:
  """Nothing computed yet."""
  return RequestNats(np.full(number, np.nan), np.zeros(number, bool), np.zeros(number, np.int64))
