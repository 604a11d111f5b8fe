"""A study from command to certificate, and what a lie in any of its files does to it."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from moe_parity import cli, config, files
from moe_parity.data.ledger import Ledger
from moe_parity.errors import UserError
from moe_parity.planning.arm_costs import RESOURCES, arm_costs
from moe_parity.study import certificate
from moe_parity.study.analysis import compare
from moe_parity.training import run_folder

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = f"--config={ROOT}/configs/demo.py:tiny"
SMALL = ["--config.budget.dense_tokens=5120", "--config.evaluation.max_tokens=2000"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("studies") / "study"
  cache = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("MOE_PARITY_CACHE", str(cache))
    status = cli.main(["study", CONFIG, f"--workdir={folder}", "--only=dense,moe_40", *SMALL])
  assert status == 0
  return folder


def test_a_study_certifies_each_run_and_says_what_is_missing(study):
  whole = json.loads((study / "certificate.json").read_text())
  assert whole["passed"] and whole["missing"] == ["moe_20 (seed 0)"]
  for name in ("dense", "moe_40"):
    one = json.loads((study / f"runs/{name}-s0/certificate.json").read_text())
    assert one["passed"] and len(one["checks"]) > 20
    assert {line["difference_pct"] for line in one["checks"][:7]} == {0.0}
  assert (study / "report/index.html").stat().st_size > 10_000


def test_a_run_says_how_long_its_steps_took_and_on_what(study):
  found = json.loads((study / "analysis.json").read_text())["resources"]
  rows = {row["name"]: row for row in found["rows"]}
  for name in ("dense", "moe_40"):
    result = json.loads((study / f"runs/{name}-s0/result.json").read_text())
    assert 0 < result["step_seconds"] * result["finished_step"] < 3 * result["seconds"]
    assert result["machine"]["platform"] == "cpu" and result["machine"]["cpu"]
    assert rows[name]["seconds"] == result["step_seconds"] * result["finished_step"]
  assert rows["moe_40"]["seconds_ratio"] > 0 and rows["moe_20"]["seconds"] is None


def test_both_arms_were_given_the_same_text_in_the_same_order(study):
  dense, moe = (Ledger.load(study / f"runs/{name}-s0/ledger.npz") for name in ("dense", "moe_40"))
  assert dense.data == moe.data
  np.testing.assert_array_equal(dense.counts > 0, moe.counts > 0)
  assert moe.counts.sum() > 2 * dense.counts.sum()


def test_a_finished_study_is_not_trained_again(study, capsys):
  before = {path: path.stat().st_mtime_ns for path in study.glob("runs/*/result.json")}
  assert len(before) == 2
  cli.main(["study", CONFIG, f"--workdir={study}", "--only=dense,moe_40", *SMALL])
  assert before == {path: path.stat().st_mtime_ns for path in study.glob("runs/*/result.json")}
  assert "report:" in capsys.readouterr().out


def test_a_dry_run_prints_the_queue_and_trains_nothing(study, capsys):
  assert cli.main(["study", CONFIG, f"--workdir={study}", "--dry-run", "--json", *SMALL]) == 0
  queue = {row["arm"]: row["status"] for row in json.loads(capsys.readouterr().out)}
  assert queue == {"dense": "done", "moe_20": "to do", "moe_40": "done"}


def test_a_folder_of_another_study_is_refused_with_what_differs(study, capsys):
  other = [CONFIG, f"--workdir={study}", SMALL[1], "--config.budget.dense_tokens=6400"]
  assert cli.main(["study", *other]) == 2
  error = capsys.readouterr().err
  assert "holds another study" in error and "another --workdir" in error
  assert error.count("\n") == 1


def test_a_run_folder_with_another_config_is_refused(study):
  run = study / "runs/dense-s0"
  plan = run_folder.read_json(run / "plan.json")
  data = run_folder.read_json(run / "data.json")["fingerprint"]
  changed = run_folder.read_json(run / "config.json")
  changed["optimizer"]["b2"] = 0.99
  with pytest.raises(UserError, match=r"another run \(optimizer.b2: 0.95 -> 0.99\)"):
    run_folder.claim(run, changed, plan, data)
  changed["optimizer"]["b2"] = 0.95
  changed["train"]["log_every"] = 3
  run_folder.claim(run, changed, plan, data)  # how often it logs changes no number


@pytest.fixture
def copy(study, tmp_path):
  return pathlib.Path(shutil.copytree(study, tmp_path / "copy"))


def edit(path, **fields):
  files.write_json(path, json.loads(path.read_text()) | fields, seal=True)


@pytest.mark.parametrize(
  "fields, failed",
  [
    ({"num_params": 99_000}, {"num_params"}),
    ({"num_tokens": 5248}, {"num_tokens", "executed_flops"}),
    ({"train_flops": 1}, {"train_flops"}),
    ({"num_unique_tokens": 4096}, {"num_unique_tokens"}),
  ],
)
def test_a_plan_that_did_not_happen_fails_its_run_and_the_study(copy, fields, failed):
  run = copy / "runs/dense-s0"
  edit(run / "plan.json", **fields)
  found = certificate.certify_run(run)
  assert not found["passed"]
  assert {line["name"] for line in found["checks"] if not line["passed"]} == failed
  whole = certificate.certify_study(copy)
  assert not whole["passed"]
  assert any("its own certificate" in line["name"] for line in whole["checks"])


def test_audit_tells_arms_of_one_text_from_one_of_other_text(copy, capsys):
  runs = [str(copy / f"runs/{name}-s0") for name in ("dense", "moe_40")]
  assert cli.main(["data", "audit", *runs]) == 0
  assert "the same windows, in the same order over the" in capsys.readouterr().out
  ledger = Ledger.load(copy / "runs/moe_40-s0/ledger.npz")
  first, second = np.flatnonzero(ledger.counts)[:2]
  ledger.counts[first] += 1
  ledger.counts[second] -= 1
  ledger.save(copy / "runs/moe_40-s0/ledger.npz")
  assert cli.main(["data", "audit", *runs]) == 1
  assert "windows read another number of times than planned" in capsys.readouterr().out


def test_a_ledger_with_a_window_too_many_fails(copy):
  run = copy / "runs/moe_40-s0"
  ledger = Ledger.load(run / "ledger.npz")
  unseen = int(np.flatnonzero(ledger.counts == 0)[0])
  ledger.counts[unseen] = 1
  ledger.save(run / "ledger.npz")
  failed = {line["name"] for line in certificate.certify_run(run)["checks"] if not line["passed"]}
  recounted = {"num_tokens", "train_flops", "executed_flops", "num_unique_tokens"}
  assert {name for name in failed if not name.startswith("ledger: ")} == recounted
  assert "ledger: windows read another number of times than planned" in failed


def test_every_resource_of_a_run_is_recounted_from_its_arrays(study):
  for name in ("dense", "moe_40"):
    run = study / f"runs/{name}-s0"
    plan = json.loads((run / "plan.json").read_text())
    measured = json.loads((run / "certificate.json").read_text())["measured"]
    (cost,) = arm_costs([plan])
    assert plan["convention"] == "executed"
    assert measured["executed_flops"] == cost.executed_flops == plan["train_flops"]
    assert measured["num_params_with_vocabulary"] == cost.num_params_with_vocabulary
    assert measured["num_params_with_router"] == cost.num_params_with_router
    assert measured["weight_bytes"] == cost.weight_bytes


def test_recounted_resources_stand_beside_those_of_dense(study):
  dense, moe = json.loads((study / "certificate.json").read_text())["relative_to_dense"]
  assert {dense[name] for name in RESOURCES} == {1.0}
  plans = [json.loads((study / f"runs/{n}-s0/plan.json").read_text()) for n in ("dense", "moe_40")]
  planned = arm_costs(plans)[1].relative
  assert (moe["name"], moe["seed"]) == ("moe_40", 0)
  assert {name: moe[name] for name in RESOURCES} == pytest.approx(planned)


def test_a_folder_of_an_earlier_version_still_goes_on(copy, capsys):
  def forget(arm):
    del arm["attention_block"]
    return arm

  whole = json.loads((copy / "plan.json").read_text())
  edit(copy / "plan.json", arms=[forget(arm) for arm in whole["arms"]], notes=["old words"])
  for path in copy.glob("runs/*/plan.json"):
    files.write_json(path, forget(json.loads(path.read_text())), seal=True)
    assert certificate.certify_run(path.parent)["passed"]
  assert cli.main(["study", CONFIG, f"--workdir={copy}", "--only=dense,moe_40", *SMALL]) == 0
  run = copy / "runs/dense-s0"
  loaded = config.load(CONFIG.removeprefix("--config="), SMALL)
  data = run_folder.read_json(run / "data.json")["fingerprint"]
  run_folder.claim(run, config.to_json(loaded), whole["arms"][0], data)
  other = whole["arms"][0] | {"num_steps": 7}
  with pytest.raises(UserError, match="plan.num_steps"):
    run_folder.claim(run, config.to_json(loaded), other, data)


def test_arms_that_saw_other_data_fail_the_study(copy):
  path = copy / "runs/moe_40-s0/certificate.json"
  ledger = json.loads(path.read_text())["ledger"] | {"sha256": "of another file"}
  edit(path, ledger=ledger)
  found = certificate.certify_study(copy)
  assert [line["name"] for line in found["checks"] if not line["passed"]] == ["one token stream"]


def test_a_run_scored_on_other_held_out_text_fails_the_study(copy):
  path = copy / "runs/moe_40-s0/data.json"
  data = json.loads(path.read_text())
  assert json.loads((copy / "certificate.json").read_text())["data"] == data["fingerprint"]
  edit(path, fingerprint=data["fingerprint"] | {"validation_tokens": "of another file"})
  (line,) = [line for line in certificate.certify_study(copy)["checks"] if not line["passed"]]
  assert line["name"] == "one token store"
  other = "moe_40 (seed 0) has other validation_tokens than dense (seed 0)"
  assert line["how"] == f"data.json of each run; {other}"


def test_versions_that_differ_are_said_and_fail_nothing(copy):
  path = copy / "runs/moe_40-s0/data.json"
  (versions,) = json.loads(path.read_text())["versions"]
  edit(path, versions=[versions, versions | {"moe_parity": "0.0.1"}])
  found = certificate.certify_study(copy)
  assert found["passed"] and found["versions"]["jax"] == {versions["jax"]: 2}
  assert found["versions"]["moe_parity"] == {versions["moe_parity"]: 2, "0.0.1": 1}
  (warning,) = compare.mixed_versions(found)
  assert f"moe_parity (runs with {versions['moe_parity']}: 2, 0.0.1: 1)" in warning
  assert warning in compare.analyze(copy)["warnings"]


def test_a_failed_certificate_names_no_winner(copy, capsys):
  edit(copy / "runs/dense-s0/plan.json", num_params=99_000)
  certificate.certify_run(copy / "runs/dense-s0")
  certificate.certify_study(copy)
  cli.main(["report", str(copy)])
  assert "No winner" in capsys.readouterr().out


def test_a_trained_run_is_scored_again_to_the_same_bits(study, capsys, monkeypatch):
  run = study / "runs/moe_40-s0"
  expected = json.loads((run / "result.json").read_text())["validation"]
  assert cli.main(["evaluate", str(run), "--max-tokens=2000", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["bpc"] == pytest.approx(expected["bpc"], rel=1e-6)
  assert cli.main(["evaluate", str(run), "--mode=strided", "--stride=16", "--max-tokens=500"]) == 0


def test_with_no_readable_checkpoint_training_refuses(copy):
  run = copy / "runs/dense-s0"
  (run / "result.json").unlink()
  steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
  for part in (run / "checkpoints" / str(steps[-1]) / "model").rglob("*"):
    if part.is_file() and part.parent.name == "d":
      part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
  assert len(steps) == 1
  with pytest.raises(UserError, match="none of the checkpoints.*can be read"):
    _train(copy, "dense")
  assert (run / "checkpoints" / str(steps[-1])).exists()


def _train(study, name):
  from moe_parity.data.prepare import prepare
  from moe_parity.planning.plan import make_plan
  from moe_parity.training.loop import train_arm

  loaded = config.load(f"{ROOT}/configs/demo.py:tiny", SMALL)
  plan = {arm.name: arm for arm in make_plan(loaded, vocab_size=272).arms}[name]
  return train_arm(loaded, plan, prepare(), study / f"runs/{name}-s0")
