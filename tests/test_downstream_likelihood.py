"""Nats of continuations against the logits of a full forward pass, one request at a time."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from moe_parity.downstream.likelihood import Continuation, Likelihood, empty
from moe_parity.errors import UserError
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.model.options import ModelOptions
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding.mesh import make_mesh
from moe_parity.training.state import from_checkpoint, model_shardings
from tests.helpers import small_model

OPTIONS = ModelOptions(position="alibi")
WINDOW = 12


def likelihood(architecture=None, sizes=None, params=None, **fields):
  """(likelihood, the model that it scores with)."""
  architecture = architecture or small_model.moe()
  model = small_model.build(architecture, **dataclasses.asdict(OPTIONS))
  _, own, buffers = nnx.split(model, nnx.Param, ...)
  params = own if params is None else params(own)
  mesh = sizes and make_mesh(sizes)
  if mesh is not None:
    stored, lying = model_shardings(architecture, OPTIONS, mesh)
    placed = jax.device_put((params, buffers), jax.tree.map(lambda a: a.sharding, stored))
    params, buffers = from_checkpoint(placed, lying)
  fields = {"num_positions": WINDOW, "tokens_per_batch": 24} | fields
  loaded = InferenceModel(architecture, OPTIONS, params, buffers, mesh)
  return Likelihood(loaded, **fields), model


@functools.cache
def shared():
  """The scorer of the usual model, compiled once for the tests that only score with it."""
  return likelihood()[0]


def requests(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Continuation(*(rng.integers(0, small_model.VOCAB, n).astype(np.int32) for n in pair))
    for pair in lengths
  ]


@pytest.fixture(scope="module")
def by_hand():
  """(request, window) -> (nats, is_greedy): from the logits of the whole text at once."""
  model = small_model.build(small_model.moe(), **dataclasses.asdict(OPTIONS))
  graph, state = nnx.split(model)

  @jax.jit
  def logits(state, row):
    model = nnx.merge(graph, state)
    return model.logits(model.final_hidden(row[None])[0])

  def score(context, continuation, window=WINDOW):
    ids = np.concatenate([context, continuation])[-window - 1 :]
    row = np.zeros(window, np.int32)
    row[: len(ids) - 1] = ids[:-1]
    found = np.asarray(logits(state, row), np.float64)[: len(ids) - 1]
    found -= np.log(np.exp(found).sum(-1, keepdims=True))
    found = found[len(ids) - 1 - len(continuation) :]
    nats = -found[np.arange(len(continuation)), continuation].sum()
    return nats, bool((found.argmax(-1) == continuation).all())

  return score


LENGTHS = [(1, 1), (4, 3), (2, 7), (9, 3), (1, 11), (8, 1), (3, 2)]


def test_nats_are_those_of_the_full_forward_pass(by_hand):
  scorer = shared()
  asked = requests(LENGTHS)
  found = scorer.score(asked)
  wanted = [by_hand(*request)[0] for request in asked]
  np.testing.assert_allclose(found.nats, wanted, rtol=3e-6)  # float32, sums of up to 11
  assert not found.num_cut.any() and found.nats.dtype == np.float64


def test_greedy_is_what_the_model_would_have_written(by_hand):
  scorer = shared()
  asked = requests([(3, 1)] * 2)
  context = asked[0].context
  likely = max(range(small_model.VOCAB), key=lambda i: -by_hand(context, np.array([i]))[0])
  asked += [Continuation(context, np.array([likely], np.int32))]
  found = scorer.score(asked)
  assert found.is_greedy.tolist() == [by_hand(*request)[1] for request in asked]
  assert found.is_greedy[2]


def test_what_does_not_fit_is_cut_from_the_front_and_counted(by_hand):
  scorer = shared()
  asked = requests([(20, 3), (10, 3), (11, 3)])
  found = scorer.score(asked)
  np.testing.assert_allclose(found.nats, [by_hand(*request)[0] for request in asked], rtol=3e-6)
  assert found.num_cut.tolist() == [10, 0, 1]


def test_a_continuation_beyond_the_window_is_scored_in_pieces(by_hand):
  scorer = shared()
  (request,) = requests([(5, 2 * WINDOW + 3)])
  context, continuation = request
  wanted = sum(
    by_hand(np.concatenate([context, continuation[:at]]), continuation[at : at + 6])[0]
    for at in range(0, len(continuation), 6)
  )
  found = scorer.score([request])
  np.testing.assert_allclose(found.nats, [wanted], rtol=3e-6)
  assert found.num_cut.tolist() == [5]  # the last piece saw nothing of the five


def test_a_mesh_scores_the_same():
  alone, asked = shared().score(requests(LENGTHS)), requests(LENGTHS)
  spread = likelihood(sizes=MeshSizes(1, 2, 4))[0].score(asked)
  np.testing.assert_allclose(spread.nats, alone.nats, rtol=3e-6)
  assert spread.is_greedy.tolist() == alone.is_greedy.tolist()


def test_what_was_scored_before_is_not_scored_again():
  scorer = shared()
  asked = requests(LENGTHS)
  seen = []

  def resume(number):
    scores = empty(number)
    scores.nats[1:5] = 7.0
    return scores

  found = scorer.score(asked, resume, lambda scores: seen.append(np.isnan(scores.nats).sum()))
  assert found.nats[1:5].tolist() == [7.0] * 4 and found.nats[0] != 7.0
  assert seen[-1] == 0 and seen == sorted(seen, reverse=True)


def test_few_lengths_are_compiled():
  scorer, _ = likelihood(num_positions=1000)
  assert scorer.lengths() == [32, 64, 128, 256, 512, 1000]


def test_weights_that_are_no_numbers_are_named():
  def spoil(params):
    flat = nnx.to_flat_state(params)
    path, value = flat[0]
    return nnx.from_flat_state([(path, value.replace(value.get_value() * np.nan)), *flat[1:]])

  with pytest.raises(UserError, match="holds numbers that are not finite; the run diverged"):
    likelihood(params=spoil)


def test_a_request_without_context_is_refused():
  scorer = shared()
  with pytest.raises(UserError, match="request 1 has 0 tokens of context and 2 to score"):
    scorer.score(requests([(0, 2)]))
