"""Tokens of a generator against the full forward pass, one token at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity.errors import UserError
from moe_parity.inference.generator import Generator
from moe_parity.inference.inference_model import InferenceModel
from moe_parity.inference.sampling import Sampling
from moe_parity.model.documents import DocumentSeparators
from moe_parity.model.options import ModelOptions
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding.mesh import make_mesh
from moe_parity.training.state import from_checkpoint, model_shardings
from tests.helpers import small_model

PROMPTS = [np.array(ids, np.int32) for ids in ([3, 17, 8], [5], [9, 9, 2, 30, 11])]
OPTIONS = ModelOptions(position="alibi")


def generator(architecture=None, options=OPTIONS, documents=None, sizes=None, **fields):
  """(generator, the model that it continues with)."""
  architecture = architecture or small_model.moe()
  model = small_model.build(architecture, **dataclasses.asdict(options))
  _, params, buffers = nnx.split(model, nnx.Param, ...)
  mesh = sizes and make_mesh(sizes)
  if mesh is not None:
    stored, lying = model_shardings(architecture, options, mesh)
    placed = jax.device_put((params, buffers), jax.tree.map(lambda a: a.sharding, stored))
    params, buffers = from_checkpoint(placed, lying)
  fields = {"num_positions": 20} | fields
  loaded = InferenceModel(architecture, options, params, buffers, mesh)
  return Generator(loaded, documents=documents, **fields), model


@functools.cache
def shared(num_ids=0):
  """`generator()` and its model, made and compiled once for the tests that change neither."""
  return generator(num_ids=num_ids)


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits(graph, state, inputs, documents):
  model = nnx.merge(graph, state)
  return model.logits(model.final_hidden(inputs, documents and documents.document_ids(inputs))[0])


def greedy(model, prompt, number, documents=None):
  """The most likely tokens, by a full forward pass over a row of its own for each."""
  row = np.zeros((1, max(map(len, PROMPTS)) + number), np.int32)  # one length: compiled once
  row[0, : len(prompt)] = prompt
  end = len(prompt) + number
  for at in range(len(prompt), end):
    row[0, at] = np.argmax(logits(*nnx.split(model), row, documents)[at - 1])
  return row[0, len(prompt) : end].tolist()


def generated(made, *args, **kwargs):
  return np.stack(list(made.generate(PROMPTS, *args, **kwargs)), axis=1)


def test_greedy_tokens_are_those_of_the_full_pass():
  made, model = shared()
  tokens = generated(made, 6)
  assert tokens.shape == (3, 6) and tokens.dtype == np.int32
  for row, prompt in zip(tokens, PROMPTS, strict=True):
    assert row.tolist() == greedy(model, prompt, 6)


def test_documents_stay_apart_in_what_is_generated():
  """A separator among the likely tokens: what follows it must not see what came before."""
  made, model = generator(documents=DocumentSeparators(9, 9))
  for row, prompt in zip(generated(made, 6), PROMPTS, strict=True):
    assert row.tolist() == greedy(model, prompt, 6, DocumentSeparators(9, 9))


def test_a_mesh_with_sharded_experts_writes_the_same_tokens():
  """Seven experts over four devices, three prompts over eight. Drawn, for that needs key, row and
  position to be the same too; test_model_cache.py compares the logits themselves."""
  alone, _ = shared()
  spread, _ = generator(sizes=MeshSizes(1, 2, 4))
  sampling = Sampling(0.7, top_k=9)
  np.testing.assert_array_equal(generated(alone, 4, sampling, 5), generated(spread, 4, sampling, 5))


def test_bfloat16_generates_near_what_float32_does():
  made, _ = generator(options=dataclasses.replace(OPTIONS, dtype="bfloat16"))
  narrow = [w.dtype == jnp.bfloat16 for w in jax.tree.leaves(made._model.weights[0])]
  assert 0 < narrow.count(False) < narrow.count(True)  # router and norms stay as they are
  tokens = generated(made, 3)
  assert tokens.shape == (3, 3) and (tokens >= 0).all() and (tokens < small_model.VOCAB).all()


def test_capacity_drops_nothing_when_text_is_generated():
  """What a token's experts are must not depend on what else is in the batch: of the 60 tokens of
  this prefill most would be dropped."""
  tight, _ = generator(options=dataclasses.replace(OPTIONS, capacity_factor=0.3))
  np.testing.assert_array_equal(generated(tight, 1), generated(shared()[0], 6)[:, :1])


def test_ids_the_tokenizer_does_not_have_are_never_drawn():
  made, _ = shared(num_ids=31)
  tokens = generated(made, 6, Sampling(50.0))
  assert tokens.max() < 31
  with pytest.raises(UserError, match="prompt 1 holds id 36, and the vocabulary is 0..30"):
    made.generate([np.array([4, 36])], 2)


def test_a_seed_gives_the_same_tokens_and_another_seed_others():
  made, _ = shared(num_ids=31)
  first = generated(made, 6, Sampling(50.0), 1)
  np.testing.assert_array_equal(first, generated(made, 6, Sampling(50.0), 1))
  assert (first != generated(made, 6, Sampling(50.0), 2)).any()


def test_input_is_refused_before_anything_is_compiled():
  made, _ = generator(small_model.dense())
  made._prefill = made._decode = None
  cases = [
    (([PROMPTS[2]], 16), "prompt 1 of 5 tokens and max_tokens=16 exceed the 20.*at most 15"),
    (([PROMPTS[0], np.zeros(20, np.int32)], 1), "prompt 2 of 20 tokens.*; shorten it"),
    (([np.array([], np.int32)], 1), "prompt 1 has no token"),
    (([], 1), "there is no prompt"),
    ((PROMPTS, 0), "max_tokens=0 asks for nothing"),
    (([np.array([-1])], 1), "prompt 1 holds id -1"),
    ((PROMPTS, 1, Sampling(1.0, top_k=38)), "top_k=38 exceeds the vocabulary of 37"),
    ((PROMPTS, 1, Sampling(), -1), "seed=-1 must lie"),
  ]
  for arguments, message in cases:
    with pytest.raises(UserError, match=message):
      made.generate(*arguments)


def test_weights_that_are_not_finite_are_named():
  architecture = small_model.dense()
  model = small_model.build(architecture)
  model.head[...] = model.head[...].at[3, 4].set(jnp.nan)
  _, params, buffers = nnx.split(model, nnx.Param, ...)
  with pytest.raises(UserError, match="weight head holds numbers that are not finite"):
    InferenceModel(architecture, OPTIONS, params, buffers)


def test_logits_that_overflow_are_an_error_and_no_token():
  architecture = small_model.dense()
  model = small_model.build(architecture)
  model.head[...] = jnp.full_like(model.head[...], 3e38)
  _, params, buffers = nnx.split(model, nnx.Param, ...)
  made = Generator(InferenceModel(architecture, OPTIONS, params, buffers), num_positions=9)
  with pytest.raises(UserError, match="logits of token 1 after the prompt are not finite"):
    list(made.generate([PROMPTS[0]], 2))


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
  with pytest.raises(UserError, match="the tokenizer has 38 ids and the model's vocabulary 37"):
    generator(num_ids=38)
