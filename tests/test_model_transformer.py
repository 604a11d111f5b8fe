import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_parity.errors import UserError
from moe_parity.kernels import common
from moe_parity.model import cross_entropy, layer_stack
from moe_parity.model.attention import alibi_slopes
from moe_parity.model.layer_stack import split_layout
from moe_parity.model.moe import balance_loss, route
from moe_parity.model.options import ModelOptions
from moe_parity.planning.memory import MAX_LOGITS_IN_MEMORY, MAX_LOGITS_ON_TPU
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.sharding import mesh as meshes
from tests.helpers import reference_transformer, small_model

CASES = {
  "dense, ALiBi": (small_model.dense(), {}),
  "dense, grouped queries, rope": (
    small_model.dense(num_heads=4, num_kv_heads=2), {"position": "rope"},
  ),
  "one dense layer, shared expert": (small_model.moe(), {}),
  "interleaved, no shared expert, normalized": (
    small_model.moe(num_layers=4, layout="interleave", d_shared=0), {"normalize_gates": True},
  ),
  "full, top-1, no positions": (
    small_model.moe(layout="full", d_ffn=0, experts_per_token=1), {"position": "none"},
  ),
  "another rotary base and epsilon": (
    small_model.moe(), {"position": "rope", "rope_base": 30.0, "norm_epsilon": 1e-2},
  ),
  "any order of layers, remat": (
    small_model.moe(num_layers=5, layout="MDDMM"), {"remat": "layer"},
  ),
}  # fmt: skip


def forward(model, inputs, targets):
  """(nats [T], routing stats), compiled as one, once for models of one shape."""
  return _forward(*nnx.split(model), inputs, targets)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph, state, inputs, targets):
  model = nnx.merge(graph, state)
  hidden, stats = model.final_hidden(inputs)
  return model.token_nll(hidden, targets.reshape(-1)), stats


@pytest.mark.parametrize("case", CASES)
def test_the_model_and_its_routing_equal_the_reference(case):
  architecture, options = CASES[case]
  model = small_model.build(architecture, attention_block=4, **options)
  inputs, targets = small_model.tokens()
  with jax.numpy_dtype_promotion("strict"):
    nats, stats = forward(model, inputs, targets)
  outer, layers = small_model.reference_weights(model)
  expected, routed = reference_transformer.token_nats(
    outer, layers, architecture, inputs, targets,
    options.get("position", "alibi"), options.get("normalize_gates", False),
    **{name: options[name] for name in ("rope_base", "norm_epsilon") if name in options},
  )  # fmt: skip
  # float32 through five layers of sums over at most 20 terms
  np.testing.assert_allclose(nats.reshape(expected.shape), expected, rtol=0, atol=3e-5)
  if stats is None:
    assert not architecture.is_moe and not routed
    return
  assert len(stats.load_E) == len(routed) == architecture.num_moe_layers
  for layer, (chosen, probability) in enumerate(routed):
    counts = np.bincount(chosen.reshape(-1), minlength=architecture.num_experts)
    np.testing.assert_allclose(stats.load_E[layer], counts / counts.sum(), atol=1e-6)
    np.testing.assert_allclose(stats.probability_E[layer], probability.mean(0), atol=1e-5)
    entropy = -(probability * np.log(probability)).sum(-1).mean()
    np.testing.assert_allclose(stats.entropy[layer], entropy, atol=1e-5)


def test_a_token_sees_nothing_after_itself():
  model = small_model.build(small_model.moe(), attention_block=4)
  inputs, _ = small_model.tokens()
  changed = inputs.copy()
  changed[:, 5] = (changed[:, 5] + 1) % small_model.VOCAB
  targets = np.ones_like(inputs)
  before, after = (forward(model, x, targets)[0].reshape(3, 8) for x in (inputs, changed))
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert (np.abs(np.asarray(before[:, 5:] - after[:, 5:])) > 1e-5).all()


