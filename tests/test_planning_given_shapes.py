"""A shape that is given in full, and what else an arm asks for, do not contradict each other."""

import pytest

from moe_parity.errors import UserError
from moe_parity.planning.plan import make_plan
from tests.test_planning_plan import DENSE, config

# Every field of the shape, so that the solver has nothing to decide.
GIVEN = dict(
  kind="moe", layout="full", num_layers=4, d_model=64, num_heads=4, num_experts=40,
  experts_per_token=2, d_expert=60,
)  # fmt: skip


@pytest.mark.parametrize(
  "arm, words",
  [
    (
      DENSE | {"activation_rate": 0.5},
      "arm 'a': activation_rate=0.5 in a dense arm",
    ),
    (DENSE | {"granularity": 4.0}, "granularity=4.0 in a dense arm"),
    (
      DENSE | {"ffn_ratio": 4.0},
      "ffn_ratio=4 but the given shape has 2.7500; set it to 0 or leave a field",
    ),
    (GIVEN | {"aspect_ratio": 40.0}, "aspect_ratio=40 but the given shape has 16"),
    (GIVEN | {"granularity": 8.0}, "granularity=8 but the given shape has 2.1333"),
    (
      GIVEN | {"d_ffn": 512},
      "arm 'a': d_ffn=512 with layout='full', which has no dense layer to use it; set it to 0",
    ),
    (GIVEN | {"ffn_ratio": 3.0}, "ffn_ratio=3.0 with layout='full', which has no dense layer"),
    (
      dict(kind="moe", layout="full", activation_rate=0.2, d_ffn=512),
      "d_ffn=512 with layout='full', which has no dense layer",
    ),
    (
      dict(kind="moe", layout="MMM", activation_rate=0.2, ffn_ratio=3.0),
      "ffn_ratio=3.0 with layout='MMM', which has no dense layer",
    ),
    (
      dict(kind="moe", layout="0dense", activation_rate=0.2, ffn_ratio=3.0),
      "ffn_ratio=3.0 with layout='0dense', which has no dense layer",
    ),
    (
      GIVEN | {"total_ffn_ratio": 3.0},
      "total_ffn_ratio=3 but the given shape has",
    ),
  ],
)
def test_what_the_given_shape_has_not_is_refused(arm, words):
  with pytest.raises(UserError, match=words) as error:
    make_plan(config({"a": arm}))
  assert "\n" not in str(error.value)


def test_ratios_near_the_given_shape_are_no_contradiction():
  """(64, 4) is 16 wide for its depth, its experts 2.13 fine and 39.4 d_model wide together."""
  ratios = dict(aspect_ratio=20.0, granularity=2.5, total_ffn_ratio=32.0)
  budget = dict(num_params=2_000_896, dense_tokens=0, train_flops=1e12, unique_tokens=128_000)
  free, asked = (
    make_plan(config({"a": GIVEN | fields}, budget)).arms[0] for fields in ({}, ratios)
  )
  assert free == asked and free.architecture.d_expert == 60


def test_an_odd_head_has_no_pairs_to_rotate():
  arms, budget = {"a": DENSE | dict(num_heads=20, d_head=5)}, {"num_params": 745_472}
  make_plan(config(arms, budget, model={"position": "alibi"}))
  with pytest.raises(UserError, match="arm 'a': d_head=5 is odd and model.position='rope'"):
    make_plan(config(arms, budget, model={"position": "rope"}))
