"""`import moe_parity as mp`: what it says is what the commands say, and it loads no JAX."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import moe_parity as mp
from moe_parity import cli
from moe_parity.api import tables
from moe_parity.errors import UserError
from moe_parity.report.page import write_report
from tests.helpers import bucket, fake_study

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = f"{ROOT}/configs/demo.py:tiny"
MIXTURE = ROOT / "results" / "mixture_small"


def rows_of(table):
  return table if isinstance(table, list) else table.to_dict("records")


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
  return fake_study.write_study(tmp_path_factory.mktemp("api") / "study", fake_study.Fake())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("api_run") / "run"
  few = ["--config.budget.dense_tokens=10000", "--config.train.save_every=4"]
  assert cli.main(["train", f"--config={DEMO}", "--arm=moe_20", f"--workdir={folder}", *few]) == 0
  return folder


def test_planning_reading_and_predicting_load_no_jax():
  code = f"""
import sys
import moe_parity as mp
loaded = lambda: [n for n in ("jax", "flax", "optax", "orbax", "grain") if n in sys.modules]
assert not [n for n in sys.modules if n.startswith("moe_parity.")], "the import is free"
mp.plan({DEMO!r})._repr_html_()
study = mp.open_study({str(MIXTURE)!r})
study._repr_html_(), study.runs, study.figures, study.recount(), study.certificate()
mp.predict(num_params=2e9, activation_rate=0.2, tokens=4e10)._repr_html_()
assert not loaded(), loaded()
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_name_that_is_offered_is_there():
  assert set(mp.__all__) <= set(dir(mp))
  for name in mp.__all__:
    assert getattr(mp, name).__doc__, name
  with pytest.raises(AttributeError, match="no attribute 'plans'"):
    mp.plans  # noqa: B018


def test_a_plan_is_what_the_command_prints(capsys):
  assert cli.main(["plan", f"--config={DEMO}", "--config.budget.dense_tokens=30000", "--json"]) == 0
  said = json.loads(capsys.readouterr().out)
  plan = mp.plan(DEMO, budget={"dense_tokens": 30_000})
  assert json.loads(json.dumps(plan.to_dict())) == said
  assert [row["arm"] for row in rows_of(plan.table())] == ["dense", "moe_20", "moe_40"]
  assert rows_of(plan.memory())[1]["total"] == said["arms"][1]["device_memory_bytes"]["total"]
  assert rows_of(plan.costs())[1]["executed FLOPs"] == said["arms"][1]["costs"]["executed_flops"]


def test_a_field_is_set_by_dotted_name_on_a_copy():
  first = mp.plan(DEMO)
  second = mp.plan(first.config, **{"arms.moe_20.experts_per_token": 3, "budget.reuse": "loose"})
  shapes = {arm.name: arm.architecture for arm in second.arms}
  assert shapes["moe_20"].experts_per_token == 3
  assert first.config.budget.reuse == "strict" and second.config.budget.reuse == "loose"


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"budget.dense_token": 1}, "did you mean 'dense_tokens'"),
    ({"budgets": {"seq_len": 1}}, "did you mean 'budget'"),
    ({"budget.seq_len.more": 1}, "budget.seq_len has no 'more'"),
    ({"budget.seq_len": "long"}, "budget.seq_len='long'"),
  ],
)
def test_a_field_that_is_not_there_is_named(fields, match):
  with pytest.raises(UserError, match=match):
    mp.plan(DEMO, **fields)


def test_a_prediction_is_what_the_command_prints(capsys):
  command = ["predict", "--num-params=2e9", "--activation-rate=0.2,1", "--tokens=4e10", "--json"]
  assert cli.main(command) == 0
  said = json.loads(capsys.readouterr().out)
  asked = dict(num_params=2e9, activation_rate=[0.2, 1], tokens=4e10)
  assert json.loads(json.dumps(mp.predict(**asked).answer)) == said
  with pytest.raises(UserError, match="two ways"):
    mp.predict(DEMO, **asked)
  with pytest.raises(UserError, match="activation_rate and tokens"):
    mp.predict(num_params=2e9)


def test_a_field_takes_numpy_s_numbers():
  fields = {"budget.dense_tokens": np.int64(40_000), "budget.params_tolerance": np.float32(0.25)}
  planned = mp.plan(DEMO, **fields)
  assert planned.to_dict() == mp.plan(DEMO, **{
    "budget.dense_tokens": 40_000, "budget.params_tolerance": 0.25,
  }).to_dict()  # fmt: skip


def test_numbers_of_numpy_are_predicted_as_python_s():
  plain = mp.predict(num_params=2_000_000_000, activation_rate=0.25, tokens=4e10, epochs=2)
  rates = np.array([0.25], np.float32)
  found = mp.predict(
    num_params=np.int64(2_000_000_000), activation_rate=rates, tokens=4e10, epochs=np.int32(2)
  )
  assert found.answer["arms"] == plain.answer["arms"]


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    ({"num_params": "2e9"}, "num_params='2e9' is no number"),
    ({"tokens": ["4e10"]}, "tokens=.* is no number"),
    ({"activation_rate": [None]}, "activation_rate=.None. is no number"),
    ({"epochs": []}, "epochs or none"),
  ],
)
def test_what_is_no_number_is_predicted_for_no_arm(changed, says):
  with pytest.raises(UserError, match=says):
    mp.predict(**({"num_params": 2e9, "activation_rate": 0.2, "tokens": 4e10} | changed))


def test_a_prediction_of_a_config_compares_with_its_dense_arm():
  rows = {row["arm"]: row for row in rows_of(mp.predict(DEMO).table())}
  assert set(rows) == {"dense", "moe_20", "moe_40"}
  moe = rows["moe_20"]
  assert moe["bpc"] - rows["dense"]["bpc"] == pytest.approx(moe["minus_dense"])
  assert moe["minus_dense_low"] < moe["minus_dense"] < moe["minus_dense_high"]


