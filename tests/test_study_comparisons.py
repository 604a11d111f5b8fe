"""Whatever budget is asked for: every comparison's arms are at parity, or the budget is refused."""

import hypothesis
import hypothesis.strategies as st

from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.errors import UserError
from moe_parity.study.comparisons import Results, plan_comparisons, run_seen_from


@hypothesis.settings(max_examples=25, derandomize=True)
@hypothesis.given(
  num_params=st.integers(100_000, 30_000_000),
  tokens_per_param=st.floats(0.2, 40.0),
  seq_len=st.sampled_from((64, 192, 512)),
  rates=st.lists(st.floats(0.08, 0.8), min_size=3, max_size=4, unique=True).map(sorted),
  reuse=st.sampled_from(("strict", "unique", "loose")),
  fixed_data=st.booleans(),
  size=st.sampled_from((0, 2)),
)
def test_arms_keep_n_c_and_the_schemes_promise_or_are_refused(
  num_params, tokens_per_param, seq_len, rates, reuse, fixed_data, size
):
  config = base()
  config.budget.num_params, config.budget.seq_len = num_params, seq_len
  config.budget.dense_tokens = int(tokens_per_param * num_params)
  config.budget.reuse = reuse
  config.arms.dense, config.arms.moe = dense_arm(), moe_arm(multiple_of=4)
  config.study.method, config.study.fixed_data = "activation_rate", fixed_data
  config.study.activation_rates = tuple(round(rate, 3) for rate in rates)
  config.study.sizes = (size * num_params,) if size else ()
  try:
    comparisons = plan_comparisons(config.lock(), Results(None))
  except UserError as error:
    assert "\n" not in str(error)
    return
  assert len(comparisons) == 1 + fixed_data + bool(size)
  for comparison in comparisons:
    budget, at_parity = comparison.plan.budget, [a for a in comparison.plan.arms if a.role == "arm"]
    for arm in at_parity:
      assert abs(arm.num_params / budget["num_params"] - 1) <= 0.003
      assert arm.num_tokens == arm.num_steps * arm.batch_sequences * seq_len
      assert arm.train_flops == arm.num_tokens * arm.train_flops_per_token
      at_tokens = budget["held_fixed"] == "tokens"
      wanted = budget["dense_tokens"] if at_tokens else budget["train_flops"]
      spent = arm.num_tokens if at_tokens else arm.train_flops
      assert abs(spent / wanted - 1) <= 0.0055
      assert arm.num_unique_tokens <= arm.num_tokens
      assert abs(arm.peak_learning_rate) > arm.final_learning_rate
    unique = {arm.num_unique_tokens for arm in at_parity}
    if reuse == "strict":
      assert max(unique) - min(unique) <= 0.005 * max(unique) and budget["equal_data"]
    if reuse == "unique":
      assert {arm.epochs for arm in at_parity} == {1.0}


def test_a_run_of_another_comparison_has_a_relative_path():
  config = base()
  config.budget.num_params, config.budget.dense_tokens, config.budget.seq_len = 100_000, 20_000, 64
  config.arms.dense = dense_arm(d_head=16)
  config.arms.moe = moe_arm(num_layers=2, d_model=32, d_head=16, multiple_of=4)
  config.study.method, config.study.fixed_data = "activation_rate", True
  config.study.activation_rates = (0.2, 0.3, 0.4)
  main, fixed = plan_comparisons(config.lock(), Results(None))
  assert (main.folder, fixed.folder) == (".", "parts/fixed_data")
  assert main.runs[0] == fixed.runs[0] == "runs/dense-s0"
  assert run_seen_from(main, main.runs[0]) == "runs/dense-s0"
  assert run_seen_from(fixed, fixed.runs[0]) == "../../runs/dense-s0"
  assert run_seen_from(fixed, fixed.runs[1]) == "runs/moe_20-s0"
