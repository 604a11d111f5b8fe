"""Experts spread over simulated devices against a loop over tokens and choices in float64."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from moe_parity.errors import UserError
from moe_parity.experts.expert_parallel import expert_parallel_ffn
from moe_parity.planning.expert_parallel import ExpertParallelShape
from tests.helpers import reference
from tests.helpers.routed import FLOAT32_ERROR, ROUTINGS, assert_equals_reference, draw

T = 80  # tokens on each device


@pytest.fixture(autouse=True)
def strict_promotion():
  assert len(jax.devices()) == 8, "tests/conftest.py asks for eight simulated devices"
  with jax.numpy_dtype_promotion("strict"):
    yield


def pad_experts(w, num_devices):
  """Phantom experts, of weights that would spoil whatever they touched; one device has some too,
  as where whole experts are sharded over `fsdp`."""
  multiple = num_devices if num_devices > 1 else 4
  padding = [(0, -w.shape[0] % multiple)] + [(0, 0)] * (w.ndim - 1)
  return jnp.pad(w, padding, constant_values=100)


def sharded(num_data, num_devices, num_experts, *, mesh=None, check_vma=False, **options):
  """expert_parallel_ffn over num_data x num_devices devices, of global arrays."""
  mesh = mesh or jax.make_mesh(
    (num_data, num_devices), ("data", "expert"),
    axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: num_data * num_devices],
  )  # fmt: skip
  tokens, experts = PartitionSpec(("data", "expert")), PartitionSpec("expert")

  def local(x, expert, gate, w_in, w_down, factor=None):
    y, num_dropped = expert_parallel_ffn(
      x,
      expert,
      gate,
      w_in,
      w_down,
      num_experts=num_experts,
      overlap_fn=None if factor is None else jax.tree_util.Partial(jnp.multiply, factor),
      **options,
    )
    return y, num_dropped[None]

  def mapped(*arguments):
    in_specs = (tokens, tokens, tokens, experts, experts, tokens)[: len(arguments)]
    return jax.shard_map(
      local, mesh=mesh, in_specs=in_specs, out_specs=(tokens, tokens), check_vma=check_vma
    )(*arguments)

  return mapped


@functools.cache
def value_and_gradients(num_data, num_devices, num_experts, **options):
  ffn = sharded(num_data, num_devices, num_experts, **options)

  @jax.jit
  def both(x, expert, gate, w_in, w_down, dy):
    y, vjp, num_dropped = jax.vjp(
      lambda x, gate, w_in, w_down: ffn(x, expert, gate, w_in, w_down),
      x, gate, *(pad_experts(w, num_devices) for w in (w_in, w_down)), has_aux=True,
    )  # fmt: skip
    dx, dgate, *dweights = vjp(dy)
    phantom = sum(jnp.abs(dw[num_experts:]).sum() for dw in dweights)
    dw_in, dw_down = (dw[:num_experts] for dw in dweights)
    return (y, dx, dgate, dw_in, dw_down), (num_dropped, phantom)

  return both


# data x expert devices, E, K, dispatcher, implementation, check_vma. Meshes of 1, 2, 4, 8; K of 1
# to 8; E that divide by nothing, one that leaves devices with phantoms only (9 over 8).
CASES = [
  (3, 1, 10, 6, "all_to_all", "padded", False),
  (3, 2, 11, 8, "all_to_all", "padded", False),
  (2, 4, 83, 3, "all_to_all", "padded", True),
  (1, 8, 9, 2, "all_to_all", "padded", False),
  (1, 8, 81, 1, "all_gather", "padded", False),
  (2, 4, 89, 7, "all_gather", "padded", True),
  (1, 8, 78, 5, "ragged_all_to_all", "padded", True),
  (2, 4, 13, 4, "ragged_all_to_all", "grouped", False),
  (1, 8, 83, 6, "ragged_all_to_all_dedup", "padded", True),
  (2, 4, 11, 5, "ragged_all_to_all_dedup", "grouped", False),
]


@pytest.mark.parametrize(
  "case", CASES, ids=[f"{d}x{g} E={e} K={k} {x} {f}" for d, g, e, k, x, f, _ in CASES]
)
def test_values_and_gradients_equal_the_loop_over_tokens(case):
  num_data, num_devices, e, k, token_dispatch, implementation, check_vma = case
  both = value_and_gradients(
    num_data, num_devices, e,
    token_dispatch=token_dispatch, implementation=implementation, check_vma=check_vma,
  )  # fmt: skip

  @hypothesis.given(seed=st.integers(0, 2**32 - 1), routing=st.sampled_from(ROUTINGS))
  @hypothesis.settings(max_examples=8)
  @hypothesis.example(seed=0, routing="all to one")
  @hypothesis.example(seed=0, routing="few experts")
  def check(seed, routing):
    arguments = draw(np.random.default_rng(seed), routing, T * num_data * num_devices, e, k)
    actual, (num_dropped, phantom_gradient) = both(*arguments)
    assert not num_dropped.any() and phantom_gradient == 0
    assert_equals_reference(actual, arguments)

  check()


def test_skewed_routing_takes_overflow_rounds_in_these_tests():
  """Or the tests above would not see them."""
  for num_devices, e, k in ((8, 9, 2), (8, 78, 5), (4, 13, 4)):
    shape = ExpertParallelShape(T, k, e, num_devices)
    assert shape.overflow_rows and shape.first_rows + shape.overflow_rows < shape.max_rows_per_pair
    most = T * shape.max_choices_per_device
    assert shape.overflow_choices and shape.first_choices + shape.overflow_choices < most


TIGHT = (13, 3, 0.6)  # E, K, capacity factor


def keep_first(expert, num_local, num_experts, capacity):
  """Which assignments a loop over each device's tokens keeps."""
  kept = np.zeros(expert.shape, bool)
  for first in range(0, len(expert), num_local):
    taken = np.zeros(num_experts, int)
    for t in range(first, first + num_local):
      for k, e in enumerate(expert[t]):
        if e < num_experts:
          kept[t, k] = taken[e] < capacity
          taken[e] += 1
  return kept


