"""Run and study folders of strangers: nothing is fetched, made, written outside, or unpickled."""

import ast
import json
import pathlib
import shutil

import numpy as np
import pytest

from moe_parity import config as configs
from moe_parity import files
from moe_parity.data import prepare, storage
from moe_parity.defaults import base
from moe_parity.errors import UserError
from moe_parity.report.page import write_report
from moe_parity.study import certificate, evidence
from moe_parity.study.reading import read_study, run_place
from moe_parity.training import checkpoint_hashes
from moe_parity.training.load_run import open_run_data
from tests.helpers import fake_study, fake_training

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "moe_parity"
NAMES = ("/etc", "../../x", "runs/../../../x", "out/x", "a\\b", "a\0b")


@pytest.fixture
def study(tmp_path):
  folder = tmp_path / "stranger" / "study"
  fake_study.write_study(folder, fake_study.Fake(rates=(0.2,), telemetry=False))
  (folder / "out").symlink_to(tmp_path)
  return folder


def tree(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_folder_outside_of_its_study_is_refused(study, name, tmp_path):
  info = json.loads((study / "study.json").read_text())
  info["arms"][0]["folder"] = name
  (study / "study.json").write_text(json.dumps(info))
  before = tree(tmp_path)
  for act in (read_study, certificate.recheck_study, certificate.certify_study):
    with pytest.raises(UserError, match="which is outside of the study"):
      act(study)
  assert tree(tmp_path) == before


def test_a_comparison_may_share_the_runs_of_its_study(study):
  part = study / "parts" / "loose"
  assert run_place(part, "../../runs/moe_20-s0") == part / "../../runs/moe_20-s0"
  with pytest.raises(UserError, match="outside of the study"):
    run_place(part, "../../../other/runs/a-s0")


@pytest.mark.parametrize("name", ["study.json", "plan.json"])
@pytest.mark.parametrize(
  "arms", [3, [3], [{"name": "a"}], [{"name": 3, "seed": 0}], [{"name": "a", "seed": "x"}]], ids=str
)
def test_a_study_file_of_another_shape_is_one_line(study, name, arms):
  value = json.loads((study / name).read_text()) | {"arms": arms}
  (study / name).write_text(json.dumps(value))
  with pytest.raises(UserError, match=rf"{name} is damaged \(arms.*run the study again") as caught:
    read_study(study)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "name, arms",
  [("plan.json", [{"seed": 0}]), ("plan.json", 3), ("study.json", [{"name": "a"}])],
  ids=str,
)
def test_a_worker_meets_a_strange_plan_with_one_line(tmp_path, name, arms):
  """A stranger's plan without the name of an arm ended `study` in a KeyError."""
  study = fake_training.open_study(tmp_path)
  study.derive()
  study.write()
  path = tmp_path / name
  value = json.loads(path.read_text())
  files.write_json(path, value | {"arms": arms}, seal=True)
  with pytest.raises(UserError, match=rf"{name} is damaged \(arms") as caught:
    fake_training.open_study(tmp_path).derive()
  assert "\n" not in str(caught.value)


def test_a_lost_study_file_is_named_in_the_analysis(study):
  """Without it a report had another name, and neither versions nor the data's hashes."""
  (study / "study.json").unlink()
  assert read_study(study).problems == ("study.json is not there; run the study again to write it",)


@pytest.mark.parametrize("name", ["parts/other", "report"])
def test_nothing_is_written_through_a_link_out_of_a_study(study, tmp_path, name):
  """A part that was a link had its certificate and analysis written where the link led."""
  there = tmp_path / "there"
  there.mkdir()
  for path in ("plan.json", "study.json"):
    shutil.copy(study / path, there / path)
  (study / "parts").mkdir()
  (study / name).symlink_to(there)
  with pytest.raises(UserError, match="is a link that leads out of the study"):
    write_report(study)
  assert tree(there) == ["plan.json", "study.json"]


def test_a_plan_without_tolerances_fails_its_certificate(study):
  """It ended `report` in a KeyError."""
  plan = json.loads((study / "plan.json").read_text())
  assert "params_tolerance" not in plan["budget"]
  value = certificate.certify_study(study)
  named = [row["name"] for row in value["checks"] if not row["passed"]]
  assert "the budget in plan.json" in named and not value["passed"]


@pytest.mark.parametrize(
  "field, value", [("checks", [{"passed": True}]), ("files", 3), ("passed", "yes")]
)
def test_a_strange_certificate_is_written_anew(study, field, value, monkeypatch):
  """A check without a name ended `report` in a KeyError."""
  run = study / "runs" / "moe_20-s0"
  told = {"passed": True, "checks": [], "measured": {}, "ledger": {}, "files": {"a": "b"}}
  files.write_json(run / "certificate.json", told | {field: value}, seal=True)
  asked = []
  monkeypatch.setattr(certificate, "certify_run", asked.append)
  certificate.recheck_run(run)
  assert asked == [run]
  assert not certificate.certify_study(study)["passed"]


