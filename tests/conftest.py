"""Eight simulated CPU devices and strict shapes, for every test that touches JAX; slow marks.

Options go through the environment, so tests of plain Python never pay for importing JAX.
"""

import gc
import os
import sys

import hypothesis
import pytest

from tests.helpers import type_checks
from tests.list_slow import listed

type_checks.install()

# How long an example takes says who else is on the machine.
hypothesis.settings.register_profile(
  "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of the tests' time is compiling, which takes half as long without the expensive passes, for
# the same arithmetic. With 0 the tests compile as a user does.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# As a command does: imports and tracing make many objects and little garbage.
gc.set_threshold(50_000)


def pytest_collection_modifyitems(items):
  slow = listed()
  for item in items:
    names = {getattr(item, "originalname", item.name), *getattr(item, "fixturenames", ())}
    if slow & {f"{item.path.name}::{name}" for name in names}:
      item.add_marker(pytest.mark.slow)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """gs:// in memory, and an empty cache on this machine."""
  from tests.helpers.bucket import install

  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  return install(monkeypatch)


@pytest.fixture(autouse=True)
def without_a_cache_left_on():
  """A command run in this process turns JAX's compile cache on; the next test begins without."""
  yield
  jax = sys.modules.get("jax")
  given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if jax is not None and jax.config.jax_compilation_cache_dir != given:
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    jax.config.update("jax_compilation_cache_dir", given)
    reset_cache()
