"""Workers on one study folder: no arm twice, none forgotten, whatever is killed."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
import types

import pytest

from moe_parity.commands.study import chosen_runs
from moe_parity.defaults import moe_arm
from moe_parity.errors import UserError
from moe_parity.study.folder import Arm, tasks_of
from moe_parity.study.workers import runner
from moe_parity.study.workers.leaving import exit_code
from moe_parity.study.workers.runner import run_study
from moe_parity.study.workers.shard import Shard
from tests.helpers import fake_training
from tests.helpers.workers import Patience

ARMS = ["dense", "moe_20", "moe_30", "moe_40", "moe_50"]


SPAWN = multiprocessing.get_context("spawn")


def work(folder, shard, hanging=(), meeting=None):
  """A worker; at a `meeting` its first training waits until each other worker began one too."""
  study = fake_training.open_study(folder)
  actions = fake_training.actions(hanging=hanging)
  real, met = actions.train, []

  def train(*args):
    if meeting and not met:
      met.append(meeting.wait(600))
    real(*args)

  actions = dataclasses.replace(actions, train=train)
  run_study(study, shard=Shard.parse(shard), log=lambda line: None, actions=actions)


def spawn(*args, **kwargs):
  process = SPAWN.Process(target=work, args=args, kwargs=kwargs)
  process.start()
  return process


def wait_for(folder, arm, worker):
  patience = Patience([worker])
  while arm not in [name for _, name, _ in fake_training.started(folder)]:
    assert worker.is_alive() and not patience.is_over(), f"{arm} was not begun"
    time.sleep(0.05)


def final(folder):
  """Everything of a study that must not depend on how it came about."""
  info = json.loads((folder / "study.json").read_text())
  results = {p.parent.name: p.read_text() for p in sorted(folder.glob("runs/*/result.json"))}
  return info["arms"], (folder / "plan.json").read_text(), results


def run(folder, **kwargs):
  lines = []
  study = fake_training.open_study(folder, kwargs.pop("config", None))
  kwargs.setdefault("actions", fake_training.actions())
  arms = run_study(study, log=lines.append, **kwargs)
  return {arm.name: (arm.status, arm.error) for arm in arms}, lines


def test_two_workers_train_every_arm_once_and_share_the_work(tmp_path):
  meeting = SPAWN.Barrier(2)
  workers = [spawn(tmp_path / "s", f"{i}/2", meeting=meeting) for i in (1, 2)]
  for worker in workers:
    worker.join()
  begun = fake_training.started(tmp_path / "s")
  assert sorted(name for _, name, _ in begun) == ARMS
  assert len({pid for pid, _, _ in begun}) == 2
  run(tmp_path / "alone")
  assert final(tmp_path / "s") == final(tmp_path / "alone")


def with_another_worker(folder, made, monkeypatch, then, **kwargs):
  """Runs a worker while another has moe_40. `then(seen, task, study, lease, actions)` is what
  happens at each of its waits.

  Returns:
    what each of its waits found trained, the arms, what it logged.
  """
  other = fake_training.open_study(folder, made)
  task = next(task for task in tasks_of(other.derive()) if task.label == "moe_40")
  other.leases.process = dataclasses.replace(other.leases.process, boot="another")
  lease, actions, seen = other.leases.acquire(task.run), fake_training.actions(), []
  worker, lines = fake_training.open_study(folder, made, **kwargs), []

  def wait(seconds):
    seen.append([(name, seed) for _, name, seed in fake_training.started(folder)])
    assert len(seen) < 5, "waits with nothing to wait for"
    then(seen, task, worker, lease, actions)

  monkeypatch.setattr(runner, "time", types.SimpleNamespace(sleep=wait))
  arms = run_study(worker, log=lines.append, actions=actions)
  lease.release("stopped")
  return seen, arms, lines


def staged():
  """A study whose second seeds depend on what the first ones score."""
  made = fake_training.config(rates=()).unlock()
  made.arms.moe = moe_arm(num_layers=2, d_model=32, d_head=16, multiple_of=4)
  made.study.update(method="activation_rate", activation_rates=(0.2, 0.3, 0.4, 0.5))
  made.study.update(more_seeds=(1,), compute_multiples=(), controls=False)
  return made.lock()


def finish(task, study, lease, actions):
  """Another worker ends its run."""
  run = task.comparison.config, task.arm, study.store, study.folder / task.run
  actions.train(*run, None, None, None)
  actions.certify(study.folder / task.run)
  lease.release("done")


def test_a_worker_of_a_study_in_stages_waits_for_others(tmp_path, monkeypatch):
  def finish_at_second_wait(seen, *other):
    if len(seen) == 2:
      finish(*other)

  seen, arms, _ = with_another_worker(tmp_path, staged(), monkeypatch, finish_at_second_wait)
  first = {("dense", 0), ("dense", 1), ("moe_20", 0), ("moe_30", 0), ("moe_50", 0)}
  assert len(seen) == 2 and seen[0] == seen[1] and set(seen[0]) == first
  assert {arm.status for arm in arms} == {"done"}
  begun = [(name, seed) for _, name, seed in fake_training.started(tmp_path)]
  assert len(begun) == len(set(begun)) == len(arms)
  assert set(begun) - first == {("moe_40", 0), ("moe_20", 1), ("moe_30", 1), ("moe_40", 1)}


def test_a_stage_that_ends_between_two_looks_is_followed(tmp_path, monkeypatch):
  """The last run of a stage was another's when the worker planned, and done when it looked whether
  to wait: the worker left, and trained nothing of the next stage."""
  must_wait, once = runner._Worker.must_wait, []

  def finish_then_look(self, tasks):
    if once:
      finish(*once.pop())
    return must_wait(self, tasks)

  def begin(seen, *other):
    if len(seen) == 1:
      once.append(other)

  monkeypatch.setattr(runner._Worker, "must_wait", finish_then_look)
  seen, arms, _ = with_another_worker(tmp_path, staged(), monkeypatch, begin)
  assert len(seen) == 1 and {arm.status for arm in arms} == {"done"}
  assert {arm.name for arm in arms if arm.seed} == {"dense", "moe_20", "moe_30", "moe_40"}


def test_a_worker_leaves_a_run_to_another_that_lives(tmp_path, monkeypatch):
  def beat_at_third_wait(seen, task, study, lease, actions):
    if len(seen) == 3:
      lease._renew({})

  made = fake_training.config()
  seen, arms, lines = with_another_worker(tmp_path, made, monkeypatch, beat_at_third_wait)
  assert len(seen) == 3
  assert {arm.name for arm in arms if arm.status == "running"} == {"moe_40"}
  assert {arm.name for arm in arms if arm.status == "done"} == {*ARMS} - {"moe_40"}
  assert lines[-1] == "moe_40: with another worker; waiting for a sign of life from it"


def test_a_run_stopped_between_two_looks_is_taken(tmp_path, monkeypatch):
  """It was running when there was none to train, stopped when the worker looked whether to wait:
  the worker left, and the run was nobody's until the next start."""

  other = fake_training.open_study(tmp_path)
  run = next(task.run for task in tasks_of(other.derive()) if task.label == "moe_40")
  other.leases.process = dataclasses.replace(other.leases.process, boot="another")
  held, waits = [other.leases.acquire(run)], []
  worker = fake_training.open_study(tmp_path)
  must_wait = runner._Worker.must_wait

  def stop_then_look(self, tasks):
    while held:
      held.pop().release("stopped")
    return must_wait(self, tasks)

  monkeypatch.setattr(runner._Worker, "must_wait", stop_then_look)
  monkeypatch.setattr(runner, "time", types.SimpleNamespace(sleep=waits.append))
  arms = run_study(worker, log=lambda line: None, actions=fake_training.actions())
  assert {arm.status for arm in arms} == {"done"} and len(waits) == 1


