"""What the page says where a side of the comparison is missing, behind or seen once."""

import dataclasses

import pytest

from moe_parity.report import expert_share, figures, first_figure, sections, sweeps, tables
from moe_parity.study.analysis import compare
from tests.helpers import fake_study

CONTROLS = {"dense_active": (240_000, 1.97), "dense_small": (600_000, 1.96)}
FAKE = fake_study.Fake(
  rates=(0.2,), seeds=(0, 1), seed_sd=0.003, controls=CONTROLS, ablation_cost=0.3
)


def analyzed(folder, **changes):
  return compare.analyze(fake_study.write_study(folder, dataclasses.replace(FAKE, **changes)))


def controls_section(report):
  made = {
    "controls": expert_share.controls(report),
    "ablations": expert_share.ablations(report),
    "layers": dataclasses.replace(expert_share.controls(report), rows=[]),
  }
  return sections.controls(report, {}, made).body


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  return analyzed(tmp_path_factory.mktemp("study"))


def test_one_moe_arm_has_no_curve_and_no_word_on_one(report):
  caption = figures.activation_rate(report).caption
  assert "intervals hold for all arms at once" in caption and "band" not in caption
  assert "coefficients" not in sections.method(report).body


def test_with_a_curve_the_page_says_what_its_band_holds(tmp_path):
  report = analyzed(tmp_path, rates=(0.1, 0.2, 0.3, 0.4))
  assert "band for the whole fitted curve" in figures.activation_rate(report).caption
  assert "three coefficients" in sections.method(report).body


def test_controls_that_are_done_are_not_said_to_be_missing(report, tmp_path):
  assert "Not here: a dense" not in controls_section(report)
  without_dense = controls_section(analyzed(tmp_path / "a", statuses={"dense": "failed"}))
  assert "a dense arm that is done, which the controls that are done" in without_dense
  assert "a dense arm that is done: ablations are of the lead" in without_dense
  without_controls = controls_section(analyzed(tmp_path / "b", controls={}, ablation_cost=None))
  assert "a dense control that is done" in without_controls
  assert "ablations of the best MoE arm" in without_controls
  without_moe = controls_section(analyzed(tmp_path / "c", statuses={"moe_20": "failed"}))
  assert "an MoE arm that is done, which the controls that are done" in without_moe


@pytest.mark.parametrize(
  ("dense_bpc", "cost", "share"), [(1.95, 0.3, 0.0), (1.95, 0.01, 0.75), (1.85, 0.3, None)]
)
def test_no_more_than_a_lead_is_lost_and_of_none_nothing_remains(tmp_path, dense_bpc, cost, share):
  """(dense, what it costs to take the routed experts away, share of the lead that remains)."""
  report = analyzed(tmp_path, dense_bpc=dense_bpc, ablation_cost=cost)
  (row,) = expert_share.ablations(report).rows
  lead = report["controls"]["lead"]
  assert row["minus_dense"] == -lead and row["cost"] == pytest.approx(cost)
  assert row["minus_dense_without"] == pytest.approx(cost - lead)
  assert row["share_left"] == (None if share is None else pytest.approx(share, abs=0.1))


def test_a_point_of_one_seed_among_others_is_explained(report):
  groups = [*report["groups"], {"kind": "moe", "role": "arm", "num_seeds": 1}]
  words = [first_figure._caption(report | {"groups": of}) for of in (report["groups"], groups)]
  assert ["hollow point has one seed" in line for line in words] == [False, True]


def test_tries_of_learning_rates_are_in_no_table_of_scores(report):
  row = report["arms"][0]
  tried = report | {"arms": [row, row | {"name": "dense_lr1", "role": "tuning"}]}
  for made in (tables.arms(tried), tables.domains(tried)):
    assert [row["name"] for row in made.rows] == [row["name"]]


def test_a_side_that_gains_nothing_is_at_its_own_best():
  sides = [
    {"kind": "moe", "best": "moe_20", "gain": 0.0, "gain_interval": None},
    {"kind": "dense", "best": "dense_lr2", "gain": 0.0245, "gain_interval": [0.01, 0.04]},
  ]
  assert sweeps.tuning_words({"tuning": {"sides": sides}}) == [
    "moe: its own setting is the best of those tried.",
    "dense: the best setting is dense_lr2, 0.0245 BPC better than its own (95 % interval +0.0100 to"
    " +0.0400).",
  ]
