"""Every trained arm of a study is fine-tuned by the same candidates on the same chats."""

import dataclasses
import json

import pytest

from moe_parity import files
from moe_parity.config import to_json
from moe_parity.errors import NotFiniteError, UserError
from moe_parity.planning.finetuning_plan import FinetuningPlan
from moe_parity.report import finetuning as page
from moe_parity.study import finetuning
from moe_parity.study.workers.multi_process import from_message, to_message
from moe_parity.study.workers.runner import run_study
from tests.helpers import chats, fake_training

ARMS = ["dense", "moe_20", "moe_30"]
CANDIDATES = ["lr0p1_e1", "lr0p1_e2", "lr0p3_e1", "lr0p3_e2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return chats.write(tmp_path_factory.mktemp("chats") / "chats.jsonl", chats.chats(90))


def config(data, **fields):
  made = fake_training.config(rates=(0.2, 0.3)).unlock()
  made.finetuning.data, made.finetuning.too_long, made.finetuning.epochs = data, "leave-out", (1, 2)
  made.finetuning.batch_sequences = 4
  for name, value in fields.items():
    made.finetuning[name] = value
  return made.lock()


def loss(arm):
  """Best at a third of the peak and two passes, but for dense, which wants a smaller step."""
  if not isinstance(arm, FinetuningPlan):
    return fake_training.bpc_of(arm)
  rate = arm.finetuning["learning_rate_multiple"]
  return 2.0 + (rate if arm.name == "dense" else -rate) - 0.01 * arm.epochs


def run(folder, made, **kwargs):
  study = fake_training.open_study(folder, made)
  lines = []
  actions = kwargs.pop("actions", None) or fake_training.actions(truth=loss, **kwargs)
  run_study(study, log=lines.append, actions=actions)
  return study, study.summarize_finetuning(), lines


def test_every_arm_tries_all_and_keeps_the_lowest(data, tmp_path):
  study, summary, _ = run(tmp_path / "s", config(data))
  assert summary == files.read_json(study.folder / "finetuning.json")
  assert summary["candidates"] == CANDIDATES and summary["complete"] and summary["passed"]
  kept = {arm["name"]: arm["chosen"] for arm in summary["chosen"]}
  assert kept == {"dense": "lr0p1_e2", "moe_20": "lr0p3_e2", "moe_30": "lr0p3_e2"}
  for arm in summary["arms"]:
    assert [row["candidate"] for row in arm["tried"]] == CANDIDATES
    assert (study.folder / arm["folder"] / "result.json").exists()
    assert arm["base"] == f"runs/{arm['name']}-s0"
  started = [name for _, name, _ in fake_training.started(study.folder)]
  assert started[:3] == ARMS and len(started) == 3 + 12


def test_arms_of_a_candidate_get_equal_examples_and_tokens(data, tmp_path):
  study, _, _ = run(tmp_path / "s", config(data))
  for name in CANDIDATES:
    folder = study.folder / "parts" / f"sft_{name}"
    arms = json.loads((folder / "plan.json").read_text())["arms"]
    assert [arm["name"] for arm in arms] == ARMS
    for field in ("num_tokens", "num_steps", "batch_sequences", "data_seed"):
      assert len({arm[field] for arm in arms}) == 1, field
    stated = [arm["finetuning"] for arm in arms]
    for field in ("num_examples", "num_scored_tokens", "chats_sha256", "learning_rate_multiple"):
      assert len({one[field] for one in stated}) == 1, field
    assert {one["base_sha256"] for one in stated} == {f"hash of {name}" for name in ARMS}
    checks = json.loads((folder / "certificate.json").read_text())["checks"]
    passed = {row["name"]: row["passed"] for row in checks}
    assert passed["fine-tuning: one value of num_examples"]


def test_an_arm_that_saw_other_examples_fails_the_certificate(data, tmp_path):
  from moe_parity.study.certificate import certify_study

  study, _, _ = run(tmp_path / "s", config(data))
  folder = study.folder / "parts" / "sft_lr0p1_e1"
  path = folder / "runs" / "moe_20-s0" / "certificate.json"
  value = json.loads(path.read_text())
  value["ledger"]["num_examples"] += 1
  path.write_text(json.dumps(value))
  summary = certify_study(folder)
  assert not summary["passed"]
  failed = [row["name"] for row in summary["checks"] if not row["passed"]]
  assert failed == ["fine-tuning: one value of num_examples"]
  assert study.summarize_finetuning()["passed"] is False


def test_only_arms_that_are_done_are_fine_tuned(data, tmp_path):
  study, summary, _ = run(tmp_path / "s", config(data), failing=("moe_20",))
  assert not summary["complete"] and summary["passed"] is not False
  assert [arm["name"] for arm in summary["chosen"]] == ["dense", "moe_30"]
  study, summary, _ = run(study.folder, config(data))  # the same command again
  assert summary["complete"] and summary["passed"]


def test_a_candidate_that_diverges_is_not_kept(data, tmp_path):
  plain = fake_training.actions(truth=loss)

  def train(config, arm, *rest):
    if isinstance(arm, FinetuningPlan) and arm.finetuning["learning_rate_multiple"] == 0.3:
      raise NotFiniteError("the loss is nan")
    return plain.train(config, arm, *rest)

  actions = dataclasses.replace(plain, train=train)
  _, summary, _ = run(tmp_path / "s", config(data), actions=actions)
  assert summary["complete"] and {arm["chosen"] for arm in summary["chosen"]} == {"lr0p1_e2"}


def test_chats_are_checked_before_any_arm_is_trained(tmp_path):
  (tmp_path / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
  with pytest.raises(UserError, match="line 1 has no assistant turn"):
    run(tmp_path / "s", config(str(tmp_path / "c.jsonl")))
  assert not fake_training.started(tmp_path / "s")
  with pytest.raises(UserError, match=r"finetuning\.epochs"):
    run(tmp_path / "s", config("builtin", epochs=(0,)))


def test_other_chats_are_another_study(data, tmp_path):
  study, _, _ = run(tmp_path / "s", config(data))
  other = chats.write(tmp_path / "other.jsonl", chats.chats(90, seed=4))
  with pytest.raises(UserError, match="holds another study"):
    run(study.folder, config(other))


def test_a_queue_says_what_fine_tuning_will_add(data, tmp_path):
  made = config(data)
  study = fake_training.open_study(tmp_path / "s", made)
  comparisons = study.derive(write=False)
  note = "then 12 runs more: fine-tuning of every arm on chats"
  assert finetuning.pending_note(made, comparisons) == note
  study, _, _ = run(tmp_path / "s", made)
  assert finetuning.pending_note(made, study.derive()) == ""


def test_other_processes_are_told_the_whole_plan(data, tmp_path):
  study, _, _ = run(tmp_path / "s", config(data))
  arm = study.comparisons[-1].plan.arms[1]
  message = to_message(study.config, arm, tmp_path, None)
  read_config, summary, folder, bucket = from_message(message)
  assert summary == arm and folder == tmp_path and bucket is None
  assert to_json(read_config)["finetuning"] == to_json(study.config)["finetuning"]


def test_the_page_lists_what_was_kept(data, tmp_path):
  study, summary, _ = run(tmp_path / "s", config(data))
  assert page.section(page.read(tmp_path)) == []
  (section,) = page.section(page.read(study.folder))
  for words in (*CANDIDATES, "Certificate: passed", "moe_30"):
    assert words in section.body
  assert len(page.finetuned(summary).rows) == 3
