"""Two processes of this machine fine-tune as one run: `sft` against one process, and a study."""

import json
import pathlib

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.study.certificate import certify_run
from tests.helpers import chats
from tests.helpers.workers import end_all, start, world

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEW = ["--config.budget.dense_tokens=5000", "--config.evaluation.max_tokens=500"]
OPTIONS = ["--learning-rates=0.1,0.5", "--epochs=1", "--batch-sequences=4", "--too-long=leave-out"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """(folder of one process's fine-tuned run, of two processes', what the two said)."""
  folder = tmp_path_factory.mktemp("runs")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("MOE_PARITY_CACHE", str(folder / "cache"))
    config = f"--config={ROOT}/configs/demo.py:tiny"
    assert cli.main(["train", config, "--arm=moe_40", f"--workdir={folder}/base", *FEW]) == 0
    data = chats.write(folder / "chats.jsonl", chats.chats(60))
    command = ["sft", str(folder / "base"), "--data", data, *OPTIONS]
    assert cli.main([*command, f"--out={folder}/one"]) == 0
  two = [*command, f"--out={folder}/two", "--mesh=1,1,2"]
  ends = end_all(*(start(folder / "cache", *two, *place) for place in world(2)))
  for code, output in ends:
    assert code == 0, output
  return folder / "one", folder / "two", [output for _, output in ends]


def test_two_processes_choose_as_one_does(runs):
  one, two = (json.loads((folder / "finetuning.json").read_text()) for folder in runs[:2])
  assert one["chosen"] == two["chosen"]
  for expected, found in zip(one["candidates"], two["candidates"], strict=True):
    assert found["candidate"] == expected["candidate"]
    # Float32 sums in another order, which may tip a choice between experts that are nearly equal.
    np.testing.assert_allclose(found["cross_entropy"], expected["cross_entropy"], rtol=2e-3)


def test_two_processes_see_every_chat_once_a_pass(runs):
  one, two, _ = runs
  with np.load(one / "ledger.npz") as expected, np.load(two / "ledger.npz") as found:
    for name in expected.files:
      np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
  assert certify_run(two)["passed"]


def test_the_first_process_alone_reports_the_sweep(runs):
  first, second = runs[2]
  assert "lr0p5_e1" in first and "lr0p5_e1" not in second


def test_a_study_of_two_processes_fine_tunes_what_it_trained(tmp_path):
  data = chats.write(tmp_path / "chats.jsonl", chats.chats(60))
  study = [
    "study", f"--config={ROOT}/configs/demo.py:tiny", f"--workdir={tmp_path}/study",
    "--only=moe_20", *FEW, "--config.train.eval_every=0", "--config.budget.batch_multiple=4",
    "--config.budget.flops_tolerance=0.05", "--config.mesh.expert=2",
    f"--config.finetuning.data={data}", "--config.finetuning.learning_rates=(0.3,)",
    "--config.finetuning.epochs=(1,)", "--config.finetuning.too_long=leave-out",
    "--config.finetuning.batch_sequences=4",
  ]  # fmt: skip
  for code, output in end_all(*(start(tmp_path / "cache", *study, *place) for place in world(2))):
    assert code == 0, output
  (chosen,) = json.loads((tmp_path / "study" / "finetuning.json").read_text())["chosen"]
  assert (chosen["name"], chosen["seed"]) == ("moe_20", 0)
  run = tmp_path / "study" / chosen["folder"]
  score = json.loads((run / "result.json").read_text())["finetuning"]
  assert score["validation"]["cross_entropy"] < score["before"]["cross_entropy"]
  assert certify_run(run)["passed"]
