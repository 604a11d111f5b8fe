"""The command on a run that `train` made: what it leaves opens like any other run."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

import moe_parity as mp
from moe_parity import cli, files
from moe_parity.data.ledger import Ledger
from tests.helpers import chats, olmes_package

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEW = ["--config.budget.dense_tokens=10000", "--config.evaluation.max_tokens=2000"]
OPTIONS = ["--learning-rates=0.3", "--epochs=3", "--batch-sequences=4", "--too-long=leave-out"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sft") / "run"
  config = f"--config={ROOT}/configs/demo.py:tiny"
  assert cli.main(["train", config, "--arm=moe_20", f"--workdir={folder}", *FEW]) == 0
  return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return chats.write(tmp_path_factory.mktemp("chats") / "chats.jsonl", chats.chats(90))


@pytest.fixture(scope="module")
def tuned(run, data):
  assert cli.main(["sft", str(run), "--data", data, *OPTIONS, "--learning-rates=0.05,0.5"]) == 0
  return run / "sft"


def read(folder, name):
  return json.loads((folder / name).read_text())


def test_the_candidate_with_the_lowest_loss_is_kept(tuned):
  sweep = read(tuned, "finetuning.json")
  losses = {row["candidate"]: row["cross_entropy"] for row in sweep["candidates"]}
  assert set(losses) == {"lr0p05_e3", "lr0p5_e3"}
  assert losses[sweep["chosen"]] == min(losses.values())
  result = read(tuned, "result.json")
  assert result == read(tuned / "candidates" / sweep["chosen"], "result.json")
  score = result["finetuning"]
  assert score["validation"]["cross_entropy"] == losses[sweep["chosen"]]
  assert score["validation"]["cross_entropy"] < score["before"]["cross_entropy"]


def test_examples_and_tokens_are_certified(tuned):
  plan, certificate = read(tuned, "plan.json"), read(tuned, "certificate.json")
  assert certificate["passed"]
  rows = {row["name"]: row for row in certificate["checks"]}
  stated = plan["finetuning"]
  assert rows["chats: num_examples"]["measured"] == 3 * stated["num_examples"]
  assert rows["chats: num_scored_tokens"]["measured"] == 3 * stated["num_scored_tokens"]
  assert rows["num_tokens"]["measured"] == plan["num_tokens"]
  total = stated["num_examples"] + stated["num_validation_examples"]
  assert total + stated["num_too_long_left_out"] == 90 and stated["num_too_long_left_out"] > 0
  ledger = Ledger.load(tuned / "ledger.npz")
  assert (ledger.counts == 3).all()


def test_a_run_on_other_rows_fails_its_certificate(tuned, tmp_path):
  from moe_parity.study.certificate import certify_run

  folder = tmp_path / "run"
  shutil.copytree(tuned, folder, ignore=shutil.ignore_patterns("candidates", "lease"))
  with np.load(folder / "ledger.npz") as file:
    arrays = dict(file)
  arrays["num_examples"][0] += 1
  np.savez(folder / "ledger.npz", **arrays)
  failed = [row["name"] for row in certify_run(folder)["checks"] if not row["passed"]]
  assert failed == ["chats: num_examples"]


def test_it_answers_evaluates_exports_and_opens(tuned, capsys, tmp_path):
  command = ["generate", str(tuned), "--chat", "--prompt", "3? yes", "--max-tokens=5", "--json"]
  assert cli.main(command) == 0
  answer = json.loads(capsys.readouterr().out)[0]
  opened = mp.open_run(tuned)
  assert opened.generate("3? yes", max_tokens=5, chat=True).tokens == answer["tokens"]
  assert opened.generate("3? yes", max_tokens=5).tokens != answer["tokens"]
  assert opened.bpc == read(tuned, "result.json")["validation"]["bpc"]
  assert cli.main(["evaluate", str(tuned), "--max-tokens=2000", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["bpc"] == pytest.approx(opened.bpc, rel=1e-6)
  pytest.importorskip("safetensors")
  assert cli.main(["export", str(tuned), "--to=hf", f"--out={tmp_path}/hf"]) == 0
  assert "<|reserved_2|>" in read(tmp_path / "hf", "tokenizer_config.json")["chat_template"]
  assert cli.main(["import", f"{tmp_path}/hf", f"--out={tmp_path}/back"]) == 0
  assert read(tmp_path / "back", "chat_template.json") == read(tuned, "chat_template.json")
  capsys.readouterr()
  assert cli.main([command[0], f"{tmp_path}/back", *command[2:]]) == 0
  assert json.loads(capsys.readouterr().out)[0]["tokens"] == answer["tokens"]


def test_the_same_command_again_changes_nothing(tuned, run, data, capsys):
  before = (tuned / "result.json").read_bytes(), (tuned / "plan.json").read_bytes()
  assert cli.main(["sft", str(run), "--data", data, *OPTIONS, "--learning-rates=0.05,0.5"]) == 0
  assert before == ((tuned / "result.json").read_bytes(), (tuned / "plan.json").read_bytes())
  assert "certificate passed" in capsys.readouterr().out


def test_other_chats_in_the_same_folder_are_refused(tuned, run, capsys, tmp_path):
  other = chats.write(tmp_path / "other.jsonl", chats.chats(90, seed=5))
  assert cli.main(["sft", str(run), "--data", other, *OPTIONS]) == 2
  assert "lr0p05_e3 was trained with num_examples=" in capsys.readouterr().err


@pytest.mark.parametrize(
  "options, message",
  [
    (["--too-long=refuse"], r"are longer than the 64 positions .*chats.jsonl, line \d+\) tak"),
    (["--held-out=2"], r"finetuning.held_out=2.0 is above 1; give a number, over 0 and under 1"),
    (["--epochs=0"], r"finetuning.epochs=\(0,\) has 0, which is below 1; give a tuple"),
    (["--learning-rates=-1"], "finetuning.learning_rates=.* has -1.0, which is below 1e-06"),
    (["--learning-rates="], "leave no candidate"),
    (["--epochs=2,2"], "finetuning.epochs=.* names one value twice"),
    (["--batch-sequences=0"], "finetuning.batch_sequences=0 is below 1; give a whole number"),
    (["--template=nowhere.json"], "--template=nowhere.json: no such file"),
    (["--duplicates=drop"], r"finetuning.duplicates='drop' is not known; give refuse \| leave-out"),
    (["--mesh=2,2"], r"has 2 numbers; give three"),
    (["--mesh=9,1,1"], "8 are here"),
    (["--data=nowhere.jsonl"], "nowhere.jsonl is no file"),
  ],
)
def test_a_mistake_is_one_line(run, data, capsys, options, message, tmp_path):
  command = ["sft", str(run), "--data", data, f"--out={tmp_path}/out", *OPTIONS, *options]
  assert cli.main(command) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert re.search(message, error), error


def test_a_mesh_gives_the_losses_of_one_device(run, data, capsys, tmp_path):
  """Experts are sharded over two devices and padded to a whole number on each."""
  losses = []
  for mesh in ("1,1,1", "2,2,2"):
    few = [
      "--epochs=1",
      "--batch-sequences=8",
      f"--mesh={mesh}",
      f"--out={tmp_path}/{mesh}",
      "--json",
    ]
    assert cli.main(["sft", str(run), "--data", data, *OPTIONS, *few]) == 0
    out = capsys.readouterr().out
    losses.append(json.loads(out[out.index("{\n") :])["candidates"][0]["cross_entropy"])
  assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def spoilt(run, folder, **changes):
  """A copy of a run with other fields of a JSON file, or without the file (None)."""
  shutil.copytree(run, folder, ignore=shutil.ignore_patterns("sft", "checkpoints", "lease"))
  for name, change in changes.items():
    path = folder / f"{name}.json"
    if change is None:
      path.unlink()
    else:
      files.write_json(path, json.loads(path.read_text()) | change, seal=True)
  return folder


FINE_TUNED = {
  "learning_rate_multiple": 0.3, "num_examples": 3, "num_scored_tokens": 30, "num_chat_tokens": 60,
  "row_fill": 0.5, "num_validation_examples": 1, "num_duplicates_left_out": 0,
  "num_too_long_left_out": 0, "chats_sha256": "", "validation_chats_sha256": "", "template": {},
  "base_sha256": "", "base_step": 3, "base_num_tokens": 3, "base_num_unique_tokens": 3,
  "base_train_flops": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"plan": None}, r"is no run folder \(no plan.json\)"),
    ({"result": None}, "has not finished"),
    ({"certificate": None}, "has no certificate.json; run its"),
    ({"certificate": {"passed": False}}, "its certificate failed"),
    ({"plan": {"finetuning": FINE_TUNED}}, "was fine-tuned already"),
  ],
)
def test_a_run_that_cannot_be_tuned_is_refused(run, data, capsys, changes, message, tmp_path):
  folder = spoilt(run, tmp_path / "run", **changes)
  assert cli.main(["sft", str(folder), "--data", data, *OPTIONS]) == 2
  assert re.search(message, capsys.readouterr().err)
  assert not (folder / "sft").exists()


def test_a_checkpoint_that_is_not_the_certified_one_is_refused(run, data, capsys, tmp_path):
  folder = spoilt(run, tmp_path / "run")
  shutil.copytree(run / "checkpoints", folder / "checkpoints")
  path = next(p for p in (folder / "checkpoints").rglob("*") if p.name == "_CHECKPOINT_METADATA")
  path.write_text(path.read_text() + " ")
  assert cli.main(["sft", str(folder), "--data", data, *OPTIONS]) == 2
  assert "is not the checkpoint that was certified" in capsys.readouterr().err


def test_chat_with_a_pretrained_run_is_refused(run, capsys):
  assert cli.main(["generate", str(run), "--chat", "--prompt=a"]) == 2
  assert "was never trained on chats; fine-tune it" in capsys.readouterr().err


def test_chat_with_a_folder_that_is_no_run_says_that(tmp_path, capsys):
  assert cli.main(["generate", str(tmp_path / "nothing"), "--chat", "--prompt=a"]) == 2
  error = capsys.readouterr().err
  assert "never trained" not in error and "nothing" in error and error.count("\n") == 1


def test_a_fine_tuned_run_is_examined_like_any_other(tuned, tmp_path, capsys):
  """Its finetuning.json names one candidate, that of a study one for every arm."""
  package = olmes_package.write(tmp_path)
  options = [f"--olmes={package}", "--tasks=gsm8k_gold_bpb_5shot", "--json"]
  assert cli.main(["downstream", str(tuned), *options]) == 0
  (result,) = json.loads(capsys.readouterr().out)
  assert result["num_items"] == 2
