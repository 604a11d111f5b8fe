"""analysis.json from study folders with a known answer (fake_study); its oracle is plain sums."""

import json
import math
import shutil

import pytest

from moe_parity.errors import UserError
from moe_parity.report.page import write_report
from moe_parity.study import reading
from moe_parity.study.analysis import compare
from tests.helpers import fake_study


def study(tmp_path, **kwargs):
  return fake_study.write_study(tmp_path / "study", fake_study.Fake(**kwargs))


def row(report, name):
  return next(r for r in report["comparisons"] if r["name"] == name)


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def words(report):
  return " ".join([report["verdict"]["headline"], *report["verdict"]["sentences"]])


def test_a_difference_is_moes_ratio_of_sums_minus_that_of_dense(tmp_path):
  folder = study(tmp_path, telemetry=False)
  report = compare.analyze(folder)
  bits = {}
  for name in ("dense", "moe_26"):
    result = json.loads((folder / f"runs/{name}-s0/result.json").read_text())
    docs = result["validation"]["documents"]
    bits[name] = sum(d["nats"] for d in docs) / math.log(2) / sum(d["num_chars"] for d in docs)
  expected = bits["moe_26"] - bits["dense"]
  assert row(report, "moe_26")["difference"] == pytest.approx(expected, abs=1e-12)
  assert report["baseline"] == "dense"


def test_verdicts_go_by_the_simultaneous_interval(tmp_path):
  fake = {"telemetry": False, "dense_bpc": 1.915, "floor": 1.89, "seeds": (0, 1, 2)}
  report = compare.analyze(study(tmp_path, seed_sd=0.002, document_sd=0.01, **fake))
  for r in report["comparisons"]:
    low, high = r["simultaneous"]
    verdict = "MoE better" if high < 0 else "dense better" if low > 0 else "not distinguishable"
    assert r["verdict"] == verdict
    assert low <= r["interval"][0] <= r["difference"] <= r["interval"][1] <= high
  assert {r["verdict"] for r in report["comparisons"]} == {
    "MoE better", "dense better", "not distinguishable"
  }  # fmt: skip


def test_one_seed_gives_no_row_a_verdict(tmp_path):
  report = compare.analyze(study(tmp_path, telemetry=False, dense_bpc=2.5))
  assert {r["verdict"] for r in report["comparisons"] + report["references"]} == {"one seed"}
  assert report["curve"]["surely_below_dense"] is None
  assert "at 95 % confidence" not in words(report) and " beat " not in words(report)


def test_only_arms_that_were_repeated_get_a_verdict(tmp_path):
  statuses = {("moe_10", 1): "pending", ("moe_55", 1): "failed"}
  fake = {"telemetry": False, "seeds": (0, 1), "seed_sd": 0.002, "dense_bpc": 2.2}
  report = compare.analyze(study(tmp_path, statuses=statuses, **fake))
  verdicts = {r["name"]: r["verdict"] for r in report["comparisons"]}
  assert verdicts["moe_10"] == verdicts["moe_55"] == "one seed"
  assert verdicts["moe_17"] == verdicts["moe_26"] == verdicts["moe_38"] == "MoE better"
  assert "3 of 3 repeated MoE arms beat dense" in words(report)


def test_the_best_arm_is_scored_by_runs_that_did_not_pick_it(tmp_path):
  fake = {"telemetry": False, "seeds": (0, 1, 2), "seed_sd": 0.004}
  report = compare.analyze(study(tmp_path, **fake))
  picked = report["picked"]
  low = min(report["comparisons"], key=lambda r: r["difference"])
  assert picked["name"] == low["name"] and picked["difference"] == low["difference"]
  assert picked["difference"] < picked["corrected"] < 0  # it leads by 0.05, and by luck
  assert f"the best arm stands at {picked['corrected']:+.4f}" in words(report)
  one = compare.analyze(study(tmp_path / "one", telemetry=False))
  assert one["picked"] is None


