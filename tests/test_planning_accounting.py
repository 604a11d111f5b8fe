"""Parameters and FLOPs: hand counts, the golden integers, and the identities between them."""

import csv
import dataclasses
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.errors import UserError
from moe_parity.paper import tables
from moe_parity.planning.accounting import (
  ATTENTION_BLOCK,
  CONVENTIONS,
  compute_ratio,
  cost_of,
  query_block,
)
from moe_parity.planning.architecture import Architecture

SMALL = Architecture(
  num_layers=5,
  d_model=7,
  num_heads=6,
  num_kv_heads=2,
  d_head=4,
  layout="2dense",
  d_ffn=11,
  num_experts=9,
  experts_per_token=2,
  d_expert=13,
  d_shared=17,
  vocab_size=31,
)

# N, N_a without router and norms; M train at S = 2048. Rows also in StepLaw's public run list.
GOLDEN = [
  ((89, 1, 352, 352), 2_150_612_992, 187_973_632, 1_681_489_920),
  ((88, 2, 352, 704), 2_150_612_992, 232_579_072, 1_949_122_560),
  ((8, 1, 3528, 3528), 2_155_174_912, 590_436_352, 4_096_266_240),
  ((8, 3, 2888, 8664), 2_156_188_672, 1_241_270_272, 8_001_269_760),
]


def two_billion(num_experts, experts_per_token, d_expert, d_shared):
  return dataclasses.replace(
    tables.row("table10", 2).architecture,
    num_experts=num_experts,
    experts_per_token=experts_per_token,
    d_expert=d_expert,
    d_shared=d_shared,
  )


def count_matrices(a, experts):
  """Every matrix of the model one by one, as a model would allocate them."""
  total = 0
  for is_moe in a.moe_layers:
    total += a.d_model * a.num_heads * a.d_head + a.num_heads * a.d_head * a.d_model
    for _ in ("key", "value"):
      total += a.d_model * a.num_kv_heads * a.d_head
    if not is_moe:
      total += a.d_model * a.d_ffn * 2 + a.d_ffn * a.d_model
      continue
    for _ in range(experts):
      total += a.d_model * a.d_expert * 2 + a.d_expert * a.d_model
    total += a.d_model * a.d_shared * 3
  return total


@pytest.mark.parametrize("shape, num_params, num_active_params, train_flops", GOLDEN)
def test_the_golden_rows_of_the_2b_backbone_come_back(
  shape, num_params, num_active_params, train_flops
):
  cost = cost_of(two_billion(*shape), 2048, "paper")
  assert cost.num_params == num_params
  assert cost.num_active_params == num_active_params
  assert cost.train_flops_per_token == train_flops


def test_the_router_of_the_7b_row_counts_under_paper_full_only():
  shape = tables.row("table11", 4).architecture
  router, norms = 78 * 2048 * 23, 49 * 2048
  assert cost_of(shape, 2048, "paper").num_params + router == 6_517_444_608
  full = cost_of(shape, 2048, "paper_full")
  assert full.num_params == 6_517_444_608 + norms
  assert full.breakdown["params.router"] == router
  assert full.train_flops_per_token == pytest.approx(9.066e9, rel=1e-4)


def test_parameters_are_those_of_every_matrix_counted_one_by_one():
  cost = cost_of(SMALL, 20, "paper")
  assert cost.num_params == count_matrices(SMALL, SMALL.num_experts)
  assert cost.num_active_params == count_matrices(SMALL, SMALL.experts_per_token)


def test_exact_adds_router_and_norms_but_no_vocabulary():
  cost = cost_of(SMALL, 20, "exact")
  router, norms = 3 * 9 * 7, (2 * 5 + 1) * 7
  assert cost.num_params == count_matrices(SMALL, 9) + router + norms
  assert cost.num_active_params == count_matrices(SMALL, 2) + router + norms
  assert cost.vocabulary_params == 2 * 31 * 7


def test_flops_of_each_convention_are_the_formulas():
  active, scores = count_matrices(SMALL, 2), 4 * 5 * 6 * 4 * 20
  router = 3 * 9 * 7
  assert cost_of(SMALL, 20, "paper").forward_flops_per_token == 2 * active + scores
  assert cost_of(SMALL, 20, "exact").forward_flops_per_token == 2 * (active + router) + scores
  assert (
    cost_of(SMALL, 20, "paper_full").train_flops_per_token
    == 6 * (active + router) + 3 * scores + 9 * 5 * 6 * 20 + 45 * 5 * 7
  )


@pytest.mark.parametrize("block, keys", [(0, 20), (20, 20), (7, 20), (10, 15), (4, 12), (1, 10.5)])
def test_executed_counts_head_router_and_the_keys_of_blocks(block, keys):
  cost = cost_of(SMALL, 20, "executed", block)
  products = 2 * count_matrices(SMALL, 2) + 2 * 3 * 9 * 7 + 2 * 31 * 7
  assert cost.forward_flops_per_token == products + 4 * 5 * 6 * 4 * keys
  assert cost.train_flops_per_token == 3 * cost.forward_flops_per_token


