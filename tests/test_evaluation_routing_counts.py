"""Counted choices against the model's own loads and against a loop over tokens."""

import jax
import numpy as np
import pytest
from flax import nnx

from moe_parity.data.token_store import Documents, open_store
from moe_parity.errors import UserError
from moe_parity.evaluation import routing_counts
from moe_parity.model.options import ModelOptions
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding.mesh import make_mesh
from moe_parity.training.state import from_checkpoint, model_shardings
from tests.helpers import small_model
from tests.helpers.small_store import small_store


@pytest.fixture(scope="module")
def counted():
  """A compiled counter of a model, the model's own loads, inputs, a mask and what was counted.

  Two MoE layers in a repeated pattern: their counts must come back in the order of the layers.
  """
  model = small_model.build(small_model.moe(layout="DMMDMM", num_layers=6), 3, attention_block=4)
  count = jax.jit(lambda inputs, mask: routing_counts.count_batch(model, inputs, mask))
  inputs, _ = small_model.tokens(batch=5, seq_len=8, seed=4)
  loads = jax.jit(lambda inputs: model.final_hidden(inputs)[1].load_E)(inputs)
  mask = np.random.default_rng(5).random(inputs.shape) < 0.7
  return count, np.asarray(loads), inputs, mask, count(inputs, mask)


def test_with_every_token_counted_the_loads_are_the_model_s_own(counted):
  count, loads, inputs, _, _ = counted
  rows, pairs = count(inputs, np.ones(inputs.shape, bool))
  assert np.asarray(rows).sum(1) == pytest.approx(loads * inputs.size * 2, abs=1e-3)
  assert np.array_equal(np.diagonal(pairs, axis1=1, axis2=2), np.asarray(rows).sum(1))


def test_only_unmasked_tokens_count_and_pairs_are_of_one_token(counted):
  _, _, _, mask, (rows, pairs) = counted
  rows, pairs = np.asarray(rows), np.asarray(pairs)
  assert np.array_equal(rows.sum(-1), np.tile(2 * mask.sum(1), (len(rows), 1)))
  assert np.array_equal(pairs, pairs.swapaxes(1, 2))
  for layer in pairs:  # K = 2: a token chooses one pair
    assert layer.sum() - np.trace(layer) == 2 * mask.sum()


def test_a_row_s_counts_do_not_depend_on_the_rows_beside_it(counted):
  count, _, inputs, mask, (rows, _) = counted
  order = np.array([3, 0, 4, 1, 2])
  moved, _ = count(inputs[order], mask[order])
  assert np.array_equal(np.asarray(moved), np.asarray(rows)[:, order])


def test_a_mesh_counts_as_one_device_does():
  """Eight devices, 7 experts on 2 x 4 of them (one phantom), and 5 rows, which 8 do not divide.

  Sums in another order may tip a choice between two experts that are as good as equal; here none
  is, and every number agrees."""
  assert jax.device_count() == 8
  architecture = small_model.moe(layout="full", num_layers=2, d_model=16)
  options, mesh = ModelOptions(), make_mesh(MeshSizes(fsdp=2, expert=4))
  weights = nnx.split(small_model.build(architecture, 3), nnx.Param, ...)[1:]
  inputs, _ = small_model.tokens(batch=5, seq_len=8, seed=4)
  mask = np.random.default_rng(5).random(inputs.shape) < 0.7
  expected = routing_counts.make_routing_counter(architecture, options)(*weights)(inputs, mask)
  on_mesh = from_checkpoint(weights, model_shardings(architecture, options, mesh)[1])
  assert jax.tree.leaves(on_mesh)[0].sharding.mesh.size == 8
  found = routing_counts.make_routing_counter(architecture, options, mesh)(*on_mesh)(inputs, mask)
  for one, many in zip(expected, found, strict=True):
    assert np.array_equal(one, many)
  assert expected[0].shape == (2, 5, 7) and expected[0].sum() == 2 * 2 * mask.sum()


def test_a_split_is_counted_document_by_document(tmp_path):
  """The counter is replaced by one whose expert is the token's id, modulo 7."""
  store = small_store(tmp_path, count=30)
  split, architecture = store.validation, small_model.moe()

  def count(inputs, counted):
    rows = np.zeros((2, len(inputs), 7), int)
    for b, (row, use) in enumerate(zip(inputs, counted, strict=True)):
      for token in row[use]:
        rows[:, b, token % 7] += 1
    return rows, np.zeros((2, 7, 7), int)

  found = routing_counts.count_routing(
    count, split, architecture, seq_len=16, batch_sequences=3, max_tokens=0
  )
  assert len(found.domain_N) == len(split.documents)
  assert np.array_equal(found.tokens_N, split.documents.num_text_tokens)
  for index in range(len(split.documents)):
    text = split.document(index)
    line = [split.tokenizer.bos_id, *text[:-1]]  # a token's choice predicts the next one
    expected = np.bincount(np.array(line) % 7, minlength=7)
    assert np.array_equal(found.expert_NLE[index], np.tile(expected, (2, 1)))
  assert found.domains == open_store(tmp_path / "store").validation.documents.domains


@pytest.mark.parametrize("max_tokens, cut", [(600, 256), (90, 256), (2000, 20), (0, 256)])
def test_a_sample_takes_beginnings_up_to_max_tokens(tmp_path, max_tokens, cut):
  split = small_store(tmp_path, count=60).validation
  rows, tokens = routing_counts.sample_documents(split.documents, max_tokens, 3, cut)
  lengths = split.documents.num_text_tokens[rows]
  assert np.all(np.diff(rows) > 0) and np.all(tokens <= lengths)
  if not max_tokens:
    assert len(rows) == len(split.documents) and np.array_equal(tokens, lengths)
    return
  assert 0 < tokens.sum() <= max_tokens
  assert set(split.documents.domain[rows]) == set(split.documents.domain)
  seen = []

  def count(inputs, counted):
    seen.append((inputs, counted))
    return np.zeros((2, len(inputs), 7), int), np.zeros((2, 7, 7), int)

  found = routing_counts.count_routing(
    count,
    split,
    small_model.moe(),
    seq_len=16,
    batch_sequences=3,
    max_tokens=max_tokens,
    seed=3,
    tokens_per_document=cut,
  )
  assert np.array_equal(found.tokens_N, tokens)
  looked_at = [list(inputs[mask]) for batch in seen for inputs, mask in zip(*batch, strict=True)]
  text = [[split.tokenizer.bos_id, *split.document(int(i))][:n] for i, n in zip(rows, tokens)]  # noqa: B905
  assert sum(looked_at, []) == sum(text, [])


def of_many_domains(number):
  """As many documents of 30 tokens as domains."""
  sizes, place = (np.full(number, 30),) * 4, np.arange(number)
  return Documents(*sizes, place, 0 * place, 0 * place, tuple(map(str, place)), ("a",))


@pytest.mark.parametrize(("max_tokens", "number"), [(16384, 1000), (90, 90)])
def test_of_too_many_domains_some_are_counted(max_tokens, number):
  """By subreddit or address there may be more than documents to count."""
  rows, tokens = routing_counts.sample_documents(of_many_domains(2500), max_tokens, 3)
  assert len(rows) == number and np.all(np.diff(rows) > 0) and (rows[0], rows[-1]) == (0, 2499)
  assert np.all(tokens == max_tokens // number) and tokens.sum() <= max_tokens


def test_a_dense_model_has_no_choices_to_count():
  with pytest.raises(UserError, match="dense model"):
    routing_counts.make_routing_counter(small_model.dense(), ModelOptions())