@pytest.mark.parametrize(
  "dense, rates, words",
  [
    (1.95, (0.26,), "At equal parameters, compute and data, the only MoE arm (moe_26, r_a 26.0 %)"
     " beats dense by 0.0"),
    (1.6, (0.26,), "At equal parameters, compute and data, dense beats the only MoE arm."),
    (1.9, (0.26,), "the only MoE arm cannot be told to be better than dense."),
    (1.95, (0.26, 0.9), "1 of 2 MoE arms beats dense, moe_26 (r_a 26.0 %) by 0.0"),
    (1.95, (0.25, 0.26), "2 of 2 MoE arms beat dense, the best (moe_2"),
  ],
)  # fmt: skip
def test_one_moe_arm_is_spoken_of_as_one(tmp_path, dense, rates, words):
  fake = {"telemetry": False, "seeds": (0, 1, 2), "seed_sd": 0.002, "document_sd": 0.004}
  report = compare.analyze(study(tmp_path, dense_bpc=dense, rates=rates, **fake))
  assert words in report["verdict"]["headline"]
  (reference,) = [s for s in report["verdict"]["sentences"] if "not at parity" in s]
  assert ("the best" in reference) == (len(rates) > 1)


def test_the_luck_of_the_best_arm_speaks_against_no_dense_winner(tmp_path):
  fake = {"telemetry": False, "seeds": (0, 1, 2), "seed_sd": 0.004}
  for dense, is_against in ((1.95, True), (1.6, False)):
    found = compare.analyze(study(tmp_path / str(dense), dense_bpc=dense, **fake))["verdict"]
    (line,) = [line for line in found["sentences"] if "in part the luckiest" in line]
    assert (line in found["against"]) == is_against


def test_what_a_seed_draws_is_said(tmp_path):
  folder = study(tmp_path, telemetry=False, seeds=(0, 1))
  assert "initial weights only" in words(compare.analyze(folder))
  for path in (folder / "runs").glob("*/plan.json"):
    edit(path, lambda plan: plan.update(data_seed=plan["seed"]))
  shown = words(compare.analyze(folder))
  assert "weights, data order and the text that was drawn" in shown
  assert "initial weights only" not in shown


def test_seeds_are_averaged_and_their_noise_is_reported(tmp_path):
  report = compare.analyze(study(tmp_path, telemetry=False, seeds=(0, 1, 2), seed_sd=0.01))
  assert len(report["arms"]) == 21 and len(report["groups"]) == 7
  for group in report["groups"]:
    runs = [r["bpc"] for r in report["arms"] if r["name"] == group["name"]]
    assert group["bpc"] == pytest.approx(sum(runs) / 3)
  mean = {group["name"]: group["bpc"] for group in report["groups"]}
  assert row(report, "moe_26")["difference"] == pytest.approx(mean["moe_26"] - mean["dense"])
  # 21 runs, 7 arms, 2 more seeds of each kind: within a factor 2 of the truth (p < 0.005).
  assert report["noise"]["df"] == 10 and 0.005 < report["noise"]["sd"] < 0.02
  assert "10 degrees of freedom" in words(report)
  moved = f"It moves dense arms against MoE arms by {report['noise']['kind_sd']:.4f} BPC"
  assert moved in words(report) and 0 < report["noise"]["kind_sd"] < 0.03


def test_one_seed_proves_nothing_and_names_no_winner(tmp_path):
  report = compare.analyze(study(tmp_path, telemetry=False))
  assert report["verdict"]["headline"].startswith("One seed proves nothing")
  assert "One seed at this size proves nothing" in words(report)
  assert "not training noise" in words(report) and "0.0006" in words(report)
  assert report["verdict"]["winner"] is None and not report["verdict"]["conclusive"]


def test_with_seeds_certificate_and_all_runs_the_best_arm_wins(tmp_path):
  fake = {"telemetry": False, "seeds": (0, 1, 2), "seed_sd": 0.002}
  report = compare.analyze(study(tmp_path, **fake))
  assert report["verdict"]["winner"] == "moe_26" and report["verdict"]["conclusive"]
  dense = compare.analyze(study(tmp_path / "dense", dense_bpc=1.6, **fake))
  assert dense["verdict"]["winner"] == "dense"
  assert {r["verdict"] for r in dense["comparisons"]} == {"dense better"}


