"""Specialization statistics against loops over counts, and against cases with known answers."""

import math

import numpy as np
import pytest

from moe_parity.evaluation import specialization
from moe_parity.evaluation.specialization import RoutingCounts


def choices(expert_NLE, domain_N, pairs=None, experts_per_token=2, domains=("a", "b", "c")):
  expert_NLE = np.asarray(expert_NLE)
  layers, experts = expert_NLE.shape[1:]
  if pairs is None:
    pairs = np.zeros((layers, experts, experts), np.int64)
  tokens = expert_NLE[:, 0].sum(-1) // experts_per_token
  return RoutingCounts(domains, np.asarray(domain_N), tokens, expert_NLE, pairs, experts_per_token)


def information_by_loops(counts):
  """I(domain; expert) with domains drawn evenly, term by term."""
  rows = [row for row in counts if sum(row)]
  total = 0.0
  for row in rows:
    for expert, count in enumerate(row):
      if count:
        p = count / sum(row)
        marginal = sum(other[expert] / sum(other) for other in rows) / len(rows)
        total += p * math.log(p / marginal) / len(rows)
  return total


def test_information_is_that_of_the_sum_over_domains_and_experts():
  rng = np.random.default_rng(2)
  counts = rng.integers(0, 40, (5, 4, 7))
  counts[1, 2] = 0  # a domain without text
  counts[3, :, 5] = 0  # an expert that no token chose
  found = specialization.mutual_information(counts)
  assert found == pytest.approx([information_by_loops(layer) for layer in counts])


def test_information_is_0_for_equal_use_and_ln_d_for_own_experts():
  alike = np.array([[10, 20, 30], [1, 2, 3], [7, 14, 21]])
  assert specialization.mutual_information(alike) == pytest.approx(0, abs=1e-12)
  own = np.array([[9, 0, 0, 0], [0, 3, 3, 0], [0, 0, 0, 50]])
  assert specialization.mutual_information(own) == pytest.approx(math.log(3))


def test_chance_alone_is_not_called_specialization():
  """Documents differ from each other, domains do not: information is positive, excess is not."""
  rng = np.random.default_rng(4)
  low = 0
  for _ in range(10):
    shares = rng.dirichlet(np.full(12, 2.0), (24, 2))
    counts = np.array([[rng.multinomial(300, layer) for layer in document] for document in shares])
    rows = specialization.specialization_by_layer(choices(counts, np.arange(24) % 3))
    for row in rows:
      assert row["information"] > 0.01 and abs(row["share"]) < 0.05
      assert row["null_mean"] < row["null_high"]
      low += row["p_value"] < 0.05
  assert low <= 4  # of 20 layers, 1 expected


def test_a_domain_with_its_own_experts_stands_out_from_chance():
  rng = np.random.default_rng(5)
  domain = np.arange(30) % 3
  counts = np.zeros((30, 2, 12), np.int64)
  for document, d in enumerate(domain):
    tilt = np.where(np.arange(12) // 4 == d, 3.0, 1.0)
    counts[document, 0] = rng.multinomial(400, tilt / tilt.sum())
    counts[document, 1] = rng.multinomial(400, np.full(12, 1 / 12))
  special, even = specialization.specialization_by_layer(choices(counts, domain))
  truth = information_by_loops([np.where(np.arange(12) // 4 == d, 3.0, 1.0) for d in range(3)])
  assert special["excess"] == pytest.approx(truth, rel=0.1) and special["p_value"] < 0.01
  assert abs(even["excess"]) < 0.01 * truth + 0.003 and even["p_value"] > 0.01


def test_one_domain_has_no_specialization_to_speak_of():
  (row,) = specialization.specialization_by_layer(choices(np.full((4, 1, 3), 5), np.zeros(4, int)))
  assert row["information"] is None and row["layer"] == 1


def test_independent_pairs_have_a_lift_of_1_and_tied_ones_more():
  rng = np.random.default_rng(6)
  experts, tokens = 6, 9_000
  pairs = np.zeros((2, experts, experts), np.int64)
  for _ in range(tokens):
    a, b = rng.choice(experts, 2, replace=False)
    bound = (0, 1) if rng.random() < 0.3 else (a, b)
    for layer, (x, y) in enumerate(((a, b), bound)):
      for i, j in ((x, x), (y, y), (x, y), (y, x)):
        pairs[layer, i, j] += 1
  found = choices(np.ones((3, 2, experts), int), [0, 1, 2], pairs)
  even, tied = (specialization.coactivation_lift(found, layer) for layer in (0, 1))
  off = ~np.eye(experts, dtype=bool)
  assert np.abs(even[off] - 1).max() < 0.15 and np.isnan(np.diag(even)).all()
  assert tied[0, 1] > 1.8 and tied[2, 0] < 0.8
  assert specialization.pair_information(found, 0) < 0.004
  assert specialization.pair_information(found, 1) > 0.1
  alone = choices(np.ones((3, 1, experts), int), [0, 1, 2], experts_per_token=1)
  assert specialization.pair_information(alone, 0) is None


@pytest.mark.parametrize("name", ["specialization.npz", "specialisation.npz"])
def test_saved_counts_come_back_also_from_older_runs(tmp_path, name):
  rng = np.random.default_rng(7)
  counts = rng.integers(0, 9, (5, 2, 4))
  before = choices(counts, [0, 2, 1, 2, 0], rng.integers(0, 9, (2, 4, 4)), 3)
  assert specialization.load(tmp_path) is None
  specialization.save(before, tmp_path)
  (tmp_path / "specialization.npz").rename(tmp_path / name)
  after = specialization.load(tmp_path)
  assert after.domains == before.domains and after.experts_per_token == 3
  for name in ("domain_N", "tokens_N", "expert_NLE", "pair_LEE"):
    assert np.array_equal(getattr(after, name), getattr(before, name))
  expected = [[counts[[0, 4], layer].sum(0), counts[2, layer], counts[[1, 3], layer].sum(0)]
              for layer in range(2)]  # fmt: skip
  assert np.array_equal(after.by_domain(), np.array(expected))
