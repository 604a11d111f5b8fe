"""Documents that score tries of learning rates and documents that score the comparison."""

import numpy as np
import pytest

from moe_parity.data.token_store import Documents
from moe_parity.defaults import base
from moe_parity.errors import UserError
from moe_parity.evaluation.document_parts import part_of, rows_of_run
from moe_parity.planning.config_rules import check_config


def documents(domain):
  size = len(domain)
  number = lambda value: np.full(size, value)  # noqa: E731
  return Documents(
    num_tokens=number(12), num_text_tokens=number(10), num_bytes=number(10), num_chars=number(10),
    domain=np.array(domain), source=number(0), origin=number(0),
    domains=("a", "b", "c", "d"), sources=("s",),
  )  # fmt: skip


def test_the_two_parts_share_nothing_and_leave_nothing_out():
  made = documents([0] * 10 + [1] * 5 + [2] + [3] * 2)
  tries, rest = (part_of(made, 0.3, 7, is_try) for is_try in (True, False))
  assert sorted([*tries, *rest]) == list(range(18))
  numbers = [int((made.domain[tries] == d).sum()) for d in range(4)]
  assert numbers == [3, 2, 0, 1]  # a domain of one document gives it to the comparison


def test_the_draw_depends_on_the_seed_and_on_nothing_else():
  made = documents([0] * 40)
  again, other = part_of(made, 0.5, 7, True), part_of(made, 0.5, 8, True)
  np.testing.assert_array_equal(part_of(made, 0.5, 7, True), again)
  assert not np.array_equal(again, other)


def test_no_share_uses_all_documents_for_both():
  assert part_of(documents([0, 0]), 0.0, 0, True) is None


def test_a_text_that_cannot_be_divided_is_refused():
  with pytest.raises(UserError, match="no domain of the held-out text has two documents"):
    part_of(documents([0, 1, 2]), 0.5, 0, False)


@pytest.mark.parametrize("max_tokens", [0, 60])
def test_tokens_are_chosen_within_a_part(max_tokens):
  config = base()
  config.evaluation.tuning_share, config.evaluation.max_tokens = 0.4, max_tokens
  made = documents([0] * 12 + [1] * 8)
  tries, rest = (rows_of_run(made, config, is_try) for is_try in (True, False))
  assert not set(tries) & set(rest)
  if max_tokens:
    assert max(10 * len(tries), 10 * len(rest)) <= 60
  else:
    assert len(tries) + len(rest) == 20


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(tuning_share=0.3), "without tries of learning rates"),
    (dict(tuning_share=0.3, mode="packed"), "scores windows and not documents"),
    (dict(tuning_share=0.95), "tuning_share"),
  ],
)
def test_a_share_that_scores_nothing_is_refused(fields, words):
  config = base()
  budget = config.budget
  budget.num_params, budget.dense_tokens, budget.seq_len = 100_000, 20_000, 64
  for name, value in fields.items():
    config.evaluation[name] = value
  if "without" not in words:
    config.study.learning_rate_grid = (0.001, 0.002)
  with pytest.raises(UserError, match=words):
    check_config(config)
