"""Attention that stays within documents: marks, values, gradients and loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_parity.evaluation import bits_per_character
from moe_parity.evaluation.model_scorer import make_scorer
from moe_parity.model.documents import DocumentSeparators, document_separators
from moe_parity.model.options import ModelOptions
from moe_parity.model.transformer import abstract_model
from moe_parity.training.optimizer import OptimizerOptions
from moe_parity.training.state import init_state
from moe_parity.training.step import StepOptions, make_train_step
from tests.helpers import reference_transformer, small_model
from tests.helpers.small_store import small_store

S = 12
BEGIN, END = 0, 1
# Texts of three rows: the first continues the window before, the last is cut off by the row's
# end, one is empty, one row is all one document.
ROWS = [[3, [5, 4]], [S], [2, [0, 1, 2]]]


def packed_rows():
  """(inputs, targets) [3, S] and, per row, where each document's inputs begin in it."""
  rng = np.random.default_rng(4)
  rows, begins = [], []
  for spec in ROWS:
    stream, starts = list(rng.integers(2, small_model.VOCAB, spec[0])), [0]
    for length in spec[1] if len(spec) > 1 else []:
      stream.append(END)
      starts.append(len(stream))
      stream += [BEGIN, *rng.integers(2, small_model.VOCAB, length)]
    stream = (stream + list(rng.integers(2, small_model.VOCAB, S)))[: S + 1]
    rows.append(stream)
    begins.append(starts)
  rows = np.array(rows, np.int32)
  return rows[:, :-1], rows[:, 1:], begins


def alone(inputs, targets, begins):
  """Every document in a row of its own, from its place 0 on, with noise after it: (inputs, targets,
  mask of its own scored targets) [documents, S], and (row, first, end) of each."""
  rng = np.random.default_rng(5)
  places = [
    (row, first, end)
    for row, starts in enumerate(begins)
    for first, end in zip(starts, [*starts[1:], S], strict=True)
  ]
  shape = (len(places), S)
  x, y = (rng.integers(2, small_model.VOCAB, shape).astype(np.int32) for _ in range(2))
  mask = np.zeros(shape, bool)
  for number, (row, first, end) in enumerate(places):
    x[number, : end - first] = inputs[row, first:end]
    y[number, : end - first] = targets[row, first:end]
    mask[number, : end - first] = targets[row, first:end] != BEGIN
  return x, y, mask, places


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=4, max_size=4))
@settings(max_examples=25)
def test_numbers_are_those_of_walking_along_the_row(rows):
  tokens = jnp.array(rows, jnp.int32)
  for end in (1, 0):
    documents = DocumentSeparators(begin_id=0, end_id=end)
    number = np.asarray(documents.document_ids(tokens))
    scored = np.asarray(documents.loss_mask(tokens))
    for i, row in enumerate(rows):
      here = 0
      for j, token in enumerate(row):
        here += token == 0
        assert number[i, j] == here
        assert scored[i, j] == (end == 0 or token != 0)


def test_positions_with_one_id_are_of_one_document(tmp_path):
  train = small_store(tmp_path).train
  documents = document_separators(train.tokenizer, cross_documents=False)
  owner = np.repeat(np.arange(train.num_documents), train.documents.num_tokens)
  windows = np.arange(train.num_windows(64))
  rows = jnp.asarray(train.rows(windows, 64))
  number, scored = documents.document_ids(rows[:, :-1]), documents.loss_mask(rows[:, 1:])
  for window in windows:
    here, after = (owner[window * 64 + k : (window + 1) * 64 + k] for k in (0, 1))
    # A row that begins with a document counts it from 1: what counts is which are equal.
    assert (here - here[0]).tolist() == (number[window] - number[window][0]).tolist()
    assert (here == after).tolist() == scored[window].tolist()
  assert 0 < scored.sum() < scored.size
  assert document_separators(train.tokenizer, cross_documents=True) is None


