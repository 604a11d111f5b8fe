"""A study and its runs written by an earlier version (commit e810754) open with this one."""

import json
import pathlib
import shutil
import tarfile

import pytest

import moe_parity as mp
from moe_parity import cli

GOLDEN = pathlib.Path(__file__).parent / "golden" / "study_before_fingerprints.tar.xz"
CONFIG = f"{pathlib.Path(__file__).parents[1]}/configs/demo.py:tiny"


@pytest.fixture
def study(tmp_path):
  """Two of its three arms: the third had not been trained."""
  with tarfile.open(GOLDEN) as archive:
    archive.extractall(tmp_path, filter="data")
  return tmp_path / "study_before_fingerprints"


def stored(run, name):
  return json.loads((run / name).read_text())


def test_a_former_study_is_reported_with_its_own_scores(study, capsys):
  before = {run.name: stored(run, "result.json") for run in (study / "runs").iterdir()}
  assert cli.main(["report", str(study)]) == 0
  printed = capsys.readouterr().out
  assert "moe_20" in printed and (study / "report" / "index.html").is_file()
  opened = mp.open_study(study)
  assert "2 of 3 runs done" in repr(opened)
  for name in ("dense", "moe_20"):
    assert opened.run(name).bpc == before[f"{name}-s0"]["validation"]["bpc"]
  assert {run.name: stored(run, "result.json") for run in (study / "runs").iterdir()} == before


def test_checks_that_a_former_run_can_stand_all_pass(study):
  assert cli.main(["report", str(study)]) == 0
  for run in (study / "runs").iterdir():
    checks = stored(run, "certificate.json")["checks"]
    assert len(checks) > 8 and all(check["passed"] for check in checks), checks


def test_a_former_run_is_scored_and_continues_a_text(study, capsys):
  run = study / "runs" / "moe_20-s0"
  assert cli.main(["evaluate", str(run), "--max-tokens=2000", "--json"]) == 0
  bpc = json.loads(capsys.readouterr().out)["bpc"]
  assert bpc == pytest.approx(stored(run, "result.json")["validation"]["bpc"], abs=1e-4)
  assert cli.main(["generate", str(run), "--prompt=The ", "--max-tokens=3"]) == 0
  assert capsys.readouterr().out.startswith("The ")


def test_another_plan_is_refused_field_by_field(study, capsys):
  """Not by printing every arm; the folder is as it was."""
  shutil.copytree(study, study.parent / "copy")
  other = [f"--config={CONFIG}", f"--workdir={study}", "--config.evaluation.max_tokens=2000"]
  assert cli.main(["study", *other]) == 2
  error = capsys.readouterr().err
  assert "holds another study (arms." in error and len(error) < 500
  before = {path.name for path in (study.parent / "copy").rglob("*")}
  assert {path.name for path in study.rglob("*")} == before
