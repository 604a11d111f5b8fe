"""launch/sky.yaml: what SkyPilot reads, and what its `run` does on a machine."""

import pathlib
import subprocess

import pytest
import yaml

from tests.helpers.fake_programs import Programs
from tests.helpers.sky_fields import problems

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "launch/sky.yaml"
ENV = {"WORKDIR": "gs://b/a", "CONFIG": "configs/demo.py", "MORE": "--only=x --config.seed=3"}


@pytest.fixture
def programs(tmp_path):
  programs = Programs(tmp_path)
  (programs.folder / "bash").rename(programs.folder / "real-bash")
  programs.add("bash", "sys.exit(75)")
  return programs


def run(programs, **env):
  (line,) = [yaml.safe_load(FILE.read_text())["run"]]
  return subprocess.run(
    [programs.folder / "real-bash", "-c", line],
    env={"PATH": programs.path, "SKYPILOT_TASK_ID": "sky-managed-7", **ENV, **env},
    capture_output=True,
    text=True,
  )


def test_a_job_is_spot_and_recovered_where_it_asks():
  task = yaml.safe_load(FILE.read_text())
  assert task["resources"]["use_spot"] is True
  assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
  assert "max_restarts_on_errors" not in task["resources"]["job_recovery"]  # 1 and 2 end it


def test_every_field_is_one_that_skypilot_has():
  assert problems(yaml.safe_load(FILE.read_text())) == []


def test_a_misspelt_field_is_named_wherever_it_is():
  top, resources = ("name", "workdir", "resources", "setup", "run"), ("use_spot", "job_recovery")
  for place, name in [*(("", name) for name in top), *((".resources", name) for name in resources)]:
    task = yaml.safe_load(FILE.read_text())
    fields = task["resources"] if place else task
    fields[f"{name}x"] = fields.pop(name)
    assert problems(task) == [f"{place}.{name}x: no such field"]
  task = yaml.safe_load(FILE.read_text())
  task["resources"]["job_recovery"] = {"recover_on_exit_code": [75]}
  task["resources"]["disk_size"] = "200"
  assert problems(task) == [
    ".resources.disk_size: '200' is no int",
    ".resources.job_recovery.recover_on_exit_code: no such field",
  ]


def test_each_job_begins_with_its_share_under_its_own_name(programs):
  done = run(programs, SKYPILOT_JOB_RANK="2", SKYPILOT_NUM_JOBS="4")
  assert done.returncode == 75  # the worker's own, for SkyPilot to see
  (call,) = programs.calls("bash")
  assert call[1:] == [
    *("launch/gpu.sh", "study", "--config=configs/demo.py", "--workdir=gs://b/a"),
    "--compile-cache=gs://b/a/launch/compiled",
    *("--only=x", "--config.seed=3", "--shard=3/4", "--worker=sky-managed-7"),
  ]


def test_one_job_is_the_only_worker(programs):
  run(programs)
  assert "--shard=1/1" in programs.calls("bash")[0]


def test_a_workdir_on_the_machine_is_refused(programs):
  done = run(programs, WORKDIR="runs/a")
  assert done.returncode == 2 and "goes with the machine" in done.stderr
  assert programs.calls("bash") == []


def test_skypilot_itself_reads_the_file(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  sky = pytest.importorskip("sky", reason="SkyPilot is not among the tests' packages")
  monkeypatch.chdir(ROOT)
  with pytest.raises(ValueError, match="WORKDIR"):  # what must be given has no default
    sky.Task.from_yaml(str(FILE))
  config = yaml.safe_load(FILE.read_text())
  task = sky.Task.from_yaml_config(config, list(ENV.items()))
  assert {resource.use_spot for resource in task.resources} == {True}
  wrong = yaml.safe_load(FILE.read_text())
  wrong["resources"]["use_spott"] = wrong["resources"].pop("use_spot")
  with pytest.raises(ValueError, match="use_spot"):
    sky.Task.from_yaml_config(wrong, list(ENV.items()))
