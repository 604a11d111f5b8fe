"""Likelihood of continuations: how many nats a model pays for a text after another.

Requests are sorted by length and padded to few lengths, so that few programs are compiled and
little is computed for padding. A batch holds about as many tokens at every length. Its rows are
sharded over the devices. No assignment of a token to an expert is dropped, so that a request's
score does not depend on the others of its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from moe_parity.downstream.request_nats import RequestNats, empty
from moe_parity.errors import UserError
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.sharding import mesh as meshes

SHORTEST = {"cpu": 32}  # positions of the shortest program
SHORTEST_ELSEWHERE = 128  # what an attention kernel needs a length to be a multiple of
TOKENS_PER_BATCH = {"cpu": 4096}
TOKENS_PER_BATCH_ELSEWHERE = 65_536


class Continuation(NamedTuple):
  """Ids that are given, at least one, and ids that are scored after them, at least one."""

  context: np.ndarray
  continuation: np.ndarray


class Likelihood:
  """A model, and one program for each length."""

  def __init__(self, model: InferenceModel, *, num_positions: int, tokens_per_batch: int = 0):
    """
    Args:
      num_positions: the window: the most positions that a request may take.
      tokens_per_batch: 0 for what suits the device.
    """
    self._model, self.num_positions = model, num_positions
    platform = jax.default_backend()
    self._tokens = tokens_per_batch or TOKENS_PER_BATCH.get(platform, TOKENS_PER_BATCH_ELSEWHERE)
    self._shortest = SHORTEST.get(platform, SHORTEST_ELSEWHERE)
    out = {} if model.mesh is None else {"out_shardings": model.replicated}
    self._program = jax.jit(self._step, **out)

  def score(
    self,
    requests: Sequence[Continuation],
    resume: Callable[[int], RequestNats] = empty,
    on_batch: Callable[[RequestNats], None] = lambda scores: None,
  ) -> RequestNats:
    """RequestNats of all requests.

    What does not fit the window is cut from the front of the context, as lm-eval and OLMES do, and
    counted in `num_cut`. A continuation longer than the window is scored in pieces of half a
    window, each after as much as fits of the text before it.

    Args:
      resume: number of pieces -> their scores as an earlier, interrupted call had them: nats that
        are numbers are not computed again.
      on_batch: is given the scores of all pieces so far, after each batch.
    Raises:
      UserError: a request without context or continuation; logits that are not finite.
    """
    for number, request in enumerate(requests, 1):
      if not len(request.context) or not len(request.continuation):
        raise UserError(
          f"request {number} has {len(request.context)} tokens of context and"
          f" {len(request.continuation)} to score; both need one: begin the context with the token"
          " that begins a document"
        )
    pieces, owner_P = self._pieces(requests)
    scores = resume(len(pieces))
    for size, rows in self._batches(pieces, np.isnan(scores.nats)):
      self._score_batch(pieces, rows, size, scores)
      on_batch(scores)
    total = RequestNats(
      np.zeros(len(requests)), np.ones(len(requests), bool), empty(len(requests))[2]
    )
    np.add.at(total.nats, owner_P, scores.nats)
    np.logical_and.at(total.is_greedy, owner_P, scores.is_greedy)
    np.maximum.at(total.num_cut, owner_P, scores.num_cut)
    length_R = np.array([len(request.context) for request in requests], np.int64)
    return total._replace(num_cut=np.minimum(total.num_cut, length_R))

  def _pieces(self, requests: Sequence[Continuation]) -> tuple[list[Continuation], np.ndarray]:
    """Requests that fit the window but for their contexts, and the request that each is of."""
    pieces, owners, half = [], [], max(self.num_positions // 2, 1)
    for number, request in enumerate(requests):
      context, continuation = request
      step = half if len(continuation) > self.num_positions else len(continuation)
      for start in range(0, len(continuation), step):
        before = np.concatenate([context, continuation[:start]]) if start else context
        pieces.append(Continuation(before, continuation[start : start + step]))
        owners.append(number)
    return pieces, np.array(owners, np.int64)

  def lengths(self) -> list[int]:
    """The lengths that requests are padded to: doubled from the shortest up to the window."""
    found, size = [], self._shortest
    while size < self.num_positions:
      found.append(size)
      size *= 2
    return [*found, self.num_positions]

  def _batches(self, requests, wanted_R: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(padded length, numbers of its requests), long ones first: they are what may not fit."""
    length_R = np.array([len(r.context) + len(r.continuation) - 1 for r in requests], np.int64)
    length_R = np.minimum(length_R, self.num_positions)
    sizes = np.array(self.lengths())
    size_R = sizes[np.searchsorted(sizes, length_R)]
    for size in sizes[::-1].tolist():
      members = np.flatnonzero((size_R == size) & wanted_R)
      members = members[np.argsort(length_R[members], kind="stable")]
      number = self._rows_at(size)
      for start in range(0, len(members), number):
        yield size, members[start : start + number]

  def _rows_at(self, size: int) -> int:
    num_devices = 1 if self._model.mesh is None else self._model.mesh.size
    return max(self._tokens // size // num_devices, 1) * num_devices

  def _score_batch(self, requests, rows, size: int, scores: RequestNats) -> None:
    number = self._rows_at(size)
    inputs_BS, targets_BS = (np.zeros((number, size), np.int32) for _ in range(2))
    spans = []
    for b, r in enumerate(rows):
      context, continuation = requests[r]
      ids = np.concatenate([context, continuation]).astype(np.int32)
      scores.num_cut[r] = max(len(ids) - 1 - size, 0)
      ids = ids[scores.num_cut[r] :]
      inputs_BS[b, : len(ids) - 1], targets_BS[b, : len(ids) - 1] = ids[:-1], ids[1:]
      spans.append(slice(len(ids) - 1 - len(continuation), len(ids) - 1))
    put = self._model.put_batch
    nll_BS, is_top_BS = (
      np.asarray(x)[:number]
      for x in self._program(*self._model.weights, put(inputs_BS), put(targets_BS))
    )
    for b, (r, span) in enumerate(zip(rows, spans, strict=True)):
      nats = float(nll_BS[b, span].astype(np.float64).sum())
      if not np.isfinite(nats):
        raise UserError(
          f"the logits of request {r + 1} are not finite; the run diverged, or its weights are too"
          " large for this dtype: take another checkpoint or --dtype=float32"
        )
      scores.nats[r], scores.is_greedy[r] = nats, bool(is_top_BS[b, span].all())

  def _step(self, params, buffers, inputs_BS, targets_BS):
    with meshes.use_mesh(self._model.mesh):
      model = nnx.merge(self._model.graph, params, buffers)
      hidden_TD, _ = model.final_hidden(inputs_BS)  # one document a row
      nll_T, is_top_T = model.token_scores(hidden_TD, targets_BS.reshape(-1))
      return nll_T.reshape(targets_BS.shape), is_top_T.reshape(targets_BS.shape)