def test_remat_and_loops_over_layers_change_no_gradient(monkeypatch):
  inputs, targets = (jnp.asarray(x) for x in small_model.tokens())

  def gradient(remat):
    graph, params, rest = nnx.split(
      small_model.build(small_model.moe(num_layers=2, layout="full"), remat=remat), nnx.Param, ...
    )

    @jax.jit
    @jax.grad
    def of(params):
      model = nnx.merge(graph, params, rest)
      return jnp.mean(model.token_nll(model.final_hidden(inputs)[0], targets.reshape(-1)))

    return jax.tree.leaves(of(params))

  plain = gradient("none")
  monkeypatch.setattr(layer_stack, "MAX_UNROLLED", 1)
  for policy in ("none", "dots", "layer"):
    for a, b in zip(plain, gradient(policy), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)  # float32, another order of the same sums


def test_a_long_vocabulary_in_chunks_gives_the_same_loss():
  """And the same gradients, on one device and on eight."""
  architecture = small_model.dense()
  model = small_model.build(architecture)
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  targets = jnp.asarray(small_model.tokens()[1]).reshape(-1)
  rng = np.random.default_rng(1)
  weight = jnp.asarray(rng.random(targets.size), jnp.float32)
  hidden = jnp.asarray(rng.normal(size=(targets.size, architecture.d_model)), jnp.float32)

  def loss_and_gradient(*max_logits, mesh=None):
    def loss(params, hidden):
      model = nnx.merge(graph, params, rest)
      return 3 * model.weighted_nll(hidden, targets, weight, *max_logits)

    def gradient(params, hidden):
      with meshes.use_mesh(mesh):
        return jax.value_and_grad(loss, argnums=(0, 1))(params, hidden)

    whole = mesh and jax.NamedSharding(mesh, meshes.P())
    return jax.jit(gradient, in_shardings=whole)(params, hidden)

  whole, whole_gradient = loss_and_gradient()
  nll = model.token_nll(hidden, targets)
  np.testing.assert_allclose(3 * np.sum(nll * weight), whole, rtol=1e-6)
  in_chunks = model.token_nll(hidden, targets, 5 * small_model.VOCAB)
  np.testing.assert_allclose(in_chunks, nll, rtol=1e-6)
  for mesh in (None, meshes.make_mesh(MeshSizes(2, 2, 2))):
    # One token a chunk: the three tokens of a device are in chunks too.
    chunked, chunked_gradient = loss_and_gradient(small_model.VOCAB, mesh=mesh)
    np.testing.assert_allclose(whole, chunked, rtol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (whole_gradient, chunked_gradient)), strict=True):
      np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize("num_chunks", [1, 16, 512])
