"""launch/slurm.sh and the job it submits, with fake sbatch, srun and scontrol."""

import pathlib
import subprocess

import pytest

from moe_parity.launch.__main__ import main
from tests.helpers.fake_programs import Programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
STUDY = ("study", "--config=configs/demo.py", "--workdir=runs/my study")


@pytest.fixture
def programs(tmp_path, monkeypatch):
  programs = Programs(tmp_path)
  monkeypatch.setenv("PATH", programs.path)
  monkeypatch.chdir(tmp_path)
  (programs.folder / "bash").unlink()
  programs.add("bash")
  programs.add("sbatch", "print('4711;cluster')")
  return programs


def submit(*options, words=STUDY):
  return main(["slurm", "submit", *options, "--", *words])


def test_workers_are_an_array_that_is_warned_and_requeued(programs, capsys):
  options = ("--workers=8", "--hours=4", "--gpus=2", "--partition=a100", "--sbatch=--nice=5 -H")
  assert submit(*options) == 0
  (call,) = programs.calls("sbatch")
  for word in (
    *("--array=1-8", "--time=240", "--signal=TERM@120", "--requeue", "--open-mode=append"),
    *("--output=runs/my study/logs/%A_%a.log", "--gpus-per-node=2", "--ntasks-per-node=1"),
    *("--job-name=my-study", "--partition=a100", "--nice=5", "-H"),
  ):
    assert word in call
  assert call[-4:] == [f"{ROOT}/launch/slurm.sbatch", *STUDY]
  setup = programs.records()[0]
  assert setup["argv"][-1] == "--setup" and setup["env"] == {"EXTRA": "gpu"}
  assert pathlib.Path("runs/my study/logs").is_dir()
  assert "scancel 4711" in capsys.readouterr().err


def test_a_percent_sign_in_a_folder_is_no_symbol_of_slurm(programs):
  words = ("study", "--config=configs/demo.py", "--workdir=runs/50%j")
  assert (
    submit("--hours=1", words=words) == 0 and submit("--hours=1", "--workers=2", words=words) == 0
  )
  one, several = programs.calls("sbatch")
  assert "--output=runs/50%%j/logs/%j.log" in one
  assert "--output=runs/50%%j/logs/%A_%a.log" in several
  assert pathlib.Path("runs/50%j/logs").is_dir() and "--workdir=runs/50%j" in one


def test_one_worker_is_no_array_and_a_cpu_study_no_gpu_job(programs):
  assert submit("--hours=0.5") == 0
  (call,) = programs.calls("sbatch")
  assert not any(word.startswith(("--array", "--gpus", "--mem", "--qos")) for word in call)
  assert "--output=runs/my study/logs/%j.log" in call and "--time=30" in call


def test_a_dry_run_prints_what_would_run_and_runs_nothing(programs, capsys):
  assert main(["slurm", "submit", "--dry-run", "--hours=1", "--", *STUDY]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines[:2]] == ["mkdir", "bash"]
  assert "'--workdir=runs/my study'" in lines[2] and " sbatch --parsable " in lines[2]
  assert programs.calls() == []


