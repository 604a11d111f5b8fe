"""The greedy search on made-up objectives whose answer is known."""

import dataclasses
import math

import pytest

from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.errors import NotFiniteError, UserError
from moe_parity.study.comparisons import Results, plan_comparisons
from moe_parity.study.methods import architecture, selection
from moe_parity.study.workers.runner import run_study
from tests.helpers import fake_training

LAYOUTS = ("1dense+se", "1dense", "full+se", "full")


def config(**study):
  made = base()
  made.name = "search"
  made.budget.num_params, made.budget.dense_tokens, made.budget.seq_len = 8_000_000, 40_000, 64
  made.arms.dense = dense_arm(d_head=32)
  made.arms.moe = moe_arm(0.3, num_layers=6, d_model=128, d_head=32, multiple_of=4)
  made.study.method = "architecture"
  made.study.layouts = LAYOUTS
  made.study.routed_scales = ()
  for name, value in study.items():
    made.study[name] = value
  return made.lock()


def run(folder, made, truth):
  study = fake_training.open_study(folder, made)
  arms = run_study(study, log=lambda line: None, actions=fake_training.actions(truth=truth))
  return study.summarize(), arms


def separable(arm):
  """Lowest for full+SE, normalized gates, K = 20, a dense d / L of 20 and d_ffn / d of 2."""
  shape = arm.architecture
  noise = 1e-5 * (hash((arm.name, arm.seed)) % 7)
  if arm.kind == "dense":
    away = 0.1 * math.log(shape.aspect_ratio / 20) ** 2 + 0.1 * math.log(shape.ffn_ratio / 2) ** 2
    return 2.2 + away + noise
  value = 2.0 + 0.02 * (shape.layout != "full") + 0.03 * (not shape.d_shared)
  value += 0.01 * (arm.gates != "normalized")
  return value + 0.02 * abs(math.log2(shape.experts_per_token / 20)) + noise


def test_the_search_finds_the_known_answer_in_the_papers_order(tmp_path):
  made = config(granularities=(0.1, 2.0), dense_aspect_ratios=(20.0,), dense_ffn_ratios=(2.0,),
                seeds=(0, 1))  # fmt: skip
  value, arms = run(tmp_path, made, separable)
  assert {arm.status for arm in arms} == {"done"}
  stages = {s["name"]: s for s in value["stages"]}
  assert [s["name"] for s in value["stages"] if s["kind"] == "moe"] == [
    "layout", "gates", "granularity"
  ]  # fmt: skip
  backbone = value["backbone"]
  assert (backbone["layout"], backbone["gates"]) == ("full", "normalized")
  assert backbone["experts_per_token"] == 20 and backbone["d_shared"] > 0
  layout = next(o for o in stages["layout"]["options"] if o["verdict"] == "chosen")
  assert backbone["experts_per_token"] * backbone["d_expert"] == (
    layout["experts_per_token"] * layout["d_expert"]
  )
  dense = value["dense_backbone"]
  assert abs(dense["aspect_ratio"] / 20 - 1) < 0.35 and abs(dense["ffn_ratio"] / 2 - 1) < 0.35
  between = backbone["bpc"] - dense["bpc"]
  assert value["between"]["difference"] == pytest.approx(between)
  low, high = value["between"]["interval"]
  assert low < between < high < 0
  locked = "MoE: full with a shared expert, normalized gates, 6 layers of width 128, 20 of"
  assert locked in value["headline"]
  # Each option once: 4 layouts, the other gates, K of 1 (no router left) and 20; dense: 3.
  assert value["num_arms"] == {"moe": 6, "dense": 3}
  assert value["num_runs"] == {"moe": 12, "dense": 6} and len(arms) == 18
  assert [s["label"] for s in stages["granularity"]["skipped"]] == ["K 1"]
  for stage in value["stages"]:
    for option in stage["options"]:
      assert abs(option["num_params"] / 8_000_000 - 1) <= 0.003
      if stage["kind"] == "moe":
        assert abs(option["activation_rate"] - 0.3) <= 0.005
        expected = option["forward_flops_per_token"] / (2 * option["num_active_params"])
        assert option["kappa"] == pytest.approx(expected)


def test_a_stage_is_known_only_when_the_one_before_is_done(tmp_path):
  made = config(granularities=())
  names = {arm.name for arm in plan_comparisons(made, Results(None))[0].plan.arms}
  assert names == {"dense", "moe_start", "layout_1dense", "layout_full", "layout_full_se"}
  order = []

  def truth(arm):
    order.append(arm.name)
    return separable(arm)

  run(tmp_path, made, truth)
  assert order[-1] == "gates_normalized" and set(order[:-1]) == names


def test_a_tie_keeps_the_option_in_place_and_is_stated(tmp_path):
  def truth(arm):
    wiggle = 0.02 * (arm.seed - 0.5) * (1 if arm.name == "moe_start" else -1)
    return 2.0 - 0.001 * (arm.architecture.layout == "full") + wiggle

  value, _ = run(tmp_path, config(seeds=(0, 1), gates=False, granularities=()), truth)
  (stage,) = [s for s in value["stages"] if s["name"] == "layout"]
  assert stage["chosen"] == "1dense+SE" and stage["tie"]
  assert any("Not distinguishable from it: 1dense, full+SE, full." in s for s in value["sentences"])


