"""launch/slurm.sh on a real Slurm of one machine: warned, requeued, resumed, cancelled."""

import pathlib
import shutil
import subprocess
import time

import pytest

from tests.helpers.slurm_cluster import SlurmCluster, missing

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

# A worker that keeps the contract: counts its lives, saves on SIGTERM and ends with 75.
WORKER = """#!/usr/bin/env bash
[ "$1" != --setup ] || exit 0
notes={notes}/worker-${{SLURM_ARRAY_TASK_ID:-0}}
echo "life $* restart ${{SLURM_RESTART_COUNT:-0}}" >>"$notes"
trap 'echo saved >>"$notes"; exit 75' TERM
{body}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
  yield cluster
  cluster.stop()


class Site:
  """A checkout whose local.sh is a worker that keeps the contract, and what it noted."""

  def __init__(self, folder, cluster):
    self.folder, self._cluster = folder, cluster
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copytree(ROOT / "moe_parity/launch", folder / "moe_parity/launch")
    for name in ("__init__.py", "errors.py"):
      shutil.copy(ROOT / "moe_parity" / name, folder / "moe_parity" / name)

  def worker(self, body):
    text = WORKER.format(notes=self.folder, body=body)
    (self.folder / "launch/local.sh").write_text(text)

  def submit(self, *options):
    words = ("study", "--config=c.py", f"--workdir={self.folder}/study")
    done = subprocess.run(
      ["bash", self.folder / "launch/slurm.sh", "submit", *options, "--", *words],
      env=self._cluster.env,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.split()[1].rstrip(",")

  def notes(self, task=0):
    file = self.folder / f"worker-{task}"
    return file.read_text().splitlines() if file.exists() else []

  def wait_for_note(self, count, task=0):
    deadline = time.monotonic() + 120
    while len(self.notes(task)) < count:
      assert time.monotonic() < deadline, self.notes(task)
      time.sleep(0.1)


@pytest.fixture
def site(tmp_path, cluster):
  return Site(tmp_path, cluster)


def test_workers_that_ask_are_requeued_and_finish(cluster, site):
  site.worker('[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0\nexit 75')
  job = site.submit("--workers=2", "--hours=1", "--warning=5")
  for task in (1, 2):
    fields = cluster.wait_for(f"{job}_{task}", "COMPLETED")
    assert fields["ExitCode"] == "0:0" and fields["Restarts"] == "1"
    lives = site.notes(task)
    assert [life.endswith(f"restart {k}") for k, life in enumerate(lives)] == [True, True]
    assert f"--shard={task}/2" in lives[0]
    log = (site.folder / f"study/logs/{job}_{task}.log").read_text()
    assert log.count("ended with 75") == 1 and log.count("ended with 0") == 1


def test_a_time_limit_warns_the_worker_which_saves_and_resumes(cluster, site):
  site.worker('[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0\nwhile :; do sleep 0.2; done')
  job = site.submit("--hours=0.0166", "--warning=14")  # a limit of one minute
  fields = cluster.wait_for(job, "COMPLETED", seconds=200)
  assert fields["Restarts"] == "1"
  assert [note.split()[0] for note in site.notes()] == ["life", "saved", "life"]


def test_a_requeue_by_the_site_is_a_signal_and_another_life(cluster, site):
  site.worker('[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0\nwhile :; do sleep 0.2; done')
  job = site.submit("--hours=1")
  site.wait_for_note(1)
  cluster.run("scontrol", "requeue", job)
  cluster.wait_for(job, "COMPLETED")
  assert [note.split()[0] for note in site.notes()] == ["life", "saved", "life"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_final_and_keeps_its_exit_code(cluster, site, code):
  site.worker(f"exit {code}")
  fields = cluster.wait_for(job := site.submit("--hours=1"), "FAILED")
  assert fields["ExitCode"] == f"{code}:0" and fields["Restarts"] == "0", job


def test_a_cancelled_worker_saves_and_stays_cancelled(cluster, site):
  site.worker("while :; do sleep 0.2; done")
  job = site.submit("--hours=1")
  site.wait_for_note(1)
  cluster.run("scancel", job)
  site.wait_for_note(2)
  cluster.wait_for(job, "CANCELLED")
  time.sleep(8)  # a requeue would have started by now
  assert cluster.job(job)["JobState"] == "CANCELLED"
  assert [note.split()[0] for note in site.notes()] == ["life", "saved"]


def test_restarts_end_where_the_submit_said(cluster, site):
  site.worker("exit 75")
  fields = cluster.wait_for(site.submit("--hours=1", "--max-restarts=1"), "FAILED")
  assert fields["ExitCode"] == "1:0" and fields["Restarts"] == "1"
