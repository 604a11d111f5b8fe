"""Published laws: golden values from their authors' files, limits, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.errors import UserError
from moe_parity.planning.scaling_laws import (
  LAWS,
  STEP_LAW,
  DataConstrainedLaw,
  JointMoELaw,
  LeverageLaw,
  StepLaw,
)


@pytest.mark.parametrize(
  "num_params, num_tokens, rate, rounded_rate, batch, rounded_batch",
  [
    (2_150_612_992, 114e9, 1.0026e-3, 9.8448e-4, 582.8, 582.9),
    (6_517_444_608, 5.11e11, 7.2143e-4, 7.0778e-4, 1372.4, 1372.8),
    (6.476e9, 1.37e11, 4.8348e-4, 4.7464e-4, 647.2, 647.4),
  ],
)
def test_step_law_gives_its_golden_values(
  num_params, num_tokens, rate, rounded_rate, batch, rounded_batch
):
  for law, want_rate, want_batch in (
    (STEP_LAW, rate, batch),
    (StepLaw(rounded=True), rounded_rate, rounded_batch),
  ):
    found = law.predict(num_params=num_params, num_tokens=num_tokens)
    assert found["peak_learning_rate"] == pytest.approx(want_rate, rel=5e-5)
    assert found["batch_tokens"] / 2048 == pytest.approx(want_batch, abs=0.05)


@pytest.mark.parametrize(
  "num_params, num_tokens, loss",
  [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)],
)
def test_the_data_constrained_law_gives_its_authors_example(num_params, num_tokens, loss):
  found = DataConstrainedLaw().predict(
    num_params=num_params, num_tokens=num_tokens, num_unique_tokens=25e9
  )
  assert found["loss"] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(
  "epochs, worth",
  [(1, 1), (2, 1.968), (3, 2.875), (4, 3.726), (8, 6.624), (16, 10.582), (1e6, 16.388)],
)
def test_repeated_tokens_are_worth_less_up_to_a_limit(epochs, worth):
  found = DataConstrainedLaw().predict(
    num_params=1e9, num_tokens=epochs * 1e9, num_unique_tokens=1e9
  )
  assert found["effective_tokens"] / 1e9 == pytest.approx(worth, abs=6e-4)


@pytest.mark.parametrize(
  "dense_tokens, losses",
  [
    (8e9, (2.6662, 2.6542, 2.6412)),
    (20e9, (2.5655, 2.5594, 2.5538)),
    (40e9, (2.5005, 2.4987, 2.4984)),
    (80e9, (2.4438, 2.4460, 2.4508)),
  ],
)
def test_the_joint_law_turns_against_moe_when_over_trained(dense_tokens, losses):
  # 1.1B parameters in all, equal compute: active parameters of 1, 2 and 4 experts.
  for experts, active, loss in zip((1, 2, 4), (1.1e9, 0.709e9, 0.426e9), losses, strict=True):
    found = JointMoELaw().predict(
      num_active_params=active, num_experts=experts, num_tokens=dense_tokens * 1.1e9 / active
    )
    assert found["loss"] == pytest.approx(loss, abs=6e-5)


def test_the_leverage_law_has_its_papers_values():
  law = LeverageLaw()

  def leverage(granularity):
    inputs = dict(activation_ratio=0.031, granularity=granularity, train_flops=1e22)
    return law.predict(**inputs)["leverage"]

  assert leverage(12) == pytest.approx(7.245, abs=5e-4)
  best = max((step / 100 for step in range(200, 6000)), key=leverage)
  assert best == pytest.approx(11.34, abs=0.02)


@given(activation=st.floats(0.001, 0.999), flops=st.floats(1e17, 1e24))
def test_leverage_is_about_one_for_a_dense_model(activation, flops):
  law = LeverageLaw()
  full = law.predict(activation_ratio=1.0, granularity=2, train_flops=flops)["leverage"]
  assert 0.9 < full < 1.1
  assert math.isfinite(
    law.predict(activation_ratio=activation, granularity=2, train_flops=flops)["leverage"]
  )


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_each_law_states_its_units_range_and_source(law):
  assert "arXiv:" in law.source and law.name
  assert all(law.inputs.values()) and all(law.outputs.values())
  assert set(law.fitted_on) <= set(law.inputs)
  assert law.fitted_on or law.caveat
  inputs = dict.fromkeys(law.inputs, 1.0)
  assert set(law.predict(**inputs)) == set(law.outputs)


def test_an_input_outside_the_fit_is_named_and_not_clamped():
  assert STEP_LAW.extrapolates(num_params=5e8, num_tokens=1e10) == []
  found = STEP_LAW.extrapolates(num_params=1e6, num_tokens=1e12)
  assert len(found) == 2 and "num_params=1e+06 is below" in found[0] and "above" in found[1]
  ratio = (
    STEP_LAW.predict(num_params=1e6, num_tokens=1e6)["peak_learning_rate"]
    / STEP_LAW.predict(num_params=1e7, num_tokens=1e6)["peak_learning_rate"]
  )
  assert ratio == pytest.approx(10**0.712922, rel=1e-9)


@pytest.mark.parametrize(
  "law, inputs, words",
  [
    (STEP_LAW, {"num_params": 1e6}, "num_tokens is missing"),
    (STEP_LAW, {"num_params": 1e6, "num_tokens": 1.0, "batch": 2.0}, "'batch' is no input"),
    (STEP_LAW, {"num_params": -1.0, "num_tokens": 1.0}, "num_params=-1.0 is not"),
    (STEP_LAW, {"num_params": 1.0, "num_tokens": math.nan}, "num_tokens=nan"),
    (
      DataConstrainedLaw(),
      {"num_params": 1e6, "num_tokens": 1e6, "num_unique_tokens": 2e6},
      "exceeds num_tokens",
    ),
    (JointMoELaw(), {"num_active_params": 1e6, "num_tokens": 1e6, "num_experts": 0.5}, "below 1"),
    (LeverageLaw(), {"activation_ratio": 3.1, "granularity": 12.0, "train_flops": 1e22}, "share"),
  ],
)
def test_an_input_a_law_cannot_take_is_refused(law, inputs, words):
  with pytest.raises(UserError, match=words):
    law.predict(**inputs)
