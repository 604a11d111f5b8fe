"""The last stage of a study on made-up training: every run is examined once, by some worker."""

import json

import numpy as np
import pytest

from moe_parity.downstream.exam import Exam
from moe_parity.downstream.results import ResultFile, Values, read_all, scores_of
from moe_parity.downstream.tasks import BenchmarkTask, Item
from moe_parity.errors import UserError
from moe_parity.study import examination
from moe_parity.study.workers.leases import Leases
from moe_parity.study.workers.runner import run_study
from tests.helpers import chats, fake_training, olmes_package
from tests.test_study_data_reuse import config as reuse_config

ITEM = Item("0", ("q",), ("a", "b"))


class Examiner:
  """Stands for `Examinee` and `examine_run`: scores nothing, and notes who was examined."""

  def __init__(self, monkeypatch, failing=()):
    self.examined, self.failing = [], failing
    monkeypatch.setattr(examination, "Examinee", lambda folder, settings: (folder, settings))
    monkeypatch.setattr(examination, "examine_run", self.examine)

  def examine(self, examinee, exam, report, chats_of):
    folder, settings = examinee
    self.examined.append((folder.parts[-3:], settings.chat))
    if folder.name in self.failing:
      raise UserError(f"{folder.name} has weights that are not finite")
    values = Values(("0", "1"), {"accuracy": np.array([1.0, 0.0])})
    place = ResultFile(folder, "zoo", {"checkpoint": str(folder), "chat": settings.chat})
    result = {
      "task": "zoo", "metric": "accuracy", "category": "reasoning", "source": "test",
      "benchmark": "", "kind": "choices", "num_shots": 0, "num_items": 2, "num_items_of_task": 2,
      "seconds": 0.1, "scores": scores_of(values, {"accuracy": 0.5}),
    }  # fmt: skip
    return [place.write(result, values) | {"contamination": {}}]


