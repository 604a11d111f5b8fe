"""A seed names initial weights and the text that is drawn, and arms of one seed draw the same."""

from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.planning.plan import make_plan
from moe_parity.training.stage import loader_of
from tests.helpers import small_store


def planned(**data):
  config = base()
  config.budget.num_params, config.budget.dense_tokens, config.budget.seq_len = 100_000, 6_400, 16
  shape = {"num_layers": 2, "d_model": 32, "d_head": 16, "multiple_of": 4}
  config.arms.dense = dense_arm(d_head=16, seeds=(0, 1, 5))
  config.arms.moe = moe_arm(0.3, **shape, seeds=(0, 1, 5))
  for name, value in data.items():
    config.data[name] = value
  return config.lock()


def test_arms_of_one_seed_draw_the_same_text():
  plan = make_plan(planned(seed=7))
  drawn = {(arm.name, arm.seed): arm.data_seed for arm in plan.arms}
  assert drawn == {(name, seed): 7 + seed for name in ("dense", "moe") for seed in (0, 1, 5)}


def test_a_study_may_fix_the_text_for_all_seeds():
  plan = make_plan(planned(seed=7, draw_per_seed=False))
  assert {arm.data_seed for arm in plan.arms} == {7}


def windows(plan, seed, name, store):
  (arm,) = [arm for arm in plan.arms if (arm.name, arm.seed) == (name, seed)]
  return loader_of(arm, store.train).order.windows(0, 100)


def test_training_reads_the_windows_of_its_data_seed(tmp_path):
  store = small_store.small_store(tmp_path, count=300)
  plan = make_plan(planned())
  zero, one = windows(plan, 0, "dense", store), windows(plan, 1, "dense", store)
  assert (zero == windows(plan, 0, "moe", store)).all()
  assert (zero != one).any()
  fixed = make_plan(planned(draw_per_seed=False))
  assert (windows(fixed, 1, "dense", store) == zero).all()