def test_a_failed_certificate_comes_first_and_refuses_a_winner(tmp_path):
  folder = study(tmp_path, telemetry=False, seeds=(0, 1, 2))
  edit(folder / "runs/moe_17-s1/certificate.json", lambda c: c.update(passed=False))
  report = compare.analyze(folder)
  assert report["certificate"]["passed"] is False
  assert "did not pass" in report["verdict"]["headline"]
  assert "moe_17 (seed 1)" in report["verdict"]["sentences"][0]
  assert report["verdict"]["winner"] is None
  assert {r["verdict"] for r in report["comparisons"]} == {"no verdict"}
  sentences = report["verdict"]["sentences"]
  assert any(s.startswith("Against dense, negative is MoE better. No verdict:") for s in sentences)
  assert not any("beat" in s or "arms better" in s for s in sentences)


def test_a_failed_check_without_numbers_is_put_into_words(tmp_path):
  folder = study(tmp_path, telemetry=False)
  stream = {"name": "one token stream", "planned": 1, "measured": 2, "difference_pct": None,
            "passed": False, "how": "sha256"}  # fmt: skip
  edit(folder / "certificate.json", lambda c: c.update(passed=False, checks=[stream]))
  (failure,) = compare.analyze(folder)["certificate"]["failures"]
  assert failure == "the study: one token stream planned 1, measured 2"


def test_a_certificate_without_checks_is_missing_and_not_failed(tmp_path):
  folder = study(tmp_path, telemetry=False)
  edit(folder / "certificate.json", lambda c: c.update(passed=False, checks=[]))
  assert compare.analyze(folder)["certificate"]["passed"] is None


def test_a_missing_certificate_is_said_and_names_no_winner(tmp_path):
  folder = study(tmp_path, telemetry=False, seeds=(0, 1))
  (folder / "runs/dense-s0/certificate.json").unlink()
  report = compare.analyze(folder)
  assert report["certificate"]["passed"] is None
  assert report["certificate"]["missing"] == ["dense (seed 0)"]
  assert report["verdict"]["winner"] is None and "no certificate" in words(report)


def test_runs_that_are_not_done_are_listed_with_their_error(tmp_path):
  statuses = {"moe_55": "failed", "moe_10": "running", "dense_2c": "pending"}
  report = compare.analyze(study(tmp_path, statuses=statuses))
  assert {(r["name"], r["status"]) for r in report["not_done"]} == set(statuses.items())
  assert len(report["arms"]) == 7
  for name in statuses:
    assert name in words(report)
  assert "loss is nan at step 120" in words(report)


def test_a_planned_arm_that_study_json_does_not_list_is_pending(tmp_path):
  folder = study(tmp_path, telemetry=False)
  edit(folder / "study.json", lambda s: s["arms"].pop(3))
  shutil.rmtree(folder / "runs/moe_26-s0")
  assert compare.analyze(folder)["not_done"] == [
    {"name": "moe_26", "seed": 0, "status": "pending", "error": ""}
  ]


def test_result_json_outranks_the_status_in_study_json(tmp_path):
  folder = study(tmp_path, telemetry=False)
  edit(folder / "study.json", lambda s: s["arms"][1].update(status="running"))
  assert compare.analyze(folder)["not_done"] == []
  (folder / "runs/moe_17-s0/result.json").unlink()
  assert compare.analyze(folder)["not_done"][0]["status"] == "missing"


def test_a_run_whose_result_is_damaged_says_which_file_and_field(tmp_path):
  folder = study(tmp_path, telemetry=False)
  edit(folder / "runs/moe_17-s0/result.json", lambda result: result.update(name="x" * 300))
  report = compare.analyze(folder)
  (run,) = report["not_done"]
  assert run["name"] == "moe_17" and "moe_17-s0/result.json is damaged (name is" in run["error"]
  assert run["error"] in words(report)


def test_an_arm_scored_on_other_documents_is_not_compared(tmp_path):
  folder = study(tmp_path, telemetry=False)

  def shorten(result):
    result["validation"]["documents"][3]["num_chars"] += 1

  edit(folder / "runs/moe_38-s0/result.json", shorten)
  report = compare.analyze(folder)
  assert "moe_38" not in [r["name"] for r in report["comparisons"]]
  assert any("moe_38 (seed 0)" in w for w in report["warnings"])


