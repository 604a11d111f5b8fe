"""Dense controls: another N at the budget's C and unique data."""

import pytest

from moe_parity.errors import UserError
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.plan import make_plan

BUDGET = dict(num_params=802_816, dense_tokens=150_000, seq_len=128, convention="executed")
DENSE = dict(kind="dense", num_layers=4, d_model=128, d_head=32, d_ffn=352)
MOE = dict(kind="moe", activation_rate=0.2, num_layers=3, d_model=64, d_head=32)


def planned(arms, **budget):
  config = {"seed": 3, "budget": BUDGET | budget, "arms": {"dense": DENSE, "moe_20": MOE} | arms}
  plan = make_plan(config, vocab_size=272)
  return plan, {arm.name: arm for arm in plan.arms}


@pytest.mark.parametrize("layout", ["1dense", "full", "interleave"])
def test_active_of_has_the_moes_width_depth_and_active_size(layout):
  moe = MOE | {"layout": layout, "num_layers": 4}
  _, arms = planned({"moe_20": moe, "dense_active": dict(kind="dense", active_of="moe_20")})
  control, moe = arms["dense_active"], arms["moe_20"]
  for name in ("num_layers", "d_model", "num_heads", "d_head", "num_kv_heads"):
    assert getattr(control.architecture, name) == getattr(moe.architecture, name)
  assert control.role == "control" and not control.architecture.is_moe
  one_wide = 3 * moe.architecture.d_model * moe.architecture.num_layers  # parameters of d_ffn 1
  assert abs(control.num_params - moe.num_active_params) <= one_wide / 2


@pytest.mark.parametrize("multiple", [0.5, 0.25, 0.125])
def test_a_smaller_dense_has_its_share_of_n_at_equal_c_and_data(multiple):
  small = dict(kind="dense", params_multiple=multiple, d_head=32)
  plan, arms = planned({"dense_small": small})
  control = arms["dense_small"]
  assert control.num_params == pytest.approx(802_816 * multiple, rel=0.02)
  flops = cost_of(control.architecture, 128, "executed", 512).train_flops(control.num_tokens)
  assert flops == pytest.approx(plan.budget["train_flops"], rel=0.005)
  assert control.num_unique_tokens == arms["dense"].num_unique_tokens
  assert control.num_tokens > arms["dense"].num_tokens
  assert any("dense_small has" in note and "a control" in note for note in plan.notes)


def test_controls_change_nothing_of_the_arms_they_stand_beside():
  controls = {
    "dense_small": dict(kind="dense", params_multiple=0.125, d_head=32),
    "dense_active": dict(kind="dense", active_of="moe_20"),
  }
  for reuse in ("strict", "unique", "loose"):
    alone, with_them = planned({}, reuse=reuse)[0], planned(controls, reuse=reuse)[0]
    assert alone.budget == with_them.budget
    assert alone.arms == [arm for arm in with_them.arms if arm.role == "arm"]


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(kind="moe", active_of="moe_20"), "controls are dense models"),
    (dict(kind="dense", active_of="moe_21"), "no MoE arm of this config; use one of moe_20"),
    (dict(kind="dense", active_of="dense"), "no MoE arm of this config"),
    (dict(kind="dense", active_of="moe_20", params_multiple=0.5), "both decide N"),
    (dict(kind="dense", active_of="moe_20", d_ffn=64), "d_ffn: the MoE arm decides the shape"),
    (dict(kind="dense", active_of="moe_20", ffn_ratio=3.0), "with ffn_ratio: the MoE arm decides"),
    (dict(kind="dense", active_of="moe_20", num_experts=4), "with num_experts: the MoE arm"),
    (dict(kind="dense", params_multiple=0.5, compute_multiple=2), "spends the budget's C"),
    (dict(kind="dense", params_multiple=0.5, role="check"), "spends the budget's C"),
    (dict(kind="dense", params_multiple=-1), "params_multiple=-1 is below 1e-06"),
    (DENSE | dict(params_multiple=0.5), "asks for 401,408 parameters and the given shape has 80"),
  ],
)
def test_a_control_that_cannot_be_is_refused(fields, words):
  with pytest.raises(UserError, match="control_x.*"):
    try:
      planned({"control_x": fields})
    except UserError as error:
      assert words in str(error)
      raise


def test_a_controls_own_size_may_be_outside_its_law():
  """StepLaw was fitted from 6e7 parameters: the dense arm has more, its quarter fewer."""
  budget = dict(num_params=100_000_000, dense_tokens=2_500_000_000, seq_len=1024)
  arms = {"dense": dict(kind="dense"), "small": dict(kind="dense", params_multiple=0.25)}
  notes = [
    [n for n in make_plan({"budget": budget, "arms": chosen}).notes if "extrapolate" in n]
    for chosen in ({"dense": arms["dense"]}, arms)
  ]
  assert notes[0] == [] and "is below 6e+07" in notes[1][0]


def test_a_control_may_have_its_shape_given():
  given = dict(kind="dense", params_multiple=0.25, num_layers=2, d_model=96, d_head=32, d_ffn=220)
  control = planned({"small": given})[1]["small"]
  assert control.num_params == 2 * (4 * 96**2 + 3 * 96 * 220)
  assert abs(control.num_params / (0.25 * 802_816) - 1) < 0.02


def test_a_control_larger_than_dense_shrinks_no_arms_text():
  """It reads less than the dense arm, whose unique tokens stay those of the study."""
  large = {"dense_large": dict(kind="dense", params_multiple=2, d_head=32)}
  with pytest.raises(UserError, match="'dense_large' sees 76,800 .* cannot see the 150,016"):
    planned(large)