def test_a_worker_takes_over_before_it_leaves_nobody(tmp_path, monkeypatch):
  """At e810754 it left at once, with exit 0, and moe_40 was nobody's."""

  def let_time_pass(seen, task, study, lease, actions):
    now = study.leases.clock()
    study.leases.clock = lambda: now + 150

  made = fake_training.config()
  seen, arms, lines = with_another_worker(tmp_path, made, monkeypatch, let_time_pass)
  assert {arm.status for arm in arms} == {"done"}
  assert any("gave no sign of life for 30" in line for line in lines)


def test_a_worker_takes_its_former_lifes_run_back(tmp_path, monkeypatch):
  first = fake_training.open_study(tmp_path, worker="w-1")
  first.leases.process = dataclasses.replace(first.leases.process, boot="another", host="b")
  run = next(task.run for task in tasks_of(first.derive()) if task.label == "moe_40")
  first.leases.acquire(run)
  states, lines = run_named(tmp_path, "w-1", monkeypatch)
  assert set(states.values()) == {("done", "")}
  assert "moe_40: worker w-1 was this worker's former life; taking its run over" in lines


def run_named(folder, worker, monkeypatch):
  """A worker of a name that never has to wait."""

  def wait(seconds):
    raise AssertionError("waits with nothing to wait for")

  monkeypatch.setattr(runner, "time", types.SimpleNamespace(sleep=wait))
  lines = []
  study = fake_training.open_study(folder, worker=worker)
  arms = run_study(study, log=lines.append, actions=fake_training.actions())
  return {arm.name: (arm.status, arm.error) for arm in arms}, lines