def exam(name="zoo"):
  return Exam((BenchmarkTask(name, "test", "choices", "accuracy", 0, (ITEM,)),))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Dense and three MoE arms under strict and unique reuse, each fine-tuned by one candidate."""
  folder = tmp_path_factory.mktemp("trained")
  made = reuse_config(reuse_schemes=("unique",), epochs=()).unlock()
  made.finetuning.data = chats.write(folder / "chats.jsonl", chats.chats(90))
  made.finetuning.too_long, made.finetuning.batch_sequences = "leave-out", 4
  made.finetuning.learning_rates, made.finetuning.epochs = (0.3,), (1,)
  made.downstream.tasks, made.downstream.chat = ("zoo",), True
  made = made.lock()

  def study(where=folder / "s", **kwargs):
    return fake_training.open_study(where, made, **kwargs)

  whole = study()
  run_study(whole, log=lambda line: None, actions=fake_training.actions())
  whole.summarize()
  whole.summarize_finetuning()
  return study


@pytest.fixture
def study(trained, tmp_path):
  """A copy of the trained study that a test may examine."""
  import shutil

  shutil.copytree(trained().folder, tmp_path / "s")
  copy = trained(tmp_path / "s")
  copy.derive()
  return copy


def test_fine_tuned_runs_begin_with_those_of_their_scheme(study):
  told = json.loads((study.folder / "finetuning.json").read_text())
  pairs = {(row["base"], row["folder"]) for row in told["chosen"]}
  assert ("runs/dense-s0", "parts/sft_lr0p3_e1/runs/dense-s0") in pairs
  assert ("parts/unique/runs/moe_20-s0", "parts/sft_unique.lr0p3_e1/runs/moe_20-s0") in pairs
  assert len(pairs) == 7 and told["complete"] and told["passed"]
  reuse = json.loads((study.folder / "data_reuse.json").read_text())
  assert [scheme["part"] for scheme in reuse["schemes"]] == ["", "unique"]


def test_every_pretrained_and_kept_run_is_examined_once(study, monkeypatch):
  examiner = Examiner(monkeypatch)
  told = examination.examine_study(study, exam(), lambda line: None)
  assert len(examiner.examined) == len(set(examiner.examined)) == 14 and not told["failed"]
  assert sum(chat for _, chat in examiner.examined) == 7  # fine-tuned ones are asked in chats
  for state, part in told["states"].items():
    names = {arm["name"].removeprefix("sft/") for arm in part["arms"]}
    assert names == {"dense", *(f"{scheme}moe_{rate}" for scheme in ("", "unique/")
                                for rate in (20, 30, 45))}, state  # fmt: skip
  assert json.loads((study.folder / "downstream.json").read_text())["states"] == told["states"]


def test_epochs_of_a_fine_tuned_arm_are_those_of_its_text(study, monkeypatch):
  Examiner(monkeypatch)
  states = examination.examine_study(study, exam(), lambda line: None)["states"]
  before, after = (
    {arm["name"].removeprefix("sft/"): arm["epochs"] for arm in states[state]["arms"]}
    for state in ("pretrained", "fine-tuned")
  )
  assert after == pytest.approx(before, rel=0.01)
  assert before["moe_20"] > 1.5 and before["unique/moe_20"] == 1


def test_the_same_command_examines_nothing_again(study, monkeypatch):
  examiner = Examiner(monkeypatch)
  first = examination.examine_study(study, exam(), lambda line: None)
  number = len(examiner.examined)
  assert examination.examine_study(study, exam(), lambda line: None) == first
  assert len(examiner.examined) == number
  results = read_all(study.folder / "runs/moe_20-s0")
  results[0]["path"].unlink()  # a result that was lost is made again
  examination.examine_study(study, exam(), lambda line: None)
  assert [folder[-1] for folder, _ in examiner.examined[number:]] == ["moe_20-s0"]


def test_other_tasks_are_another_examination(study, monkeypatch):
  examiner = Examiner(monkeypatch)
  examination.examine_study(study, exam(), lambda line: None)
  examination.examine_study(study, exam("another"), lambda line: None)
  assert len(examiner.examined) == 28
  monkeypatch.setattr(examination, "VERSION", 0)  # items were scored in another way
  examination.examine_study(study, exam("another"), lambda line: None)
  assert len(examiner.examined) == 42


def test_an_examination_that_fails_stops_no_other(study, monkeypatch):
  examiner = Examiner(monkeypatch, failing=("dense-s0",))
  lines = []
  told = examination.examine_study(study, exam(), lines.append)
  assert told["failed"] == ["dense (seed 0)", "sft/dense (seed 0)"]
  assert len(examiner.examined) == 14 and any("not finite" in line for line in lines)


def test_a_run_that_another_worker_examines_is_waited_for(study, monkeypatch):
  examiner = Examiner(monkeypatch)
  other = Leases(study.folder / "leases", worker="other")
  lease = other.acquire("downstream/runs/moe_30-s0")

  def finish(seconds):  # meanwhile the other is done with it
    assert lease is not None and (("s", "runs", "moe_30-s0"), False) not in examiner.examined
    lease.release("stopped")

  monkeypatch.setattr(examination.time, "sleep", finish)
  told = examination.examine_study(study, exam(), lambda line: None)
  assert len(examiner.examined) == 14 and not told["failed"]


def test_tasks_are_read_before_anything_is_trained(tmp_path):
  made = fake_training.config().unlock()
  assert examination.open_study_exam(made, tmp_path) is None
  made.downstream.olmes = str(olmes_package.write(tmp_path))
  made.downstream.tasks = ("zoo_rc_1shot",)
  with pytest.raises(UserError, match="did you mean 'zoo_rc_0shot'"):
    examination.open_study_exam(made, tmp_path)
  made.downstream.tasks = ("zoo_rc_0shot",)
  assert [t.name for t in examination.open_study_exam(made, tmp_path).tasks] == ["zoo_rc_0shot"]
