"""A study on a bucket: workers that share nothing else give the study that one disk gives."""

import dataclasses
import fcntl
import json
import pathlib

import pytest

from moe_parity import cli
from moe_parity.data import storage
from moe_parity.errors import Stopped, UserError
from moe_parity.report.page import write_report
from moe_parity.study.workers.bucket_study import BucketStudy
from moe_parity.study.workers.runner import run_study
from moe_parity.study.workers.shard import Shard
from moe_parity.training import loop
from tests import test_study_activation_rate
from tests.helpers import fake_training
from tests.test_study_bucket_mirror import train
from tests.test_training_loop import arm, store  # noqa: F401 - a fixture

URL = "gs://mine/studies/a"


def open_study(tmp_path, made=None, url=URL):
  return BucketStudy(
    made or fake_training.config(), fake_training.store(), url, leases=str(tmp_path / "leases")
  )


def run(study, actions=None, **kwargs):
  lines = []
  actions = actions or fake_training.actions()
  arms = run_study(study, log=lines.append, actions=actions, **kwargs)
  return {arm.name: (arm.status, arm.error) for arm in arms}, lines


def results(read) -> dict[str, dict]:
  """What every arm scored, from a way to read a file of the study."""
  listed = json.loads(read("study.json"))["arms"]
  return {a["name"]: json.loads(read(f"{a['folder']}/result.json"))["validation"] for a in listed}


def test_two_workers_of_a_bucket_give_the_study_of_one_disk(bucket, tmp_path):
  first = open_study(tmp_path)
  names = [a.name for a in first.derive()[0].plan.arms]
  states, lines = run(first, only=names[:2], shard=Shard(1, 2))
  assert [line.split(":")[0] for line in lines] == names[:2]
  second, fake, looked_at = open_study(tmp_path), fake_training.actions(), []

  def certify(folder):
    looked_at.append(folder.name)
    fake.certify(folder)

  own = dataclasses.replace(fake, certify=certify, recheck=lambda f: looked_at.append(f.name))
  states, lines = run(second, own, shard=Shard(2, 2))
  assert set(states.values()) == {("done", "")}
  assert {line.split(":")[0] for line in lines} == set(names[2:])
  # Those of the first were certified by it: without their checkpoints they would fail here.
  assert set(looked_at) == {f"{name}-s0" for name in names[2:]}
  write_report(second.folder)
  page = second.publish()
  alone = fake_training.open_study(tmp_path / "alone")
  run(alone)
  there = results(lambda name: storage.read_bytes(f"{URL}/{name}"))
  assert there == results(lambda name: (tmp_path / "alone" / name).read_bytes())
  assert storage.is_file(page) and page == f"{URL}/report/index.html"
  assert {"analysis.json", "certificate.json", "plan.json"} <= set(storage.names(URL))


def test_stages_follow_results_that_another_worker_left(bucket, tmp_path):
  made = test_study_activation_rate.config(more_seeds=(1,), fixed_data=True, controls=False)
  first = open_study(tmp_path, made)
  run(first, only=["dense", "moe_20", "moe_25"])
  second = open_study(tmp_path, made)
  states, lines = run(second)
  seeds = {(a.name, a.seed) for a in second.comparisons[0].plan.arms if a.seed}
  assert seeds == {("dense", 1), ("moe_25", 1), ("moe_30", 1), ("moe_40", 1)}
  assert set(states.values()) == {("done", "")}
  assert not any(line.startswith(("dense:", "moe_20:", "moe_25:")) for line in lines)
  second.summarize()
  second.publish()
  there = storage.names(URL)
  assert {"activation_rate.json", "parts/fixed_data/certificate.json"} <= set(there)
  assert "parts/fixed_data/runs/moe_55-s0/result.json" in there
  assert len(json.loads(storage.read_bytes(f"{URL}/plan.json"))["arms"]) == 11


def test_a_failed_arm_leaves_its_trace_and_is_tried_again(bucket, tmp_path):
  states, _ = run(open_study(tmp_path), fake_training.actions(failing=("moe_30",)))
  assert states["moe_30"] == ("failed", "moe_30 broke")
  assert b"moe_30 broke" in storage.read_bytes(f"{URL}/runs/moe_30-s0/failed.txt")
  assert run(open_study(tmp_path))[0]["moe_30"] == ("done", "")