@pytest.mark.parametrize(
  "num_data, num_devices, token_dispatch",
  [(2, 4, "all_to_all"), (2, 4, "ragged_all_to_all"), (3, 1, "all_to_all")],
)
def test_tight_capacity_equals_the_loop_without_what_is_dropped(
  num_data, num_devices, token_dispatch
):
  e, k, factor = TIGHT
  both = value_and_gradients(
    num_data, num_devices, e,
    token_dispatch=token_dispatch, implementation="padded", capacity_factor=factor,
  )  # fmt: skip

  @hypothesis.given(seed=st.integers(0, 2**32 - 1), routing=st.sampled_from(ROUTINGS))
  @hypothesis.settings(max_examples=8)
  @hypothesis.example(seed=0, routing="all to one")
  def check(seed, routing):
    x, expert, gate, *weights = draw(
      np.random.default_rng(seed), routing, T * num_data * num_devices, e, k
    )
    capacity = -(-factor * T * k // e)
    kept = keep_first(expert, T, e, capacity)
    (y, dx, dgate, *dweights), (num_dropped, phantom) = both(x, expert, gate, *weights)
    assert phantom == 0
    dropped = (~kept & (expert < e)).reshape(-1, T * k).sum(1)
    assert num_dropped.tolist() == dropped.tolist()
    assert (np.asarray(dgate)[~kept] == 0).all()
    assert_equals_reference(
      (y, dx, dgate, *dweights), (x, np.where(kept, expert, e), gate, *weights)
    )
    assert dropped.sum() + kept.sum() == (expert < e).sum()

  check()


def test_relabeling_experts_changes_nothing():
  num_data, num_devices, e, k, *_ = CASES[3]
  both = value_and_gradients(
    num_data, num_devices, e, token_dispatch="all_to_all", implementation="padded", check_vma=False
  )
  rng = np.random.default_rng(5)
  x, expert, gate, w_in, w_down, dy = draw(rng, "skewed", T * 8, e, k)
  new_of_old = rng.permutation(e).astype(np.int32)
  old_of_new = np.argsort(new_of_old)
  (y, dx, dgate, dw_in, dw_down), _ = both(x, expert, gate, w_in, w_down, dy)
  relabeled, _ = both(x, new_of_old[expert], gate, w_in[old_of_new], w_down[old_of_new], dy)
  expected = y, dx, dgate, dw_in[old_of_new], dw_down[old_of_new]
  for a, b in zip(relabeled, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_a_scan_of_remat_layers_has_the_gradients_of_the_loop():
  num_layers, (e, k) = 2, (9, 2)
  rng = np.random.default_rng(11)
  x, expert, gate, w_in, w_down, dy = draw(rng, "skewed", T * 4, e, k)
  ffn = sharded(1, 4, e, token_dispatch="all_to_all", implementation="padded")

  @jax.jit
  def gradients(x, expert, gate, w_in, w_down, dy):
    def scanned(x, gate, w_in, w_down):
      weights = pad_experts(w_in, 4), pad_experts(w_down, 4)
      step = jax.checkpoint(lambda x, _: (ffn(x, expert, gate, *weights)[0], None))
      return (jax.lax.scan(step, x, None, length=num_layers)[0] * dy).sum()

    return jax.grad(scanned, argnums=(0, 1, 2, 3))(x, gate, w_in, w_down)

  hidden = reference.expert_ffn(x, expert, gate, w_in, w_down)
  dhidden, *last = reference.expert_ffn_gradients(hidden, expert, gate, w_in, w_down, dy)
  dx, *first = reference.expert_ffn_gradients(x, expert, gate, w_in, w_down, dhidden)
  expected = dx, *(a + b for a, b in zip(first, last, strict=True))
  actual = gradients(x, expert, gate, w_in, w_down, dy)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a / np.abs(b).max(), b / np.abs(b).max(), atol=FLOAT32_ERROR)


@pytest.mark.parametrize(
  "token_dispatch", ["all_to_all", "ragged_all_to_all_dedup", "ragged_all_to_all"]
)
def test_the_overlapped_result_is_added_once(token_dispatch):
  num_devices, e, k = 2, 7, 3
  x, expert, gate, w_in, w_down, dy = draw(
    np.random.default_rng(3), "all to one", T * num_devices, e, k
  )
  weights = pad_experts(w_in, num_devices), pad_experts(w_down, num_devices)

  @jax.jit
  def both(x, factor):
    ffn = sharded(1, num_devices, e, token_dispatch=token_dispatch, implementation="padded")
    y, vjp = jax.vjp(lambda x, factor: ffn(x, expert, gate, *weights, factor)[0], x, factor)
    return y, *vjp(dy)

  factor = np.cos(x)
  y, dx, dfactor = both(x, factor)
  alone, dx_alone, _ = both(x, 0 * x)
  np.testing.assert_allclose(y, alone + factor * x, atol=1e-5)
  np.testing.assert_allclose(dx, dx_alone + factor * dy, atol=1e-5)
  np.testing.assert_array_equal(dfactor, x * dy)


@pytest.mark.parametrize("token_dispatch", ["ragged_all_to_all_dedup", "ragged_all_to_all"])
@pytest.mark.parametrize("implementation", ["padded", "grouped"])
def test_uninitialized_buffers_reach_no_result(implementation, token_dispatch, monkeypatch):
  monkeypatch.setattr(
    jax.lax, "empty", lambda shape, dtype: jnp.full(shape, -1 if dtype == jnp.int32 else jnp.nan)
  )
  e, k = 7, 3
  both = value_and_gradients.__wrapped__(
    1, 2, e, token_dispatch=token_dispatch, implementation=implementation
  )  # fmt: skip
  for routing in ("half unassigned", "all unassigned"):  # the latter fills slots with unknown rows
    arguments = draw(np.random.default_rng(2), routing, T * 2, e, k)
    assert_equals_reference(both(*arguments)[0], arguments)


def test_an_unknown_dispatcher_or_number_of_experts_is_refused():
  *arguments, _ = draw(np.random.default_rng(0), "fair", T, 8, 2)
  with pytest.raises(UserError, match="token_dispatch='ring' is not known"):
    sharded(1, 2, 8, token_dispatch="ring", implementation="padded")(*arguments)
  with pytest.raises(UserError, match="5 experts are on this device .* make 4"):
    sharded(1, 2, 8, implementation="padded")(*draw(np.random.default_rng(0), "fair", T, 10, 2)[:5])