def test_a_run_lost_to_another_is_left_and_does_not_fail(tmp_path):
  study = fake_training.open_study(tmp_path)
  real, lost = fake_training.actions(), []

  def train(config, arm, store, folder, on_log, log, control):
    if arm.name == "moe_20" and not lost:
      lost.append(key := folder.relative_to(tmp_path).as_posix())
      thief = {"state": "stopped", "token": "another's"}
      study.leases._write(key, thief, study.leases._read(key)[1])
      control.check_owner()
    real.train(config, arm, store, folder, on_log, log, control)

  lines = []
  arms = run_study(study, log=lines.append, actions=real.__class__(train, real.certify))
  assert {arm.status for arm in arms} == {"done"}  # the thief stopped, so it is free again
  assert [line for line in lines if "took this run over" in line] == [
    "moe_20: runs/moe_20-s0: another worker took this run over; this one leaves it"
  ]
  assert not list(tmp_path.glob("runs/*/failed.txt"))


def test_a_study_with_leases_in_an_old_folder_resumes(tmp_path):
  run(tmp_path, only=["dense"])
  (tmp_path / "leases").rename(tmp_path / "claims")
  old = {"state": "running", "host": "b", "pid": 7, "since": 1.0, "beat": 1.0}
  (tmp_path / "claims/runs/moe_20-s0").write_text(json.dumps(old))
  study = fake_training.open_study(tmp_path)
  study.derive()
  assert {arm.name for arm in study.write() if arm.status == "running"} == {"moe_20"}
  assert not (tmp_path / "leases").exists()


def test_a_study_planned_under_a_former_field_name_resumes(tmp_path):
  fake_training.open_study(tmp_path).derive()
  path = tmp_path / "plan.json"
  plan = json.loads(path.read_text())
  plan["budget"]["shared"] = plan["budget"].pop("held_fixed")
  del plan["content_sha256"]  # which files of that time had not
  path.write_text(json.dumps(plan))
  arms, _ = run(tmp_path, only=["dense"])
  assert arms["dense"] == ("done", "")


def test_a_folder_another_worker_is_making_is_joined(tmp_path):
  being_made, other = tmp_path / "being_made", tmp_path / "other"
  for name in ("leases", "logs"):  # launchers write their logs there first
    (being_made / name).mkdir(parents=True)
  (being_made / "plan.json.12ab34cd.tmp").write_text("{")
  fake_training.open_study(being_made, None)
  other.mkdir()
  (other / "plan.jsonl").write_text("")
  with pytest.raises(UserError, match="is not empty and holds no study"):
    fake_training.open_study(other, None)


def test_a_killed_worker_costs_only_the_arm_it_was_at(tmp_path):
  worker = spawn(tmp_path, "1/1", hanging=("moe_30",))
  wait_for(tmp_path, "moe_30", worker)
  os.kill(worker.pid, signal.SIGKILL)
  worker.join()
  states, lines = run(tmp_path)
  assert set(states.values()) == {("done", "")}
  assert [line for line in lines if line.startswith("moe_30: ") and "taking its run over" in line]
  begun = [name for _, name, _ in fake_training.started(tmp_path)]
  assert sorted(begun) == sorted([*ARMS, "moe_30"])


