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
from moe_parity.parallel.dispatch import expert_ffn_local
from moe_parity.resources.exchange import Shape
from tests import reference

D, D_EXPERT = 7, 5

# Sums of at most a few hundred float32 terms near 1, relative to the largest.
FLOAT32_ERROR = 2e-5


@pytest.fixture(autouse=True)
def strict_promotion():
  assert len(jax.devices()) == 8, "tests/conftest.py asks for eight simulated devices"
  with jax.numpy_dtype_promotion("strict"):
    yield


def pad_experts(w, num_devices):
  """Phantom experts that would spoil everything if they were chosen or computed with."""
  return jnp.pad(w, [(0, -w.shape[0] % num_devices)] + [(0, 0)] * (w.ndim - 1))


def sharded(num_data, num_devices, num_experts, *, check_vma=False, **options):
  """expert_ffn_local over num_data x num_devices devices: global arrays in, global arrays out."""
  mesh = jax.make_mesh(
    (num_data, num_devices), ("data", "expert"),
    axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: num_data * num_devices],
  )  # fmt: skip
  tokens, experts = PartitionSpec(("data", "expert")), PartitionSpec("expert")

  def local(x, expert, gate, w_in, w_down):
    y, num_dropped = expert_ffn_local(
      x, expert, gate, w_in, w_down, num_experts=num_experts, **options
    )
    return y, num_dropped[None]

  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=(tokens, tokens, tokens, experts, experts),
    out_specs=(tokens, tokens), check_vma=check_vma,
  )  # fmt: skip
  return lambda x, expert, gate, w_in, w_down: mapped(
    x, expert, gate, pad_experts(w_in, num_devices), pad_experts(w_down, num_devices)
  )


@functools.cache
def value_and_gradients(num_data, num_devices, num_experts, **options):
  ffn = sharded(num_data, num_devices, num_experts, **options)

  @jax.jit
  def both(x, expert, gate, w_in, w_down, dy):
    y, vjp, num_dropped = jax.vjp(
      lambda x, gate, w_in, w_down: ffn(x, expert, gate, w_in, w_down),
      x, gate, w_in, w_down, has_aux=True,
    )  # fmt: skip
    return (y, *vjp(dy)), num_dropped

  return both


ROUTINGS = ("fair", "skewed", "few experts", "all to one", "half to nobody")


def draw(rng, routing, t, e, k):
  expert = {
    "fair": lambda: np.argsort(rng.random((t, e)))[:, :k],
    "skewed": lambda: np.argsort(-(rng.gumbel(size=(t, e)) + 3 * rng.normal(size=e)))[:, :k],
    "few experts": lambda: np.stack([rng.permutation(k) + e - k for _ in range(t)]),
    "all to one": lambda: np.concatenate(
      [np.full((t, 1), rng.integers(e)), np.full((t, k - 1), e)], axis=1
    ),
    "half to nobody": lambda: np.where(
      rng.random((t, k)) < 0.5, e, np.argsort(rng.random((t, e)))[:, :k]
    ),
  }[routing]()
  return (
    rng.normal(size=(t, D)).astype(np.float32),
    expert.astype(np.int32),
    rng.random((t, k), np.float32),
    rng.normal(size=(e, 2, D_EXPERT, D)).astype(np.float32),
    rng.normal(size=(e, D_EXPERT, D)).astype(np.float32),
    rng.normal(size=(t, D)).astype(np.float32),
  )


def assert_equals_reference(actual, arguments, error=FLOAT32_ERROR):
  *inputs, dy = arguments
  expected = reference.expert_ffn(*inputs), *reference.expert_ffn_gradients(*inputs, dy)
  for name, a, b in zip(("y", "dx", "dgate", "dw_in", "dw_down"), actual, expected, strict=True):
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(np.asarray(a, np.float64) / scale, b / scale, atol=error,
                               err_msg=name)  # fmt: skip


MESHES = [(1, 8, 81, 3), (2, 4, 13, 5), (3, 2, 6, 2)]  # data, expert, E, K


@pytest.mark.parametrize("exchange", ["padded", "gathered"])
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}x{m[1]} E={m[2]} K={m[3]}")
def test_values_and_gradients_equal_the_loop_over_tokens(mesh, exchange):
  num_data, num_devices, e, k = mesh
  both = value_and_gradients(num_data, num_devices, e, exchange=exchange, implementation="slotted")

  @hypothesis.given(seed=st.integers(0, 2**32 - 1), routing=st.sampled_from(ROUTINGS))
  @hypothesis.settings(max_examples=6, deadline=None)
  def check(seed, routing):
    arguments = draw(np.random.default_rng(seed), routing, 48 * num_data * num_devices, e, k)
    actual, num_dropped = both(*arguments)
    assert not num_dropped.any()
    assert_equals_reference(actual, arguments)

  check()


def test_all_tokens_to_one_expert_take_further_rounds():
  shape = Shape(48, 3, 81, 8)
  assert shape.first_rows + 2 * shape.replay_rows < shape.most_rows


def test_an_unknown_exchange_is_refused():
  *arguments, _ = draw(np.random.default_rng(0), "fair", 48, 8, 2)
  with pytest.raises(UserError, match="exchange='ring' is not one of"):
    sharded(1, 2, 8, exchange="ring", implementation="slotted")(*arguments)
