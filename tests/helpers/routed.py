"""Routed experts at random: tokens, choices of every skew, weights; and the check by a loop."""

import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from tests.helpers import reference

D, D_EXPERT = 7, 5

# Sums of at most a few hundred float32 terms near 1, relative to the largest.
FLOAT32_ERROR = 2e-5

ROUTINGS = ("fair", "skewed", "few experts", "all to one", "half unassigned", "all unassigned")


def draw(rng, routing, t, e, k, d=D, i=D_EXPERT):
  """(x [t, d], expert [t, k], gate [t, k], w_in, w_down, gradient of the result [t, d])."""
  fair = np.argsort(rng.random((t, e)))[:, :k]
  expert = {
    "fair": lambda: fair,
    "skewed": lambda: np.argsort(-(rng.gumbel(size=(t, e)) + 3 * rng.normal(size=e)))[:, :k],
    "few experts": lambda: np.stack([rng.permutation(k) + e - k for _ in range(t)]),
    "all to one": lambda: np.where(np.arange(k) == 0, rng.integers(e), np.full((t, k), e)),
    "half unassigned": lambda: np.where(rng.random((t, k)) < 0.5, e, fair),
    "all unassigned": lambda: np.full((t, k), e),
  }[routing]()
  return (
    rng.normal(size=(t, d)).astype(np.float32),
    expert.astype(np.int32),
    rng.random((t, k), np.float32),
    rng.normal(size=(e, 2, i, d)).astype(np.float32),
    rng.normal(size=(e, i, d)).astype(np.float32),
    rng.normal(size=(t, d)).astype(np.float32),
  )


def assert_equals_reference(actual, arguments, error=FLOAT32_ERROR):
  *inputs, dy = arguments
  expected = reference.expert_ffn(*inputs), *reference.expert_ffn_gradients(*inputs, dy)
  for name, a, b in zip(("y", "dx", "dgate", "dw_in", "dw_down"), actual, expected, strict=True):
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(np.asarray(a, np.float64) / scale, b / scale, atol=error,
                               err_msg=name)  # fmt: skip


def tpu_mesh(num_data: int, num_devices: int = 1) -> AbstractMesh:
  """Of a TPU slice's devices, to trace for and lower to."""
  device = AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
  return AbstractMesh(
    (num_data, num_devices), ("data", "expert"), (AxisType.Auto,) * 2, abstract_device=device
  )