def test_a_failed_arm_is_recorded_and_tried_at_the_next_start(tmp_path):
  broken = fake_training.actions(failing=("moe_20",))
  states, lines = run(tmp_path, actions=broken)
  assert states == dict.fromkeys(ARMS, ("done", "")) | {"moe_20": ("failed", "moe_20 broke")}
  assert any(line == "moe_20 failed: moe_20 broke" for line in lines)
  assert "RuntimeError" in (tmp_path / "runs/moe_20-s0/failed.txt").read_text()
  assert len(fake_training.started(tmp_path)) == len(ARMS)
  assert run(tmp_path)[0]["moe_20"] == ("done", "")
  assert len(fake_training.started(tmp_path)) == len(ARMS) + 1


def test_an_interrupted_arm_is_free_for_the_next_worker(tmp_path):
  def interrupt(*args):
    raise KeyboardInterrupt

  actions = fake_training.actions()
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, actions=dataclasses.replace(actions, train=interrupt))
  states, lines = run(tmp_path)
  assert set(states.values()) == {("done", "")} and [line.split(":")[0] for line in lines] == list(
    ARMS
  )


def test_closed_output_stops_the_worker_and_fails_no_arm(tmp_path):
  def into_a_closed_pipe(*args):
    raise BrokenPipeError

  actions = fake_training.actions()
  with pytest.raises(BrokenPipeError):
    run(tmp_path, actions=dataclasses.replace(actions, train=into_a_closed_pipe))
  study = fake_training.open_study(tmp_path)
  study.derive()
  assert {arm.status for arm in study.write()} == {"pending"}


def test_only_trains_the_arms_that_were_named(tmp_path):
  states, _ = run(tmp_path, only=["moe_40", "dense"])
  assert {name for name, (status, _) in states.items() if status == "done"} == {"moe_40", "dense"}
  with pytest.raises(UserError, match="--only=moe_4: the plan's arms are dense, moe_20"):
    run(tmp_path, only=["moe_4"])


def test_one_job_a_run_trains_that_run_alone(tmp_path):
  states, _ = run(tmp_path, runs=["runs/moe_20-s0"])
  assert {name for name, (status, _) in states.items() if status == "done"} == {"moe_20"}


def test_the_number_of_a_run_is_checked(tmp_path):
  study = fake_training.open_study(tmp_path)
  choose = lambda k: chosen_runs(types.SimpleNamespace(run_number=k), study, [])  # noqa: E731
  assert choose(None) == [] and choose(1) == ["runs/moe_20-s0"]
  for k in (-1, 5):
    with pytest.raises(UserError, match=f"--run={k}: the runs are 0 to 4"):
      choose(k)


@pytest.mark.parametrize(
  "states, passed, code",
  [
    (["done", "done"], True, 0),
    (["done", "running"], None, 0),
    (["done", "pending"], None, 75),
    (["failed", "pending"], None, 1),
    (["done"], False, 1),
  ],
)
def test_the_exit_code_says_what_an_engine_does_next(states, passed, code):
  arms = [Arm("a", n, f"runs/a-s{n}", state) for n, state in enumerate(states)]
  assert exit_code(arms, passed) == code
  assert exit_code(arms, passed, to_come=True) == (code or 75)
  # Nobody does what they wait for, so an engine must not start it again for ever.
  assert exit_code(arms, passed, to_come=True, is_alone=True) == (1 if code == 1 else 2)


def test_a_folder_with_another_plan_or_other_files_is_refused(tmp_path):
  run(tmp_path / "study", only=["dense"])
  with pytest.raises(UserError, match="holds another study"):
    run(tmp_path / "study", config=fake_training.config(rates=(0.2, 0.4)))
  (tmp_path / "other").mkdir()
  (tmp_path / "other/notes.txt").write_text("mine")
  with pytest.raises(UserError, match="is not empty"):
    run(tmp_path / "other")


def test_a_shard_begins_with_its_own_arms_and_then_helps():
  assert Shard.parse("2/3").order(list("abcdefg")) == list("beacdfg")
  orders = [Shard(i, 3).order(list("abcdefg")) for i in (1, 2, 3)]
  assert [sorted(order) for order in orders] == [list("abcdefg")] * 3
  assert len({order[0] for order in orders}) == 3


NO_SHARDS = ["", "2", "0/3", "4/3", "a/b", "1/2/3", "-1/2", "²/4", "1/²", "1/1e3", "1/" + "9" * 30]


@pytest.mark.parametrize("text", NO_SHARDS)
def test_a_shard_that_is_none_is_refused(text):
  with pytest.raises(UserError, match="--shard="):
    Shard.parse(text)
