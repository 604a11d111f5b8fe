"""Studies whose files name other runs than their plan, or another plan than their config: arms that
were taken out or put in changed the verdict, and the certificate passed."""

import json
import shutil

import pytest

from moe_parity import files
from moe_parity.study.analysis import compare
from moe_parity.study.certificate import certify_study
from moe_parity.study.workers.runner import run_study
from tests.helpers import fake_training


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("studies") / "study"
  made = fake_training.config(rates=(0.2, 0.4)).copy_and_resolve_references()
  made.unlock()
  for arm in made.arms.values():
    arm.seeds = (0, 1)
  made.arms.dense_small = made.arms.dense.copy_and_resolve_references()
  made.arms.dense_small.params_multiple = 0.5
  study = fake_training.open_study(folder, made.lock())
  run_study(study, log=lambda line: None, actions=fake_training.actions())
  study.write()
  return folder


@pytest.fixture
def copy(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "copy")


def change(path, edit):
  value = json.loads(path.read_text())
  edit(value)
  files.write_json(path, value, seal=True)


def failures(folder):
  return {row["name"]: row["measured"] for row in certify_study(folder)["checks"]
          if not row["passed"]}  # fmt: skip


def drop(folder, name, seed=None):
  """Takes an arm, or one seed of it, out of plan.json and study.json."""
  for file in ("plan.json", "study.json"):
    change(folder / file, lambda value: value.update(arms=[
      arm for arm in value["arms"] if arm["name"] != name or seed not in (None, arm["seed"])
    ]))  # fmt: skip


def edit_arm(folder, name, **fields):
  """Changes fields of an arm in the study's plan and in its runs' own."""
  change(folder / "plan.json", lambda plan: [
    arm.update(fields) for arm in plan["arms"] if arm["name"] == name
  ])  # fmt: skip
  for path in (folder / "runs").glob(f"{name}-s*/plan.json"):
    change(path, lambda plan: plan.update(fields))


def test_a_study_that_is_whole_passes(finished):
  assert failures(finished) == {}


@pytest.mark.parametrize("folder", ["runs/moe_20-s0", "runs/dense-s1"])
def test_a_run_that_only_study_json_has_is_named(copy, folder):
  """It was compared and in no check: a copy of a run as a further seed, or another arm's run."""
  entry = {"name": "moe_20", "seed": 7, "folder": folder, "status": "done", "error": ""}
  change(copy / "study.json", lambda value: value["arms"].append(entry))
  found = failures(copy)
  assert found["runs of study.json"] == "moe_20 (seed 7): not in plan.json"
  assert compare.analyze(copy)["verdict"]["winner"] is None


@pytest.mark.parametrize("name, seed", [("moe_20", None), ("dense_small", None), ("moe_40", 1)])
def test_an_arm_or_a_seed_that_was_taken_out_is_named(copy, name, seed):
  drop(copy, name, seed)
  found = failures(copy)
  label = f"{name} (seed {seed or 0})"
  assert label in found["arms of the config"]
  assert label in found["arms that the runs' configs name"]
  assert f"{name}-s{seed or 0}" in found["finished runs in runs/"]


def test_an_arm_taken_out_of_every_list_is_named_by_other_runs(copy):
  drop(copy, "dense_small")
  change(copy / "study.json", lambda value: value["config"]["arms"].pop("dense_small"))
  for path in (copy / "runs").glob("dense_small-*"):
    shutil.rmtree(path)
  assert list(failures(copy)) == ["arms that the runs' configs name"]


def test_a_finished_run_that_study_json_lacks_is_named(copy):
  change(copy / "study.json", lambda value: value["arms"].pop())
  found = failures(copy)
  assert "study again" in found["finished runs of plan.json"]


def test_an_arm_listed_twice_is_named(copy):
  change(copy / "plan.json", lambda plan: plan["arms"].append(plan["arms"][0]))
  assert failures(copy)["runs of plan.json"] == "dense (seed 0): listed twice"


@pytest.mark.parametrize(
  "field, value, failed",
  [
    ("params_tolerance", 0.9, "budget"),
    ("reuse", "unique", "budget"),
    ("equal_data", False, "budget: equal_data"),
    ("train_flops", 10**9, "budget: train_flops"),
  ],
)
def test_a_budget_that_is_not_the_configs_is_named(copy, field, value, failed):
  change(copy / "plan.json", lambda plan: plan["budget"].update({field: value}))
  assert failed in failures(copy)


def test_another_budget_or_setting_in_a_config_is_named(copy):
  change(copy / "runs/dense-s0/config.json", lambda c: c["budget"].update(params_tolerance=0.5))
  change(copy / "study.json", lambda value: value["config"]["optimizer"].update(weight_decay=0.0))
  found = failures(copy)
  assert found["budget in the configs of the runs"].startswith("dense-s0 (params_tolerance: 0.003")
  assert found["settings in study.json"] == "optimizer.weight_decay: 0.1 -> 0.0"


@pytest.mark.parametrize(
  "name, fields, words",
  [
    ("moe_40", {"role": "check"}, "role: arm -> check"),
    ("moe_40", {"activation_rate": 0.2}, "activation_rate: 0.4 -> 0.2"),
    ("dense", {"role": "reference", "compute_multiple": 2.0}, "compute_multiple: 1 -> 2"),
    ("dense_small", {"role": "arm"}, "role: control -> arm"),
    ("moe_20", {"epochs": 1.0}, "epochs: "),
  ],
)
def test_a_plan_that_its_config_does_not_make_is_named(copy, name, fields, words):
  """An arm was hidden by its role, and the curve drawn over another rate."""
  edit_arm(copy, name, **fields)
  assert words in failures(copy)["arms of plan.json"]


def test_runs_scored_on_other_documents_fail_the_study(copy):
  """They were left out of the comparison with a warning: so a control was lost, and a seed."""

  def shorter(result):
    result["validation"]["documents"].pop()

  change(copy / "runs/dense_small-s0/result.json", shorter)
  change(copy / "runs/moe_20-s1/result.json", lambda r: r["validation"]["documents"].reverse())
  words = failures(copy)["validation documents of the runs"]
  assert words == "other ones in dense_small (seed 0), moe_20 (seed 1)"


def test_a_seed_with_the_scores_of_another_fails_the_study(copy):
  result = json.loads((copy / "runs/moe_40-s0/result.json").read_text())
  files.write_json(copy / "runs/moe_40-s1/result.json", result | {"seed": 1}, seal=True)
  assert failures(copy)["scores of the runs"] == "moe_40 (seed 1) has those of moe_40 (seed 0)"


def test_a_certificate_that_contradicts_itself_fails(copy):
  row = {"name": "num_params", "planned": 1, "measured": 1, "difference_pct": 0.0, "passed": True}
  change(copy / "runs/moe_40-s0/certificate.json", lambda c: c["checks"].append(row))
  assert "num_params is 1 in its checks" in failures(copy)["moe_40: its own certificate"]
  row["passed"] = False
  row["name"] = "num_steps"
  change(copy / "runs/moe_40-s0/certificate.json", lambda c: c.update(checks=[row], passed=True))
  assert failures(copy)["moe_40: its own certificate"] == "num_steps"
