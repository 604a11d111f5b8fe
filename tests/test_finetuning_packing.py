"""Packed rows hold every chat once and whole, and train as if each chat were alone."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.errors import UserError
from moe_parity.finetuning.packing import PADDING, pack
from moe_parity.model.documents import NOT_SCORED, ChatSeparators
from moe_parity.training.step import StepOptions, objective
from tests.helpers import chats, reference_transformer, small_model

BEGIN, END = 0, 1  # of the small model's vocabulary of 37; 3 to 5 mark roles


def encoded(sizes, seed=0):
  """Chats of random ids: begin, user mark, text, assistant mark, answer, end."""
  rng = np.random.default_rng(seed)
  found = []
  for size in sizes:
    cut = rng.integers(0, size - 3)
    text = rng.integers(6, small_model.VOCAB, size - 4)
    ids = np.concatenate([[BEGIN, 4], text[:cut], [5], text[cut:], [END]]).astype(np.int32)
    marks = {"system": 3, "user": 4, "assistant": 5}
    found.append((ids, np.array(chats.scored_by_reading(ids.tolist(), marks, END))))
  return found


def packed(made, seq_len=24, batch=3):
  return pack(made, seq_len=seq_len, batch_sequences=batch, pad_id=2, name="a", location="b")


@given(st.lists(st.integers(5, 25), min_size=1, max_size=40), st.integers(1, 5))
def test_every_chat_is_in_one_row_whole(sizes, batch):
  made = encoded(sizes)
  rows = packed(made, batch=batch)
  assert len(rows.inputs_RS) % batch == 0
  for number, (ids, is_scored) in enumerate(made):
    place = np.argwhere(rows.chat_RS == number)
    assert len(set(place[:, 0])) == 1 and len(place) == len(ids) - 1
    part = place[0, 0], slice(place[0, 1], place[-1, 1] + 1)
    assert rows.inputs_RS[part].tolist() == ids[:-1].tolist()
    wanted = [i if s else NOT_SCORED for i, s in zip(ids[1:], is_scored[1:], strict=True)]
    assert rows.targets_RS[part].tolist() == wanted
  assert (rows.targets_RS[rows.chat_RS == PADDING] == NOT_SCORED).all()
  assert rows.columns["num_examples"].sum() == len(made)
  assert rows.columns["num_scored_tokens"].sum() == sum(s[1:].sum() for _, s in made)
  # Whatever rows make up a batch, one of them holds a chat.
  assert np.sort(rows.columns["num_examples"])[:batch].sum() > 0


def test_rows_are_evenly_full():
  rows = packed(encoded([9] * 10 + [5] * 20), batch=2)
  used = (rows.chat_RS != PADDING).sum(axis=1)
  assert used.max() - used.min() <= 8 and rows.fill > 0.8


def test_a_chat_longer_than_a_row_is_refused():
  assert packed(encoded([25])).fill > 0.3
  with pytest.raises(UserError, match="a chat of 26 tokens is longer than the 25"):
    packed(encoded([9, 26]))


def test_the_loss_is_that_of_each_chat_alone():
  """Against NumPy, a chat at a time: what is scored, and that no chat sees another."""
  made = encoded([7, 12, 5, 9, 11, 6], seed=3)
  rows = packed(made, batch=2)
  assert max(rows.columns["num_examples"]) > 1
  shape = small_model.moe()
  model = small_model.build(shape, attention_block=8)
  graph, state = nnx.split(model)
  options = StepOptions(balance_weight=0.0, documents=ChatSeparators(BEGIN, END))
  number = int((rows.targets_RS != NOT_SCORED).sum())

  def loss(state, inputs, targets):
    return objective(nnx.merge(graph, state), inputs, targets, options, num_scored=number)[0]

  weights, layers = small_model.reference_weights(model)
  nats = []
  for ids, is_scored in made:
    one = ids[None, :-1], ids[None, 1:]
    found, _ = reference_transformer.token_nats(weights, layers, shape, *one, "alibi", False)
    nats += found[0][is_scored[1:]].tolist()
  assert len(nats) == number
  found = jax.jit(loss)(state, rows.inputs_RS, rows.targets_RS)
  assert float(found) == pytest.approx(np.mean(nats), rel=1e-5)
