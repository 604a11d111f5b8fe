"""A whole study of two array tasks on a real Slurm, whose time limit ends each of them twice."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.helpers.slurm_cluster import SlurmCluster, missing
from tests.helpers.workers import end, start

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
CONFIG = [f"--config={ROOT}/configs/demo.py:tiny", "--config.train.log_every=1",
          "--config.train.save_every=1000", "--config.evaluation.max_tokens=500"]  # fmt: skip
KILLED = 2  # lives of each task that the limit ends

# The real worker, in place of launch/local.sh's environment. Its first lives are held after a few
# steps until Slurm's signal comes, so that the limit comes before the end on machines of any speed.
WORKER = """
import json, os, pathlib, signal, subprocess, sys, time

if sys.argv[1] == "--setup":
  sys.exit()
worker = subprocess.Popen([sys.executable, "-m", "moe_parity.cli", *sys.argv[1:]])
told = []

def tell(number, frame):
  told.append(number)
  worker.send_signal(signal.SIGCONT)

signal.signal(signal.SIGTERM, tell)
study = pathlib.Path(os.environ["STUDY"])
name = "-".join(os.environ[f"SLURM_ARRAY_{part}_ID"] for part in ("JOB", "TASK"))

def steps():
  count = 0
  for lease in study.glob("leases/runs/*"):
    try:
      record = json.loads(lease.read_text())
    except ValueError:  # being written
      continue
    metrics = study / "runs" / lease.name / "metrics.jsonl"
    if (record.get("worker"), record.get("state")) == (name, "running") and metrics.exists():
      count += metrics.read_text().count("\\n")
  return count

if int(os.environ.get("SLURM_RESTART_COUNT", 0)) < KILLED:
  before = steps()
  while worker.poll() is None and steps() < before + 5:
    time.sleep(0.05)
  if worker.poll() is None and not told:
    worker.send_signal(signal.SIGSTOP)
    if told:
      worker.send_signal(signal.SIGCONT)
code = worker.wait()
sys.exit(code if code >= 0 else 128 - code)
""".replace("KILLED", str(KILLED))


@pytest.fixture
def cluster(tmp_path):
  cluster = SlurmCluster(tmp_path / "slurm")
  yield cluster
  cluster.stop()


def checkout(folder):
  """The launchers, and the real worker under the name of local.sh."""
  shutil.copytree(ROOT / "launch", folder / "launch")
  shutil.copytree(ROOT / "moe_parity/launch", folder / "moe_parity/launch")
  for name in ("__init__.py", "errors.py"):
    shutil.copy(ROOT / "moe_parity" / name, folder / "moe_parity" / name)
  (folder / "worker.py").write_text(WORKER)
  (folder / "launch/local.sh").write_text(f'exec {sys.executable} {folder}/worker.py "$@"\n')
  return folder / "launch/slurm.sh"


def runs(study):
  """By arm: its steps as they were logged, every loss, and what it scored."""
  found = {}
  for folder in (study / "runs").iterdir():
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    found[folder.name] = losses, json.loads((folder / "result.json").read_text())["validation"]
  return found


def test_a_study_that_the_time_limit_ends_twice_ends_whole(cluster, tmp_path):
  """With the losses and scores of a study that nobody stopped."""
  study, cache = tmp_path / "study", tmp_path / "cache"
  worker = {"STUDY": str(study), "MOE_PARITY_CACHE": str(cache), "JAX_NUM_CPU_DEVICES": "1"}
  submit = ["submit", "--workers=2", "--hours=0.0167", "--warning=5", "--", "study", *CONFIG]
  done = subprocess.run(
    ["bash", checkout(tmp_path), *submit, f"--workdir={study}"],
    env=cluster.env | worker | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  job = done.stderr.split()[1].rstrip(",")
  alone = start(tmp_path / "other", "study", *CONFIG, f"--workdir={tmp_path}/alone")
  tasks, unlimited = {f"{job}_{task}" for task in (1, 2)}, set()

  def are_over():
    states = {task: cluster.job(task) for task in tasks}
    for task in tasks - unlimited:
      if int(states[task].get("Restarts", 0)) >= KILLED:  # from now on machines of any speed end
        cluster.run("scontrol", "update", f"JobId={task}", "TimeLimit=60")
        unlimited.add(task)
    return all(state.get("JobState") in ("COMPLETED", "FAILED") for state in states.values())

  cluster.wait_until(are_over, seconds=900)
  logs = {task: (study / f"logs/{task}.log").read_text() for task in tasks}
  for task, log in logs.items():
    fields = cluster.job(task)
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), log
    asked = log.count("ended with 75") + log.count("ended with 143")
    assert asked == int(fields["Restarts"]) >= KILLED and log.count("ended with 0") == 1, log
  assert any("stopped with a checkpoint of step" in log for log in logs.values())
  code, output = end(alone)
  assert code == 0, output
  assert runs(study) == runs(tmp_path / "alone")
  certificate = json.loads((study / "certificate.json").read_text())
  assert certificate["passed"] and (study / "report/index.html").exists()
