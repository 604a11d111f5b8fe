"""Prefill and decode against the full forward pass of the same tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding import mesh as meshes
from tests.helpers import small_model

LENGTHS = np.array([3, 6, 1], np.int32)  # of prompts, all different, one of them the shortest
STEPS = 4
SLOTS = 12  # more than anything here needs

# Every pair of (layout, shared expert, positions, K) is in one of them.
MOE = [
  ("full", 14, "alibi", 1), ("full", 0, "rope", 2), ("full", 14, "none", 2),
  ("1dense", 0, "alibi", 2), ("1dense", 14, "rope", 1), ("1dense", 0, "none", 1),
  ("interleave", 14, "alibi", 2), ("interleave", 0, "rope", 1), ("interleave", 14, "none", 1),
]  # fmt: skip


def moe(layout, d_shared, experts_per_token, **fields):
  full = layout == "full"
  return small_model.moe(
    layout=layout, num_layers=4, d_ffn=0 if full else 20, d_shared=d_shared,
    experts_per_token=experts_per_token, **fields,
  )  # fmt: skip


def rows(seed=0):
  """Prompts and what follows, one behind the other, [B, longest + STEPS]."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, small_model.VOCAB, (len(LENGTHS), LENGTHS.max() + STEPS)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def full(graph, state, inputs, documents=None):
  model = nnx.merge(graph, state)
  logits = model.logits(model.final_hidden(inputs, documents)[0])
  return logits.reshape(*inputs.shape, -1)


@functools.partial(jax.jit, static_argnums=0)
def prefill(graph, state, inputs, documents=None):
  model = nnx.merge(graph, state)
  hidden, cache = model.prefill(inputs, jnp.asarray(LENGTHS), SLOTS, documents)
  return model.logits(hidden).reshape(*inputs.shape, -1), cache


@functools.partial(jax.jit, static_argnums=0)
def decode(graph, state, token, cache, begins=None):
  model = nnx.merge(graph, state)
  hidden, cache = model.decode(token, cache, begins)
  return model.logits(hidden), cache


def check(model, inputs, begin_id=None, decoder=None):
  """Logits of every position of prompts and of STEPS tokens after each, by cache and in full.

  1e-5: float32 through four layers of sums over at most 20 terms.

  Args:
    decoder: the same model, built to decode otherwise.
  """
  graph, state = nnx.split(model)
  decoding = graph if decoder is None else nnx.graphdef(decoder)
  documents = None if begin_id is None else np.cumsum(inputs == begin_id, 1, np.int32)
  expected = np.asarray(full(graph, state, inputs, documents))
  longest = LENGTHS.max()
  prompts = inputs[:, :longest].copy()
  for row, length in enumerate(LENGTHS):
    prompts[row, length:] = 5  # padding, whatever it is
  given = None if begin_id is None else np.cumsum(prompts == begin_id, 1, np.int32)
  got, cache = prefill(graph, state, prompts, given)
  for row, length in enumerate(LENGTHS):
    np.testing.assert_allclose(got[row, :length], expected[row, :length], rtol=0, atol=1e-5)
  for step in range(STEPS):
    at = LENGTHS + step
    token = inputs[np.arange(len(at)), at]
    begins = None if begin_id is None else token == begin_id
    logits, cache = decode(decoding, state, token, cache, begins)
    np.testing.assert_allclose(
      logits, expected[np.arange(len(at)), at], rtol=0, atol=1e-5, err_msg=f"step {step}"
    )
  np.testing.assert_array_equal(cache.length_B, LENGTHS + STEPS)


@pytest.mark.parametrize("layout, d_shared, position, chosen", MOE)
def test_cached_logits_equal_the_full_pass(layout, d_shared, position, chosen):
  architecture, options = moe(layout, d_shared, chosen), dict(position=position, attention_block=3)
  model = small_model.build(architecture, **options)
  decoder = small_model.build(architecture, is_decoding=True, **options)
  with jax.numpy_dtype_promotion("strict"):
    check(model, rows(), decoder=decoder)


def test_decoding_by_padded_experts_gives_the_same_logits():
  check(small_model.build(moe("full", 14, 2)), rows())


@pytest.mark.parametrize(
  "options",
  [{"position": "alibi"}, {"position": "rope", "rope_base": 30.0, "norm_epsilon": 1e-2}],
)
def test_grouped_queries_are_cached_once_a_key_head(options):
  architecture = small_model.dense(num_heads=6, num_kv_heads=2)
  model = small_model.build(architecture, **options)
  check(model, rows())
  _, cache = prefill(*nnx.split(model), rows()[:, :6], None)  # as above: compiled once
  assert cache.segments[0][0].k_BNTQ.shape == (3, 3, 2, SLOTS, 6)  # layers, B, N, T, Q


def test_no_token_sees_another_document():
  """Also where a document begins among the decoded tokens, and where it is the first of them."""
  inputs = rows()
  inputs[inputs == 0] = 7
  inputs[0, [1, 4]] = 0
  inputs[1, [0, 6]] = 0
  inputs[2, [1, 2, 3]] = 0
  check(small_model.build(small_model.dense(), position="rope"), inputs, begin_id=0)


def test_slots_after_the_last_token_are_never_read():
  graph, state = nnx.split(small_model.build(small_model.dense()))
  token, longest = rows()[:, 6], LENGTHS.max()
  _, cache = prefill(graph, state, rows()[:, :longest])
  noise = jax.random.normal(jax.random.key(1), cache.segments[0][0].k_BNTQ.shape)
  is_free_T1 = jnp.arange(SLOTS)[:, None] > longest  # the token itself takes slots up to `longest`

  def spoil(a):
    return jnp.where(is_free_T1[None, None, None], 1e3 * noise, a)

  spoiled = cache._replace(segments=jax.tree.map(spoil, cache.segments))
  clean, other = (decode(graph, state, token, c)[0] for c in (cache, spoiled))
  np.testing.assert_array_equal(clean, other)


def test_a_mesh_with_sharded_experts_gives_the_same_logits():
  """Eight sequences over eight devices: two shard the weights, four the experts."""
  architecture = moe("interleave", 14, 2, num_experts=8)
  graph, state = nnx.split(small_model.build(architecture))
  decoding = nnx.graphdef(small_model.build(architecture, is_decoding=True))
  mesh = meshes.make_mesh(MeshSizes(1, 2, 4))
  prompts = np.random.default_rng(2).integers(0, small_model.VOCAB, (8, 5)).astype(np.int32)
  length_B = jnp.array([5, 1, 2, 4, 3, 5, 2, 1], jnp.int32)

  def steps(mesh, state, prompts, length_B):
    with meshes.use_mesh(mesh):
      model = nnx.merge(graph, state)
      hidden, cache = model.prefill(prompts, length_B, 8)
      found = [model.logits(hidden)]
      for token, graph_ in ((3, graph), (4, decoding)):
        model = nnx.merge(graph_, state)
        hidden, cache = model.decode(jnp.full(8, token), cache)
        found.append(model.logits(hidden))
      return found

  whole = jax.NamedSharding(mesh, meshes.P())
  spread = jax.jit(functools.partial(steps, mesh), in_shardings=whole, out_shardings=whole)
  alone = jax.jit(functools.partial(steps, None))
  for a, b in zip(spread(state, prompts, length_B), alone(state, prompts, length_B), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