def test_a_worker_that_is_stopped_brings_its_last_checkpoint(bucket, tmp_path):
  """Before, a preempted worker's replacement went on from the one that had been copied before."""

  def stopped(config, plan, data, folder, on_log, log, control):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 10)
    raise Stopped("stopped with a checkpoint of step 10")

  with pytest.raises(Stopped):
    run(open_study(tmp_path), fake_training.RunActions(stopped))
  (latest,) = [name for name in storage.names(URL) if name.endswith("latest.json")]
  assert json.loads(storage.read_bytes(f"{URL}/{latest}"))["step"] == 10


def test_what_launchers_bring_is_no_other_study(bucket, tmp_path):
  storage.write_bytes(f"{URL}/launch/code/c0ffee.tar.gz", b"x")
  assert set(run(open_study(tmp_path))[0].values()) == {("done", "")}


def test_what_a_study_cannot_lie_on_is_refused(bucket, tmp_path, capsys):
  for url in ("s3://mine/a", "gs://", "http://x/y"):
    with pytest.raises(UserError, match="on a disk or under gs://bucket/name"):
      open_study(tmp_path, url=url)
  storage.write_bytes("gs://mine/text/a.txt", b"x")
  with pytest.raises(UserError, match="gs://mine/text is not empty and holds no study"):
    open_study(tmp_path, url="gs://mine/text")
  run(open_study(tmp_path))
  with pytest.raises(UserError, match="holds another study"):
    open_study(tmp_path, fake_training.config((0.2, 0.35))).derive()
  demo = f"--config={pathlib.Path(__file__).resolve().parent.parent}/configs/demo.py:tiny"
  for verb in (
    ["train", demo, "--arm=dense", f"--workdir={URL}"], ["report", URL], ["evaluate", URL]
  ):  # fmt: skip
    assert cli.main(verb) == 2
    assert "`study` alone works on a bucket" in capsys.readouterr().err


def test_a_scratch_folder_goes_with_its_worker(bucket, tmp_path):
  study = open_study(tmp_path)
  place = study.folder
  killed, other = place.with_name("killed-x"), place.with_name("other")
  for folder in (killed, other):
    folder.mkdir()
    folder.with_name(f"{folder.name}.lock").write_text("")
  with open(other.with_name("other.lock")) as lock:  # a worker that lives, of whatever container
    fcntl.flock(lock, fcntl.LOCK_EX)
    del study
    open_study(tmp_path)
    assert other.exists() and not place.exists() and not killed.exists()


def test_a_run_taken_over_on_another_disk_ends_the_same(
  bucket,
  tmp_path,
  store,  # noqa: F811 - the fixture
):
  """Real training: the first worker dies after a checkpoint was noted; another resumes from it."""
  loaded, _ = arm("dense", "--config.train.save_every=10", "--config.train.log_every=1")
  with loaded.unlocked():
    for name in [name for name in loaded.arms if name != "dense"]:
      del loaded.arms[name]
  begun = []

  def until_kept(made, plan, data, folder, on_log, log, control):
    def watch(progress):
      on_log(progress)
      begun.append(progress.step)
      if first.mirror._writing is not None:
        first.mirror._writing.result()
      if "latest.json" in storage.names(f"{URL}/runs/dense-s0"):
        raise KeyboardInterrupt

    loop.train_arm(made, plan, data, folder, watch, log, control)

  def open_(folder_or_url):
    return BucketStudy(loaded, store, folder_or_url, leases=str(tmp_path / "leases"))

  first = open_(URL)
  real = fake_training.RunActions()
  with pytest.raises(KeyboardInterrupt):
    run_study(first, log=print, actions=fake_training.RunActions(until_kept, real.certify))
  latest = json.loads(storage.read_bytes(f"{URL}/runs/dense-s0/latest.json"))
  second, steps = open_(URL), []
  report = lambda task, progress: steps.append(progress.step)  # noqa: E731
  (done,) = run_study(second, log=print, on_log=report, actions=real)
  assert done.status == "done" and steps[0] == latest["step"] + 1 == 11
  whole = tmp_path / "whole"
  (plan,) = second.comparisons[0].plan.arms
  loop.train_arm(loaded, plan, store, whole)
  there = json.loads(storage.read_bytes(f"{URL}/runs/dense-s0/result.json"))
  assert there["validation"] == json.loads((whole / "result.json").read_text())["validation"]
  certificate = json.loads(storage.read_bytes(f"{URL}/runs/dense-s0/certificate.json"))
  assert certificate["passed"]