def test_a_bfloat16_heads_gradient_is_as_exact_in_chunks(num_chunks):
  """Against NumPy in float64: the rounding of bfloat16 operands and of the result, 2^-9 each. The
  loss is a mean over a number of tokens whose inverse is no bfloat16."""
  T, D, V = 9216, 12, 40
  rng = np.random.default_rng(0)
  target_T = rng.choice(V, T, p=1 / np.arange(1, V + 1) / (1 / np.arange(1, V + 1)).sum())
  hidden, head = (
    jnp.asarray(rng.normal(0.3, 0.5, shape), jnp.bfloat16) for shape in ((T, D), (D, V))
  )

  def mean_nll(hidden, head):
    weight_T = jnp.ones(T, jnp.float32)
    targets_T = jnp.asarray(target_T, jnp.int32)
    return cross_entropy.weighted_nll(hidden, targets_T, weight_T, head, T * V // num_chunks) / T

  got = jax.grad(mean_nll, argnums=(0, 1))(hidden, head)
  hidden, head = (np.asarray(a, np.float32).astype(float) for a in (hidden, head))
  odds_TV = np.exp(hidden @ head)
  dlogit_TV = (odds_TV / odds_TV.sum(1, keepdims=True) - (target_T[:, None] == np.arange(V))) / T
  for mine, true in zip(got, (dlogit_TV @ head.T, hidden.T @ dlogit_TV), strict=True):
    mine = np.asarray(mine, np.float32).astype(float)
    assert np.linalg.norm(mine - true) < 0.004 * np.linalg.norm(true)
    assert abs((mine * true).sum() / (true * true).sum() - 1) < 0.001


def test_bfloat16_stays_near_float32():
  inputs, targets = (jnp.asarray(x) for x in small_model.tokens())
  nats = []
  for dtype in ("float32", "bfloat16"):
    model = small_model.build(small_model.dense(), attention_block=4, dtype=dtype)
    nats.append(forward(model, inputs, targets)[0])
  assert nats[1].dtype == jnp.float32
  # 8 bits of mantissa through 3 layers: a few per cent of the spread of the logits
  np.testing.assert_allclose(nats[0].mean(), nats[1].mean(), rtol=0.03)
  assert np.abs(np.asarray(nats[0] - nats[1])).max() > 0


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8, 11, 17, 19, 22, 32])
def test_alibi_slopes_of_any_head_count(num_heads):
  slopes = alibi_slopes(num_heads)
  np.testing.assert_allclose(slopes, reference_transformer.slopes(num_heads), rtol=1e-6)
  assert len(set(slopes.tolist())) == num_heads


def test_the_balance_loss_is_1_at_balance_and_e_at_collapse():
  even, all_to_one = jnp.full((2, 8), 1 / 8), jnp.tile(jnp.eye(8)[:1], (2, 1))
  np.testing.assert_allclose(balance_loss(even, even), 1.0, rtol=1e-6)
  np.testing.assert_allclose(balance_loss(all_to_one, all_to_one), 8.0, rtol=1e-6)


def test_the_selection_bias_moves_the_choice_and_not_the_gate():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  expert, gate, _ = route(logits, jnp.zeros(3), 1, False)
  assert expert.tolist() == [[0]] and gate[0, 0] == pytest.approx(0.5)
  expert, gate, _ = route(logits, jnp.array([-1.0, 0.0, 0.2]), 1, False)
  assert expert.tolist() == [[2]] and gate[0, 0] == pytest.approx(0.2)


def test_a_layout_is_cut_into_few_repeated_patterns():
  d, m = False, True
  assert split_layout([d] + [m] * 5) == [((d,), 1), ((m,), 5)]
  assert split_layout([d, m] * 3) == [((d, m), 3)]
  assert split_layout([m] * 4) == [((m,), 4)]
  assert split_layout([m, d, d, m, m]) == [((m,), 1), ((d,), 2), ((m,), 2)]
  for layout in ([d, m, m], [m], [d, m, m, d, m, m]):
    assert [k for pattern, n in split_layout(layout) for k in pattern * n] == layout


@pytest.mark.parametrize(
  "field, value, way_out",
  [("position", "alibbi", "alibi"), ("remat", "layers", "layer"), ("dtype", "bf16", "bfloat16")],
)
def test_a_misspelt_choice_is_refused_with_the_nearest(field, value, way_out):
  with pytest.raises(UserError, match=f"model.{field}={value!r}.*did you mean '{way_out}'"):
    ModelOptions(**{field: value})


def test_a_tpu_has_more_logits_in_memory_at_a_time():
  """2^17 tokens and 2^12 ids: 2^29 logits."""
  chunks = lambda most=None: cross_entropy._num_chunks(2**17, 2**12, most)  # noqa: E731
  assert chunks() == 2**29 // MAX_LOGITS_IN_MEMORY == 8
  assert chunks(2**28 + 1) == 2 and chunks(2**40) == 1
  with common.simulate("tpu"):
    assert chunks() == 2**29 // MAX_LOGITS_ON_TPU == 2
