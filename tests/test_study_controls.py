"""Is the lead one of the experts? Studies whose truth is known, with controls and ablations."""

import json
import math
import re

import pytest

import moe_parity as mp
from moe_parity import files
from moe_parity.commands.output import print_verdict
from moe_parity.report.page import write_report
from moe_parity.study.analysis import compare
from tests.helpers import fake_study
from tests.helpers.fake_study import Fake

SEEDS = dict(seeds=(0, 1, 2), seed_sd=0.003, document_sd=0.004)


def analyze(folder, **fields):
  return compare.analyze(fake_study.write_study(folder, Fake(**(SEEDS | fields))))


def sentences_on_lead(report):
  return [s for s in report["verdict"]["sentences"] if "lead" in s or "control" in s]


def test_a_lead_beyond_every_control_is_said_to_be_so(tmp_path):
  controls = {"dense_active": (300_000, 2.05), "dense_small_0p5": (600_000, 1.98)}
  report = analyze(tmp_path, controls=controls, ablation_cost=0.2)
  found = report["controls"]
  assert found["best"] == "moe_26" and found["lead"] == pytest.approx(0.05, abs=0.01)
  small = found["controls"][1]
  assert small["to_dense"]["difference"] == pytest.approx(0.03, abs=0.01)
  assert small["moe_to_control"]["verdict"] == "MoE better"
  assert found["ablations"]["routed_removed"]["cost"] == pytest.approx(0.2)
  assert found["ablations"]["routed_removed"]["lead_left"] == pytest.approx(-0.15, abs=0.01)
  text = " ".join(sentences_on_lead(report))
  assert "moe_26 also beats dense_small_0p5" in text and "nothing of it remains" in text
  assert "0.0000 is explained by dense_small_0p5" in text
  assert "but" not in report["verdict"]["headline"]


def test_a_control_that_beats_the_best_moe_is_in_the_headline(tmp_path):
  report = analyze(tmp_path, controls={"dense_active": (150_000, 1.85)}, ablation_cost=0.01)
  assert report["controls"]["controls"][0]["to_dense"]["verdict"] == "control better"
  headline = report["verdict"]["headline"]
  assert "but dense_active, a dense model of 150,000 parameters" in headline
  assert "scores better still" in headline
  text = " ".join(sentences_on_lead(report))
  assert "The lead is not one of the experts: dense_active beats moe_26" in text
  assert "of it remains when its routed experts are removed" in text


def test_an_indistinguishable_control_leaves_the_lead_open(tmp_path):
  report = analyze(tmp_path, controls={"dense_active": (150_000, 1.9005)})
  assert "cannot be told from the best of them" in report["verdict"]["headline"]
  assert "not shown to be one of the experts" in " ".join(sentences_on_lead(report))


def test_a_lead_that_a_control_explains_names_no_winner(tmp_path):
  beaten = analyze(tmp_path / "a", controls={"dense_small": (600_000, 1.98)})["verdict"]
  assert (beaten["winner"], beaten["explained_by"]) == ("moe_26", None)
  for name, bpc in (("better", 1.85), ("equal", 1.9005)):
    found = analyze(tmp_path / name, controls={"dense_active": (150_000, bpc)})["verdict"]
    assert found["conclusive"] and found["winner"] is None
    assert (found["beats_dense"], found["explained_by"]) == ("moe_26", "dense_active")
  dense = analyze(tmp_path / "d", dense_bpc=1.6, controls={"dense_active": (150_000, 1.5)})
  found = dense["verdict"]
  assert (found["winner"], found["beats_dense"], found["explained_by"]) == ("dense", None, None)


def test_the_lead_explained_is_the_one_the_headline_names(tmp_path):
  """A noisier arm of lower mean was explained instead, and the arm that beats dense was called no
  better than a control that it beats."""
  folder = fake_study.write_study(
    tmp_path, Fake(**SEEDS, ablation_cost=0.2, controls={"dense_active": (150_000, 1.92)})
  )
  for seed, moved in enumerate((-0.5, -0.1, 0.3)):
    path = folder / "runs" / f"moe_17-s{seed}" / "result.json"
    result = json.loads(path.read_text())
    validation = result["validation"]
    validation["bpc"] += moved
    for row in validation["documents"]:
      row["nats"] += moved * math.log(2) * row["num_chars"]
    files.write_json(path, result)
  report = compare.analyze(folder)
  by_name = {row["name"]: row for row in report["comparisons"]}
  assert by_name["moe_17"]["difference"] < by_name["moe_26"]["difference"]
  assert by_name["moe_17"]["verdict"] == "not distinguishable"
  assert report["verdict"]["beats_dense"] == report["controls"]["best"] == "moe_26"