@pytest.mark.parametrize("kind, position", [("moe", "alibi"), ("dense", "rope")])
def test_a_packed_document_scores_as_one_alone(kind, position):
  architecture = getattr(small_model, kind)()
  model = small_model.build(architecture, position=position, attention_block=4)
  inputs, targets, begins = packed_rows()

  @jax.jit
  def nats(number):
    hidden, _ = model.final_hidden(jnp.asarray(inputs), number)
    return model.token_nll(hidden, jnp.asarray(targets).reshape(-1)).reshape(targets.shape)

  number = DocumentSeparators(BEGIN, END).document_ids(jnp.asarray(inputs))
  found, crossing = np.asarray(nats(number)), np.asarray(nats(jnp.zeros_like(number)))
  outer, layers = small_model.reference_weights(model)
  differs = 0
  for row, starts in enumerate(begins):
    for first, end in zip(starts, [*starts[1:], S], strict=True):
      expected, _ = reference_transformer.token_nats(
        outer, layers, architecture, inputs[row : row + 1, first:end],
        targets[row : row + 1, first:end], position, False,
      )  # fmt: skip
      # float32 against float64 over three layers, as in the tests of whole rows
      np.testing.assert_allclose(found[row, first:end], expected[0], atol=2e-4)
      if first:
        differs += np.abs(crossing[row, first:end] - expected[0]).max() > 0.01
  assert differs == 5  # what attends across gives other numbers in every later document


def test_packed_documents_have_the_gradient_of_documents_alone():
  model = small_model.build(small_model.dense(), position="rope", attention_block=6)
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  inputs, targets, begins = packed_rows()
  x, y, mask, _ = alone(inputs, targets, begins)
  empty = np.zeros(
    (len(x) - len(inputs), S), np.int32
  )  # rows that do not count: one shape for both
  inputs, targets = (jnp.asarray(np.concatenate([rows, empty])) for rows in (inputs, targets))
  documents = DocumentSeparators(BEGIN, END)
  scored = documents.loss_mask(targets) & (jnp.arange(len(x)) < 3)[:, None]

  @jax.jit
  @jax.value_and_grad
  def of(params, inputs, targets, scored, number):
    model = nnx.merge(graph, params, rest)
    nats = model.token_nll(model.final_hidden(inputs, number)[0], targets.reshape(-1))
    return jnp.sum(jnp.where(scored.reshape(-1), nats, 0.0)) / jnp.sum(scored)

  value, packed = of(params, inputs, targets, scored, documents.document_ids(inputs))
  expected_value, expected = of(params, x, y, mask, jnp.zeros_like(inputs))
  assert value == pytest.approx(float(expected_value), rel=1e-5)
  for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)  # float32, other orders of the same sums


def test_the_loss_averages_unmasked_targets_of_all_micro_batches():
  inputs, targets, begins = packed_rows()
  x, y, mask, _ = alone(inputs, targets, begins)
  assert mask.sum() == 3 * S - 5  # five documents begin inside a row
  architecture, model = small_model.dense(), ModelOptions()
  optimizer = OptimizerOptions(0.01, 1e-5, num_steps=40, warmup_steps=4)
  state = init_state(architecture, model, optimizer, seed=3)
  expected = make_scorer(architecture, model)(state.params, state.buffers)(x, y, mask)[mask].mean()
  options = StepOptions(accumulation=3, documents=DocumentSeparators(BEGIN, END))
  _, scalars = make_train_step(architecture, model, optimizer, options)(state, inputs, targets)
  assert scalars["cross_entropy"] == pytest.approx(expected, rel=1e-6)


def test_packed_evaluation_equals_that_by_document(tmp_path):
  split = small_store(tmp_path, held_out="hash:0.4").validation
  architecture, model = small_model.dense(vocab_size=272), ModelOptions()
  graph, params, buffers = abstract_model(architecture, model)
  built = small_model.build(architecture)
  _, params, buffers = nnx.split(built, nnx.Param, ...)
  documents = document_separators(split.tokenizer, cross_documents=False)
  seq_len = 160  # longer than any document, so some lie whole in a window
  arguments = dict(seq_len=seq_len, batch_sequences=4)
  kept, crossed = (
    make_scorer(architecture, model, marks)(params, buffers) for marks in (documents, None)
  )
  by_document = bits_per_character.evaluate(kept, split, mode="document", **arguments)
  assert by_document == bits_per_character.evaluate(crossed, split, mode="document", **arguments)
  packed = bits_per_character.evaluate(kept, split, mode="packed", **arguments)
  across = bits_per_character.evaluate(crossed, split, mode="packed", **arguments)
  starts = split.document_starts
  compared = 0
  for number, document in enumerate(by_document["documents"]):
    first, last = starts[number], starts[number + 1] - 1
    if first // seq_len == (last - 1) // seq_len and last <= split.num_windows(seq_len) * seq_len:
      compared += 1
      assert packed["documents"][number]["nats"] == pytest.approx(document["nats"], rel=1e-5)
      if first % seq_len:
        assert across["documents"][number]["nats"] != pytest.approx(document["nats"], rel=1e-3)
  assert compared > 5