def test_a_study_s_arms_are_predicted_in_every_comparison(capsys):
  """The arms of its method, which the config itself does not list."""
  config = f"{ROOT}/configs/data_reuse_small.py"
  assert cli.main(["predict", f"--config={config}", "--json"]) == 0
  said = json.loads(capsys.readouterr().out)
  assert json.loads(json.dumps(mp.predict(config).answer)) == said
  epochs = {arm["name"]: arm["epochs"] for arm in said["arms"]}
  assert {"dense", "moe_20", "unique/moe_20", "epochs_8/moe_20"} <= epochs.keys()
  assert epochs["unique/moe_20"] == 1 < epochs["moe_20"]


def test_a_study_reads_as_its_report_does(study_folder):
  study = mp.open_study(study_folder)
  assert not (study_folder / "report").exists()
  write_report(study_folder)
  written = json.loads((study_folder / "analysis.json").read_text())
  assert study.analysis["comparisons"] == written["comparisons"]
  assert study.verdict == written["verdict"]["headline"] and study.passed is True
  assert {f"{name}.png" for name in study.figures} == {
    path.name for path in (study_folder / "report").glob("*.png")
  }
  arms = {arm["name"]: arm["bpc"] for arm in written["arms"]}
  assert {run.name: run.bpc for run in study.runs} == arms
  with pytest.raises(UserError, match="no run moe_99 of seed 0; it has dense"):
    study.run("moe_99")


def test_committed_results_are_a_study_without_runs():
  study = mp.open_study(MIXTURE)
  assert study.name == "mixture_small" and study.passed is True
  assert study.verdict == json.loads((MIXTURE / "analysis.json").read_text())["verdict"]["headline"]
  rows = rows_of(study.recount())
  assert all(row["agrees"] for row in rows) and len(rows) == len(study.plan["arms"])
  assert "activation_rate" in study.figures
  assert study.figures["activation_rate"]._repr_svg_().lstrip().startswith("<?xml")
  dense = next(row for row in rows_of(study.costs()) if row["arm"] == "dense")
  assert dense["C x dense"] == 1 and dense["seconds a run"] > 0


def test_a_wrong_number_in_a_plan_does_not_survive_the_recount(tmp_path):
  folder = shutil.copytree(MIXTURE, tmp_path / "results")
  plan = json.loads((folder / "plan.json").read_text())
  plan["arms"][0]["num_params"] += 1
  plan["arms"][1]["num_tokens"] *= 2
  (folder / "plan.json").write_text(json.dumps(plan))
  found = [row["agrees"] for row in rows_of(mp.open_study(folder).recount())]
  assert found[:3] == [False, False, True]


def test_a_study_on_a_bucket_reads_like_its_folder(study_folder, monkeypatch):
  files = bucket.install(monkeypatch)
  for path in study_folder.rglob("*"):
    if path.is_file():
      files.pipe(f"gs://b/s/{path.relative_to(study_folder).as_posix()}", path.read_bytes())
  files.pipe("gs://b/s/runs/dense-s0/checkpoints/9/weights", b"large")
  there, here = mp.open_study("gs://b/s"), mp.open_study(study_folder)
  assert there.analysis["comparisons"] == here.analysis["comparisons"]
  run = there.run("dense")
  assert run.lines() == here.run("dense").lines() != []
  assert not (run.folder / "checkpoints").exists()
  there._place.fetch_checkpoints(run.folder)
  assert (run.folder / "checkpoints" / "9" / "weights").read_bytes() == b"large"
  alone = mp.open_run("gs://b/s/runs/dense-s0")
  assert alone.bpc == run.bpc
  with pytest.raises(UserError, match="holds nothing"):
    mp.open_study("gs://b/other")


def test_a_run_is_no_study_and_a_study_no_run(study_folder):
  with pytest.raises(UserError, match="a run is opened by"):
    mp.open_study(study_folder / "runs" / "dense-s0")
  with pytest.raises(UserError, match="open_study"):
    mp.open_run(study_folder)
  with pytest.raises(UserError, match="is no folder"):
    mp.open_run(study_folder / "nowhere")


def test_without_pandas_a_table_is_a_list_that_shows_itself(monkeypatch):
  monkeypatch.setitem(sys.modules, "pandas", None)
  rows = tables.as_table([{"arm": "<moe>", "N": 1234567, "off": None}])
  assert rows == [{"arm": "<moe>", "N": 1234567, "off": None}]
  assert "&lt;moe&gt;" in rows._repr_html_() and "1,234,567" in rows._repr_html_()


def test_a_trained_run_routes_and_continues_a_text(trained):
  run = mp.open_run(trained)
  assert run.status == "done" and run.is_moe and rows_of(run.by_domain())
  text = "Call me Ishmael.\n" * 5  # longer than the 64 positions of training
  routed = run.routing(text)
  assert "".join(routed.tokens) == text
  shape = run.plan["architecture"]
  assert routed.experts.shape == (len(text), len(routed.layers), shape["experts_per_token"])
  assert routed.experts.max() < shape["num_experts"] and (routed.gates > 0).all()
  assert routed.loads().sum(1) == pytest.approx(1)
  assert routed.from_dict(json.loads(json.dumps(routed.to_dict()))).html() == routed.html()
  first, second = run.generate(["The ", "A"], max_tokens=3)
  assert first == run.generate("The ", max_tokens=3) and second.prompt == "A"
  assert run.model().embedding.shape[0] == run.tokenizer().vocab_size
  with pytest.raises(UserError, match="text is empty"):
    run.routing("")