def test_the_reference_at_2c_is_no_baseline_and_not_at_parity(tmp_path):
  fake = {"telemetry": False, "seeds": (0, 1), "seed_sd": 0.002}
  report = compare.analyze(study(tmp_path, reference_bpc=1.5, **fake))
  assert {r["baseline"] for r in report["comparisons"]} == {"dense"}
  assert {r["baseline"] for r in report["references"]} == {"dense_2c"}
  assert "2 times the compute and is not at parity: 0 of 5 MoE arms better" in words(report)


def test_the_best_of_several_dense_arms_is_the_baseline(tmp_path):
  folder = study(tmp_path, telemetry=False, reference_bpc=1.91)
  for path in ("study.json", "plan.json"):
    if path == "plan.json":
      edit(folder / path, lambda p: p["arms"][-1].update(role="arm"))
  edit(folder / "runs/dense_2c-s0/plan.json", lambda p: p.update(role="arm"))
  assert compare.analyze(folder)["baseline"] == "dense_2c"


def test_the_optimum_is_found_and_its_sentence_matches(tmp_path):
  report = compare.analyze(study(tmp_path, telemetry=False, document_sd=0.002))
  minimum = report["curve"]["minimum"]
  low, high = minimum["interval"]
  assert minimum["bracketed"] and low < 0.25 < high
  assert f"r_a* = {100 * minimum['activation_rate']:.1f} %" in words(report)
  edge = compare.analyze(study(tmp_path / "edge", telemetry=False, optimum=0.04))
  assert edge["curve"]["minimum"]["at_edge"] == "lower"
  assert "not bracketed; add arms with smaller r_a" in words(edge)


@pytest.mark.parametrize(
  "fields, held",
  [
    (dict(), "holds the validation documents and the arms' scatter about the curve."),
    (dict(rates=(0.1, 0.2, 0.4)), "holds the validation documents only, for a curve through three"),
    (dict(rates=(0.1, 0.2, 0.4), seeds=(0, 1)), "holds the validation documents and the seeds."),
    (dict(seeds=(0, 1)), "the seeds and, where it is larger than these, the arms' scatter"),
  ],
)
def test_what_the_curves_interval_holds_is_said(tmp_path, fields, held):
  """With repeated seeds it held their noise, and said that it holds documents only."""
  assert held in words(compare.analyze(study(tmp_path, telemetry=False, seed_sd=0.01, **fields)))


def test_two_moe_arms_give_differences_but_no_curve(tmp_path):
  report = compare.analyze(study(tmp_path, telemetry=False, rates=(0.2, 0.4)))
  assert report["curve"] is None and len(report["comparisons"]) == 2
  assert "a curve takes three different rates" in words(report)


def test_without_documents_there_is_no_interval_and_that_is_said(tmp_path):
  folder = study(tmp_path, telemetry=False)
  for path in (folder / "runs").glob("*/result.json"):
    edit(path, lambda r: r["validation"].update(documents=[]))
  report = compare.analyze(folder)
  assert row(report, "moe_26")["interval"] is None
  assert row(report, "moe_26")["verdict"] == "one seed"
  assert any("holds no documents" in w for w in report["warnings"])


def test_a_domain_that_turns_the_order_round_is_named(tmp_path):
  folder = study(tmp_path, telemetry=False)

  def worse_on_math(result):
    for d in result["validation"]["documents"]:
      d["nats"] *= 1.2 if d["domain"] == "math" else 0.98

  edit(folder / "runs/moe_26-s0/result.json", worse_on_math)
  report = compare.analyze(folder)
  assert "the order is reversed in math" in words(report)


def test_the_same_folder_gives_the_same_file_to_the_byte(tmp_path):
  folder = study(tmp_path, telemetry=False)
  first = compare.write_analysis(folder).read_bytes()
  assert compare.write_analysis(folder).read_bytes() == first
  assert json.loads(first)["study"] == "fake <study> & co"
  assert not list(folder.glob("*.tmp"))


