"""Assignments grouped by expert."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_parity.experts import assignments
from moe_parity.experts.assignments import sort_by_expert
from moe_parity.kernels import common

T, K, E = 290, 3, 24


@pytest.fixture(params=["one key", "argsort", "counting"])
def way(request, monkeypatch):
  if request.param == "argsort":  # as if E * T * K did not fit an int32
    monkeypatch.setattr(assignments, "INT32_MAX", 100)
  with common.simulate("tpu" if request.param == "counting" else "cpu"):
    yield


def test_assignments_are_sorted_by_expert_then_by_token(way):
  expert = np.random.default_rng(0).integers(E + 1, size=(T, K)).astype(np.int32)
  by_expert = sort_by_expert(jnp.asarray(expert), E)
  expected = [a for e in range(E + 1) for a in range(T * K) if expert.reshape(-1)[a] == e]
  assert by_expert.sort_index_A.tolist() == expected
  assert by_expert.sort_index_A.dtype == by_expert.inverse_A.dtype == jnp.int32
  assert by_expert.inverse_A[by_expert.sort_index_A].tolist() == list(range(T * K))


def test_each_expert_begins_where_the_one_before_ends(way):
  expert = np.random.default_rng(1).integers(E // 2, size=(T, K)).astype(np.int32)
  by_expert = sort_by_expert(jnp.asarray(expert), E)
  flat = expert.reshape(-1)
  for e in range(E):
    start, count = int(by_expert.start_E[e]), int(by_expert.count_E[e])
    assert (flat[np.asarray(by_expert.sort_index_A)[start : start + count]] == e).all()
    assert count == (flat == e).sum()