def test_a_job_that_sbatch_refuses_is_an_error_with_its_words(programs, capsys):
  programs.add("sbatch", "sys.exit('sbatch: error: invalid partition specified: a100')")
  assert submit("--hours=1", "--partition=a100") == 1
  assert "invalid partition specified: a100" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("options", "words", "says"),
  [
    (("--hours=0.1",), STUDY, "trains nothing"),
    (("--hours=1", "--workers=0"), STUDY, "at least 1"),
    (("--hours=1", "--workers=2"), ("train", "--workdir=a"), "train is one run"),
    (("--hours=1",), (*STUDY, "--shard=1/2"), "--shard"),
    (("--hours=1",), (*STUDY, "--coordinator=auto"), "--coordinator"),
    (("--hours=1",), ("bench",), "--logs=FOLDER"),
    (("--hours=nan",), STUDY, "--hours=nan"),
    (("--hours=inf",), STUDY, "--hours=inf"),
    (("--hours=1", "--warning=0"), STUDY, "1 to 65535 seconds"),
    (("--hours=99", "--warning=70000"), STUDY, "1 to 65535 seconds"),
    (("--hours=1", "--max-restarts=-1"), STUDY, "--max-restarts=-1"),
    (("--hours=1", "--gpus=-1"), STUDY, "--gpus=-1"),
    (("--hours=1", "--sbatch=--comment='a"), STUDY, "No closing quotation"),
    (("--hours=1",), ("demo",), "only study"),
  ],
)
def test_what_cannot_be_a_job_is_refused_before_sbatch(programs, capsys, options, words, says):
  assert submit(*options, words=words) == 2
  assert says in capsys.readouterr().err and programs.calls("sbatch") == []


def test_without_slurm_the_way_out_is_named(programs, capsys):
  (programs.folder / "sbatch").unlink()
  assert submit("--hours=1") == 2
  assert "login node of a Slurm cluster" in capsys.readouterr().err


class Job:
  """The batch script as Slurm runs it: srun gives the exit code, scontrol knows the state."""

  def __init__(self, folder):
    self.programs = Programs(folder)
    self.state("RUNNING")

  def state(self, name):
    self.programs.add("scontrol", f"print('JobId=12 JobState={name} Reason=None')")

  def run(self, code, *words, **env):
    self.programs.add("srun", f"sys.exit({code})")
    return subprocess.run(
      ["bash", ROOT / "launch/slurm.sbatch", *(words or STUDY)],
      env={"PATH": self.programs.path, "MOE_PARITY_ROOT": "/r", "SLURM_JOB_ID": "12", **env},
      capture_output=True,
      text=True,
    )

  @property
  def requeued(self):
    return ["scontrol", "requeue", "12"] in self.programs.calls("scontrol")


@pytest.fixture
def job(tmp_path):
  return Job(tmp_path)


def test_a_worker_that_asks_goes_back_into_the_queue(job):
  job.run(75)
  assert job.requeued


def test_a_worker_that_was_ended_as_it_started_goes_back_too(job):
  job.run(143)
  assert job.requeued


def test_a_task_of_an_array_requeues_itself_alone(job):
  """Slurm gives one task of an array the array's own number: by it all tasks were requeued."""
  job.run(75, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="3")
  asked = job.programs.calls("scontrol")
  assert asked == [["scontrol", "show", "job", "12_3"], ["scontrol", "requeue", "12_3"]]


@pytest.mark.parametrize("code", [0, 1, 2, 134, 137])
def test_any_other_exit_code_is_the_job_s_own(job, code):
  assert job.run(code).returncode == code
  assert not job.requeued


def test_a_cancelled_job_stays_cancelled(job):
  job.state("CANCELLED")
  assert "cancelled" in job.run(75).stdout and not job.requeued


def test_a_job_is_not_restarted_for_ever(job):
  counts = {"SLURM_RESTART_COUNT": "3", "MOE_PARITY_MAX_RESTARTS": "3"}
  assert job.run(75, **counts).returncode == 1 and not job.requeued
  job.run(75, **(counts | {"SLURM_RESTART_COUNT": "2"}))
  assert job.requeued


def test_the_worker_gets_its_words_its_share_and_its_world(job):
  task = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
  job.run(0, **task, SLURM_JOB_NUM_NODES="2")
  (call,) = job.programs.calls("srun")
  assert call == [
    *("srun", "--kill-on-bad-exit=1", "bash", "/r/launch/local.sh", *STUDY),
    *("--shard=3/8", "--coordinator=auto"),
  ]
  job.run(0, "train", "--workdir=a", SLURM_ARRAY_TASK_COUNT="1")
  assert job.programs.calls("srun")[1][2:] == ["bash", "/r/launch/local.sh", "train", "--workdir=a"]