def test_a_full_layout_leaves_widths_of_dense_layers_out():
  made = config()
  with made.unlocked():
    made.arms.moe.ffn_ratio = 3.0
  (comparison,) = plan_comparisons(made, Results(None))
  arms = {arm.architecture.layout: arm.architecture for arm in comparison.plan.arms}
  assert arms["full"].d_ffn == 0 and 1 / 1.35 < arms["1dense"].ffn_ratio / 3 < 1.35


def test_a_diverged_option_loses_and_the_search_goes_on(tmp_path):

  good = fake_training.actions(truth=separable)

  def train(config_, arm, *args):
    if arm.name == "layout_full_se":
      raise NotFiniteError("the loss of step 3 is nan")
    good.train(config_, arm, *args)

  study = fake_training.open_study(tmp_path, config(granularities=(), gates=False))
  arms = run_study(study, log=lambda line: None, actions=dataclasses.replace(good, train=train))
  assert [arm.status for arm in arms if arm.name == "layout_full_se"] == ["failed"]
  stage = next(s for s in study.summarize()["stages"] if s["name"] == "layout")
  verdicts = {o["label"]: o["verdict"] for o in stage["options"]}
  assert verdicts["full+SE"] == "diverged" and stage["chosen"] == "1dense+SE"


def runs(*values):
  """Results of one option with these BPC, one a seed; the documents are all alike."""
  return [{"validation": {"bpc": v, "documents": [
    {"domain": "a", "nats": v * 100 * math.log(2), "num_chars": 100} for _ in range(5)
  ]}} for v in values]  # fmt: skip


def test_an_option_must_be_lower_by_more_than_the_noise():
  clear = selection.select([runs(2.00, 2.01), runs(1.80, 1.81), runs(1.90, 1.91)])
  assert clear.chosen == 1 and clear.verdict == ("worse", "chosen", "worse") and not clear.tie
  close = selection.select([runs(2.00, 2.01), runs(2.005, 1.995), runs(2.5, 2.51)])
  assert close.chosen == 0 and close.verdict == ("chosen", "not distinguishable", "worse")
  assert close.tie and close.interval[1][0] < 0 < close.interval[1][1]


def test_a_diverged_option_in_place_gives_way_to_the_best_other():
  made = selection.select([[None, *runs(2.0)], runs(2.0, 2.01), runs(1.9, 1.91)])
  assert made.chosen == 2 and made.verdict[0] == "diverged"
  assert selection.select([[None], [None]]).verdict == ("diverged", "diverged")


def scaled(arm):
  """Raw gates times E/K are best; a learned scale is half as good."""
  gain = {"": 0.0, "E/K": 0.02, "learned": 0.01}[arm.routed_scale] if arm.kind == "moe" else -0.1
  return 2.0 - gain + 1e-5 * (hash((arm.name, arm.seed)) % 7)


def test_the_scale_of_the_routed_sum_is_the_last_stage(tmp_path):
  made = config(layouts=(), gates=False, granularities=(), seeds=(0, 1),
                routed_scales=("1", "E/K", "learned"))  # fmt: skip
  value, arms = run(tmp_path, made, scaled)
  (stage,) = [s for s in value["stages"] if s["kind"] == "moe" and s["name"] == "scale"]
  assert [o["label"] for o in stage["options"]] == [
    "times 1", "times E/K", "times a learned number"
  ]  # fmt: skip
  assert stage["chosen"] == "times E/K" and value["backbone"]["routed_scale"] == "E/K"
  assert len({o["num_params"] for o in stage["options"]}) == 1 and len(arms) == 8


def test_normalized_gates_leave_e_over_k_out_and_say_so(tmp_path):
  made = config(layouts=(), gates=False, granularities=(), routed_scales=("1", "E/K"))
  with made.unlocked():
    made.model.normalize_gates = True
  value, arms = run(tmp_path, made.lock(), scaled)
  stage = value["stages"][-1]
  assert stage["name"] == "scale" and len(stage["options"]) == 1 and len(arms) == 2
  (left_out,) = stage["skipped"]
  assert left_out["label"] == "times E/K" and "normalized gates sum to 1" in left_out["why"]


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda c: c.budget.update(reuse="unique"), "use 'strict'"),
    (lambda c: c.arms.moe.update(activation_rate=0.0), "give the rate"),
    (lambda c: c.study.update(layouts=("1dense+sa",)), "with or without '\\+se'"),
  ],
)
def test_a_search_that_cannot_be_is_refused(change, words):
  made = config()
  with made.unlocked():
    change(made)
  with pytest.raises(UserError, match=words):
    plan_comparisons(made, Results(None))


def test_what_may_still_come_is_said_before_it_is_known():
  made = config(dense_aspect_ratios=(12.0, 30.0))
  (line,) = architecture.pending_notes(made, plan_comparisons(made, Results(None)))
  assert "at most 9 MoE and 3 dense runs" in line