def test_a_diverged_or_planless_run_is_named_and_not_compared(tmp_path):
  folder = study(tmp_path, telemetry=False)
  edit(folder / "runs/moe_17-s0/result.json", lambda r: r["validation"].update(bpc=float("nan")))
  edit(folder / "plan.json", lambda p: p["arms"].pop(2 + 1))
  (folder / "runs/moe_26-s0/plan.json").unlink()
  compare.write_analysis(folder)
  report = json.loads((folder / "analysis.json").read_text())
  assert [r["name"] for r in report["comparisons"]] == ["moe_10", "moe_38", "moe_55"]
  damaged = (
    "moe_17-s0/result.json is damaged (validation.bpc is nan, not a finite number); restore it from"
    " a copy, or remove it and run the study again: the run is scored again from its checkpoint"
  )
  assert any(damaged in w for w in report["warnings"])
  assert any("moe_26 (seed 0) is done but has no plan" in w for w in report["warnings"])


def test_nothing_done_yet_is_no_error(tmp_path):
  fake = fake_study.Fake()
  names = ["dense", "dense_2c"] + [f"moe_{100 * r:.0f}" for r in fake.rates]
  report = compare.analyze(study(tmp_path, statuses=dict.fromkeys(names, "pending")))
  assert report["verdict"]["headline"].startswith("No verdict yet")
  assert len(report["not_done"]) == 7 and report["curve"] is None


def test_a_single_run_folder_is_a_study_of_one(tmp_path):
  folder = study(tmp_path, telemetry=False) / "runs/moe_26-s0"
  report = compare.analyze(folder)
  assert [r["name"] for r in report["arms"]] == ["moe_26"]
  assert report["certificate"]["passed"] is True
  assert report["verdict"]["headline"].startswith("No verdict yet")


def test_a_folder_that_is_no_study_is_refused_with_a_way_out(tmp_path):
  with pytest.raises(UserError, match="study.json nor plan.json"):
    compare.analyze(tmp_path)
  with pytest.raises(UserError, match="not a folder"):
    compare.analyze(tmp_path / "nowhere")


def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path):
  folder = study(tmp_path, telemetry=False)
  (folder / "runs/moe_17-s0/result.json").write_text('{"half": ')
  report = compare.analyze(folder)
  assert any("moe_17-s0/result.json is not JSON" in w for w in report["warnings"])
  assert len(report["comparisons"]) == 4


def test_metrics_keep_the_later_line_and_drop_a_torn_one(tmp_path):
  own = '"num_tokens": 9, "cross_entropy": 3.0'
  lines = [
    f'{{"kind": "train", "step": 1, "loss": 5.0, {own}}}',
    f'{{"kind": "train", "step": 2, "loss": 4.0, {own}}}',
    f'{{"kind": "validation", "step": 2, "bpc": 3.0, {own}}}',
    "not json",
    f'{{"kind": "train", "step": 2, "loss": 4.5, {own}}}',
    '{"kind": "train", "st',
  ]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
  train, validation, problem = reading.read_metrics(tmp_path)
  assert [(r["step"], r["loss"]) for r in train] == [(1, 5.0), (2, 4.5)]
  assert [r["bpc"] for r in validation] == [3.0]
  assert problem == "metrics.jsonl has 1 unreadable lines"


def test_text_that_the_tokenizer_loses_stands_on_the_page(tmp_path):
  folder = study(tmp_path, seeds=(0, 1))
  assert not any("does not give back" in line for line in compare.analyze(folder)["warnings"])
  lost = {"num_documents": 2, "num_chars": 1_500, "num_bytes": 1_500, "share": 0.0125}
  for path in folder.glob("runs/*/result.json"):
    edit(path, lambda r: r["validation"].update(text_lost=lost))
  train = {"num_documents": 40, "num_chars": 9_000, "num_bytes": 9_000}
  edit(folder / "study.json", lambda s: s.setdefault("data", {}).update(text_lost={"train": train}))
  found = compare.analyze(folder)["warnings"]
  assert any("1,500 of the held-out characters (1.25 %, in 2 documents)" in line for line in found)
  assert any("9,000 characters in 40 documents" in line for line in found)
  page = write_report(folder).read_text()
  against = page.partition("What speaks against it")[2].partition("</section>")[0]
  assert "1,500 of the held-out characters" in against