def test_the_keys_a_query_meets_are_those_of_a_walk_over_blocks():
  for seq_len, block in ((12, 4), (12, 5), (12, 12), (15, 3), (15, 1)):
    size = query_block(seq_len, block)
    met = sum(size * stop for stop in range(size, seq_len + 1, size))
    scores = cost_of(SMALL, seq_len, "executed", block).breakdown["forward.scores"]
    assert scores * seq_len == 4 * 5 * 6 * 4 * met


def test_executed_keeps_the_papers_n_and_alone_counts_blocks():
  paper, executed = (cost_of(SMALL, 20, name) for name in ("paper", "executed"))
  assert executed.num_params == paper.num_params
  assert executed.num_active_params == paper.num_active_params
  assert paper.num_params_with_vocabulary == paper.num_params + 2 * 31 * 7
  for convention in ("paper", "paper_full", "exact"):
    assert cost_of(SMALL, 20, convention, 4) == cost_of(SMALL, 20, convention)


def test_the_default_block_is_that_of_a_config():
  options = pytest.importorskip("moe_parity.model.options").ModelOptions()
  from moe_parity.defaults import base

  assert base().model.attention_block == ATTENTION_BLOCK == options.attention_block


def test_parts_add_up_to_the_totals():
  for convention in CONVENTIONS:
    cost = cost_of(SMALL, 20, convention, 4)

    def total(prefix, parts=cost.breakdown):
      return sum(count for name, count in parts.items() if name.startswith(prefix))

    assert total("params.") == cost.num_params
    assert total("active.") == cost.num_active_params
    assert total("forward.") == cost.forward_flops_per_token


def test_every_row_of_the_golden_table_comes_back():
  published = pytest.importorskip("moe_parity.paper.tables")
  golden = pathlib.Path(__file__).parent / "golden" / "derived_exact.csv"
  with golden.open() as lines:
    rows = list(csv.DictReader(lines))
  assert len(rows) > 80
  for row in rows:
    shape = published.row(row["table"], int(row["row"])).architecture
    seq_len = published.row(row["table"], int(row["row"]))["seq_len"]
    paper, full = (cost_of(shape, seq_len, name) for name in ("paper", "paper_full"))
    found = (
      paper.num_params,
      paper.num_active_params,
      full.num_params,
      full.num_active_params,
      paper.forward_flops_per_token,
      paper.train_flops_per_token,
      full.train_flops_per_token,
    )
    names = "N_eq Na_eq N_full Na_full M_fwd_eq M_train_eq M_train_full".split()
    assert found == tuple(int(row[name]) for name in names), (row["table"], row["row"])


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(
  num_layers=st.integers(2, 9),
  d_model=st.integers(1, 99),
  heads=st.integers(1, 5),
  experts=st.integers(1, 40),
  chosen=st.integers(1, 40),
  width=st.integers(1, 50),
  shared=st.integers(0, 50),
  seq_len=st.integers(1, 5000),
  layout=st.sampled_from(["full", "interleave", "1dense"]),
)
def test_rates_and_ratios_agree_with_each_other(
  convention, num_layers, d_model, heads, experts, chosen, width, shared, seq_len, layout
):
  moe = Architecture(
    num_layers,
    d_model,
    2 * heads,
    3,
    num_kv_heads=heads,
    layout=layout,
    d_ffn=19,
    num_experts=max(experts, chosen),
    experts_per_token=min(experts, chosen),
    d_expert=width,
    d_shared=shared,
  )
  dense = Architecture(num_layers, d_model, 2 * heads, 3, d_ffn=23)
  a, b = cost_of(moe, seq_len, convention), cost_of(dense, seq_len, convention)
  assert 0 < a.activation_rate <= 1 and b.activation_rate == 1
  assert a.train_flops_per_token == 3 * a.forward_flops_per_token
  by_rates = (a.activation_rate * a.num_params * a.kappa) / (b.num_params * b.kappa)
  assert compute_ratio(a, b) == pytest.approx(by_rates, rel=1e-12)


def test_kappa_is_the_papers_attention_overhead():
  shape = two_billion(84, 6, 352, 2112)
  cost = cost_of(shape, 2048, "paper")
  assert cost.kappa == pytest.approx(1 + 4 * 16 * 1408 * 2048 / (2 * 411_000_832), rel=1e-12)


@pytest.mark.parametrize(
  "seq_len, convention, words",
  [
    (2048, "papr", r"'papr' is not known; give paper \| paper_full.*did you mean 'paper'"),
    (0, "paper", "seq_len=0"),
    (True, "paper", "seq_len=True"),
  ],
)
def test_a_wrong_question_is_refused(seq_len, convention, words):
  with pytest.raises(UserError, match=words):
    cost_of(SMALL, seq_len, convention)


def test_costs_of_two_conventions_are_not_compared():
  with pytest.raises(UserError, match="paper_full"):
    compute_ratio(cost_of(SMALL, 20, "paper"), cost_of(SMALL, 20, "paper_full"))