@pytest.mark.parametrize(
  "name", ["../secret", "out/secret", "x" * 300, "a\0b", "\ud83d"], ids=ascii
)
def test_hashes_are_of_files_inside_their_folder_alone(tmp_path, name):
  """One of /dev/zero was read for ever, a long name was a traceback."""
  folder = tmp_path / "run" / "3"
  folder.mkdir(parents=True)
  (folder / "out").symlink_to(tmp_path)
  for place in (tmp_path, folder.parent):
    (place / "secret").write_text("x")
  value = {"step": 3, "run": "", "files": {name: [1, files.sha256_of(tmp_path / "secret")]}}
  files.write_json(folder / checkpoint_hashes.HASHES, value, seal=True)
  found = checkpoint_hashes.problem(folder)
  assert "is missing" in found or "is not JSON ('utf-8' codec can't encode" in found
  (said,) = evidence.changed_files(folder, {name: files.sha256_of(tmp_path / "secret")})
  assert said == f"{name[:80]} is missing"


def data_of(**fields):
  config = base()
  for name, value in fields.items():
    config.data[name] = value
  return config


@pytest.mark.parametrize(
  "fields",
  [
    dict(source="gs://bucket/text"),
    dict(source="https://example.org/a.jsonl"),
    dict(store="gs://bucket/store"),
    dict(tokenizer="gs://bucket/tokenizer.json"),
    dict(held_out="source:gs://bucket/text"),
  ],
  ids=str,
)
def test_nothing_is_fetched_for_a_run_folder(fields, tmp_path, monkeypatch):
  monkeypatch.setattr(storage, "filesystem", lambda path: pytest.fail(f"reached for {path}"))
  with pytest.raises(UserError, match="is remote, and nothing is fetched.*add --prepare-data"):
    open_run_data(tmp_path, data_of(**fields))


def test_no_store_is_made_for_a_run_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  (tmp_path / "a.jsonl").write_text(
    "".join(json.dumps({"text": f"a text of number {n} " * 9}) + "\n" for n in range(60))
  )
  config = data_of(source=str(tmp_path / "a.jsonl"), held_out="hash:0.2")
  before = tree(tmp_path)
  for store in ("", str(tmp_path / "new" / "store")):
    config.data.store = store
    with pytest.raises(UserError, match="no token store of .*--prepare-data reads it"):
      open_run_data(tmp_path, config)
  assert tree(tmp_path) == before
  made = open_run_data(tmp_path, config, prepare_data=True)
  found = open_run_data(tmp_path, config)  # now it is there
  assert found.fingerprint() == made.fingerprint()


def test_the_builtin_text_is_prepared_without_a_flag(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path))
  monkeypatch.setattr(prepare, "build", lambda *given: asked.append(given) or 1 / 0)
  with pytest.raises(ZeroDivisionError):
    prepare.open_data(base().data, make=False)
  assert len(asked) == 1


def uses(tree, names):
  """Names of a module that are imported, called or given as an argument."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      found = {name.name.split(".")[0] for name in node.names}
      found |= {(getattr(node, "module", "") or "").split(".")[0]}
      yield from found & names
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      yield from {node.func.id} & names
    elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      if getattr(node.value, "value", None) is not False:
        yield "allow_pickle"


def test_no_file_of_the_package_can_unpickle():
  names = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
  names |= {"multiprocessing", "eval", "exec"}
  found = {
    str(path.relative_to(PACKAGE)): sorted(set(uses(ast.parse(path.read_text()), names)))
    for path in PACKAGE.rglob("*.py")
  }
  assert len(found) > 200
  assert {name: used for name, used in found.items() if used} == {}


def test_an_array_file_with_objects_is_refused(tmp_path):
  np.savez(tmp_path / "routing.npz", steps=np.array([{"a": 1}], object))
  with np.load(tmp_path / "routing.npz") as saved, pytest.raises(ValueError, match="allow_pickle"):
    saved["steps"]


@pytest.mark.parametrize(
  "loss, passed", [(5.6, True), (5.605802, False), (9.0, False), (float("nan"), False)]
)
def test_a_run_that_learned_nothing_says_so(loss, passed):
  plan = {"architecture": {"vocab_size": 272}}  # ln 272 = 5.605802066...
  value = loss if loss != 5.605802 else float(np.log(272))
  (line,) = evidence.learning_checks(plan, {"train_cross_entropy": value})
  assert line["passed"] == passed and "below ln V = 5.6058" in line["planned"]


def test_its_certificate_fails_for_a_run_that_learned_nothing(tmp_path, monkeypatch):
  for name, value in (
    ("plan.json", {"name": "a", "seed": 0, "num_steps": 3, "architecture": {"vocab_size": 272}}),
    ("result.json", {"train_cross_entropy": 6.0}),
    ("config.json", configs.to_json(base())),
  ):
    files.write_json(tmp_path / name, value)
  checks = evidence.learning_checks(
    json.loads((tmp_path / "plan.json").read_text()),
    json.loads((tmp_path / "result.json").read_text()),
  )
  monkeypatch.setattr(certificate, "_run_checks", lambda folder, value: list(checks))
  found = certificate.certify_run(tmp_path)
  assert not found["passed"]
  assert [row["name"] for row in found["checks"] if not row["passed"]] == ["training loss"]
