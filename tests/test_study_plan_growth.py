"""A staged study's plan may gain arms, and nothing else of it may change."""

import dataclasses
import json
import pathlib

import pytest

from moe_parity import config as configs
from moe_parity.errors import UserError
from moe_parity.planning.plan import make_plan
from moe_parity.study.plan_growth import has_grown

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def plan():
  return make_plan(configs.load(f"{ROOT}/configs/demo.py:tiny"))


def on_disk(folder, plan):
  path = folder / "plan.json"
  path.write_text(json.dumps(plan.to_dict()))
  return path


def without(plan, place):
  arms = [arm for arm in plan.arms if arm is not plan.arms[place]]
  return dataclasses.replace(plan, arms=type(plan.arms)(arms))


def test_a_staged_study_gains_arms_whichever_worker_is_ahead(plan, tmp_path):
  fewer = without(plan, 0)
  assert has_grown(on_disk(tmp_path, fewer), plan, staged=True)
  assert not has_grown(on_disk(tmp_path, plan), fewer, staged=True)
  assert not has_grown(on_disk(tmp_path, plan), plan, staged=True)


def test_a_plain_study_gains_no_arms(plan, tmp_path):
  with pytest.raises(UserError, match="holds another study"):
    has_grown(on_disk(tmp_path, without(plan, 0)), plan, staged=False)


def test_a_staged_study_changes_no_arm_that_it_has(plan, tmp_path):
  longer = dataclasses.replace(plan.arms[0], num_steps=plan.arms[0].num_steps + 1)
  other = dataclasses.replace(plan, arms=type(plan.arms)([longer, *plan.arms[1:]]))
  with pytest.raises(UserError, match="num_steps"):
    has_grown(on_disk(tmp_path, plan), other, staged=True)


def test_plans_that_each_lack_an_arm_of_the_other_are_refused(plan, tmp_path):
  with pytest.raises(UserError, match="holds another study"):
    has_grown(on_disk(tmp_path, without(plan, 0)), without(plan, -1), staged=True)