def test_page_api_and_command_agree_on_the_winner(tmp_path, capsys):
  fake = Fake(**SEEDS, controls={"dense_active": (150_000, 1.85)})
  folder = fake_study.write_study(tmp_path, fake)
  page_path = write_report(folder)
  print_verdict(files.read_json(folder / "analysis.json"), page_path)
  printed = capsys.readouterr().out
  study = mp.open_study(folder)
  assert study.winner is None and study.analysis["verdict"]["explained_by"] == "dense_active"
  for text in (" ".join(printed.split()), page_path.read_text(), study.verdict):
    assert "dense_active, a dense model of 150,000 parameters" in text


@pytest.mark.parametrize(
  "controls, words",
  [
    ({"dense_small": (600_000, 2.1)}, "moe_26 is not shown to be better than dense and beats dense_"
     "small, the best of them: of the difference of 0.0"),
    ({"dense_active": (150_000, 1.7)}, "The difference is not one of the experts: dense_active"),
    ({"dense_active": (150_000, 1.9)}, "The difference is not shown to be one of the experts: of"),
    ({}, "so whether the difference is one of the experts or of a smaller model is not shown"),
  ],
)  # fmt: skip
def test_an_arm_that_is_not_better_than_dense_has_no_lead(tmp_path, controls, words):
  """The sentences spoke of its lead, and said that it also beats a control."""
  report = analyze(
    tmp_path, rates=(0.26,), dense_bpc=1.91, seed_sd=0.02, controls=controls, ablation_cost=0.2,
    random=10,
  )  # fmt: skip
  (row,) = report["comparisons"]
  assert row["verdict"] == "not distinguishable" and row["difference"] < 0
  found = report["verdict"]
  text = " ".join(found["sentences"])
  assert words in text and "BPC below dense and not shown to be better; of that" in text
  assert "also beats" not in text and not sentences_with("lead", found["sentences"])
  assert not [line for line in found["against"] if "experts" in line or "control" in line]


def sentences_with(word, sentences):
  return [line for line in sentences if re.search(rf"\b{word}\b", line)]


def test_without_controls_the_verdict_says_that_there_are_none(tmp_path):
  report = analyze(tmp_path)
  assert report["controls"]["controls"] == [] and report["controls"]["ablations"] == {}
  assert "has no dense control of another N" in " ".join(sentences_on_lead(report))


def test_controls_are_neither_arms_nor_baseline(tmp_path):
  report = analyze(tmp_path, controls={"dense_active": (150_000, 1.5)})
  assert report["baseline"] == "dense"
  assert "dense_active" not in {row["name"] for row in report["comparisons"]}


def test_more_passes_over_the_text_are_mentioned(tmp_path):
  """Equal compute lets a sparse arm read more: named from 1.5 times dense's passes."""

  def said(report):
    return [s for s in report["verdict"]["sentences"] if "passes over the text" in s]

  (sentence,) = said(analyze(tmp_path / "sparse"))
  assert "moe_26 passes over the text 4.45 times, dense 1.16 times" in sentence
  assert said(analyze(tmp_path / "nearly dense", rates=(0.7, 0.8, 0.9))) == []


def test_no_lead_needs_no_explanation(tmp_path):
  report = analyze(tmp_path, dense_bpc=1.6, controls={"dense_active": (150_000, 1.9)})
  assert not any("lead" in s for s in sentences_on_lead(report))


def test_controls_at_another_learning_rate_are_called_untuned(tmp_path):
  folder = fake_study.write_study(
    tmp_path, Fake(**SEEDS, controls={"dense_active": (300_000, 2.05)})
  )
  assert "not tuned for them" not in str(compare.analyze(folder)["verdict"])
  for path in folder.glob("runs/dense_active-*/plan.json"):
    plan = json.loads(path.read_text())
    changed = plan | {"peak_learning_rate": 4 * plan["peak_learning_rate"]}
    files.write_json(path, changed, seal=True)
  (line,) = [s for s in compare.analyze(folder)["verdict"]["sentences"] if "not tuned" in s]
  assert "dense_active 0.012; moe_26 0.003" in line


def test_controls_stand_against_the_headline_only_where_they_do(tmp_path):
  beaten = analyze(tmp_path / "beaten", controls={"dense_small": (600_000, 1.98)})["verdict"]
  ahead = analyze(tmp_path / "ahead", controls={"dense_active": (150_000, 1.85)})["verdict"]
  assert not [line for line in beaten["against"] if "control" in line]
  assert [line for line in ahead["against"] if "The lead is not one of the experts" in line]
  for found in (beaten, ahead):
    assert set(found["against"]) < set(found["sentences"])
