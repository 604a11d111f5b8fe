"""The command on a run that `train` made, and items of our own."""

import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.data.chat_template import template_for
from moe_parity.downstream import likelihood
from moe_parity.downstream.examinee import Examinee, Settings
from moe_parity.downstream.likelihood import Likelihood
from moe_parity.report import downstream as report
from tests.helpers import fake_study, olmes_package
from tests.helpers.full_pass import log_probabilities

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return trained(tmp_path_factory.mktemp("downstream") / "run", "moe_20")


def trained(folder, arm):
  few = ["--config.budget.dense_tokens=10000"]
  config = f"--config={ROOT}/configs/demo.py:tiny"
  assert cli.main(["train", config, f"--arm={arm}", f"--workdir={folder}", *few]) == 0
  return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
  return olmes_package.write(tmp_path_factory.mktemp("olmes"))


def examined(run, package, *options):
  return cli.main(["downstream", str(run), f"--olmes={package}", *options])


@pytest.fixture(scope="module")
def nats_by_hand(run):
  """(context, continuation) -> nats, from the logits of both at once."""
  examinee = Examinee(run, Settings(context=128))
  of_text = log_probabilities(examinee, 128)

  def nats(context, continuation):
    one, other = examinee.tokenizer.encode_batch([context, continuation])
    ids = np.concatenate([[examinee.tokenizer.bos_id], one, other]).astype(np.int32)
    return -of_text(ids)[np.arange(len(one), len(ids) - 1), other].sum()

  return nats


def test_choices_are_scored_as_by_hand(run, package, nats_by_hand, capsys):
  assert examined(run, package, "--tasks=zoo_rc_0shot", "--context=128", "--json") == 0
  (result,) = json.loads(capsys.readouterr().out)
  right, bits = [], []
  for context, choices, gold in olmes_package.CHOICES:
    nats = np.array([nats_by_hand(context, text) for text in choices])
    right.append(np.argmin(nats / [len(text) for text in choices]) == gold)
    bits.append(nats[gold] / math.log(2) / len(choices[gold].encode()))
  score = result["scores"]["accuracy_per_char"]
  assert score["value"] == np.mean(right)
  assert score["interval"][0] <= score["value"] <= score["interval"][1]
  assert score["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 4) / 4)
  assert result["scores"]["bits_per_byte"]["value"] == pytest.approx(np.mean(bits), rel=1e-5)
  assert result["metric"] == "accuracy_per_char" and result["num_items"] == 4


def test_a_result_is_found_again_and_not_for_other_settings(run, package, capsys):
  options = ["--tasks=gsm8k_gold_bpb_5shot", "--json"]
  assert examined(run, package, *options) == 0
  first = capsys.readouterr()
  assert examined(run, package, *options) == 0
  again = capsys.readouterr()
  assert again.out == first.out and "examined before" in again.err
  assert examined(run, package, *options, "--limit=1") == 0
  other = capsys.readouterr()
  assert "examined before" not in other.err and json.loads(other.out)[0]["num_items"] == 1


def test_prompts_that_do_not_fit_are_counted_and_said(run, package, capsys):
  """64 positions of bytes hold the longest question and answer but for a few."""
  assert examined(run, package, "--tasks=zoo_rc_0shot", "--limit=4") == 0
  shown = capsys.readouterr()
  assert "the window is shorter than the prompts of" not in shown.err
  assert examined(run, package, "--tasks=zoo_rc_0shot", "--context=30") == 0
  assert "the window is shorter than the prompts of 4 of 4 items; " in capsys.readouterr().err


def test_an_interrupted_task_resumes_where_it_was(run, package, monkeypatch, capsys):
  options = ["--tasks=zoo_rc_0shot", "--context=100", "--json"]
  whole = Likelihood._score_batch
  calls = []

  def interrupted(self, pieces, rows, size, scores):
    if calls:
      raise KeyboardInterrupt
    calls.append(len(rows))
    whole(self, pieces, rows, size, scores)

  monkeypatch.setattr(likelihood, "TOKENS_PER_BATCH", {"cpu": 256})  # several batches
  monkeypatch.setattr(Likelihood, "_score_batch", interrupted)
  assert examined(run, package, *options) == 130
  monkeypatch.setattr(Likelihood, "_score_batch", whole)
  capsys.readouterr()
  assert examined(run, package, *options) == 0
  shown = capsys.readouterr()
  assert f"zoo_rc_0shot resumes: {calls[0]} of 12 requests scored" in shown.err
  resumed = json.loads(shown.out)[0]["scores"]
  for path in (run / "downstream").glob("zoo*"):
    path.unlink()
  assert examined(run, package, *options) == 0
  assert json.loads(capsys.readouterr().out)[0]["scores"] == resumed


def test_numbers_that_are_generated_are_compared(run, package, capsys):
  assert examined(run, package, "--tasks=gsm8k_generate_5shot", "--json") == 0
  (result,) = json.loads(capsys.readouterr().out)
  assert result["scores"]["exact_number"]["value"] in (0.0, 0.5, 1.0)
  assert len(result["texts"]) == 2 and all("\n" not in text for text in result["texts"])


def test_a_chat_asks_in_the_template_of_the_run(run, package, tmp_path, capsys):
  """The question is the user's turn; the likelihood is of the answer after the assistant's mark."""
  shutil.copytree(run, tmp_path / "chats", ignore=shutil.ignore_patterns("downstream"))
  plain = Examinee(tmp_path / "chats", Settings(context=128))
  template = template_for(plain.tokenizer)
  template.save(tmp_path / "chats")
  options = ["--tasks=gsm8k_gold_bpb_5shot", "--context=128", "--chat", "--json"]
  assert examined(tmp_path / "chats", package, *options) == 0
  (result,) = json.loads(capsys.readouterr().out)
  bits = []
  for context, text in olmes_package.GOLD:
    asked = template.encode_prompt(plain.tokenizer, [{"role": "user", "content": context}])
    answer = plain.tokenizer.encode_batch([text.lstrip(" ")])[0].astype(np.int32)
    nats = plain.likelihood.score([likelihood.Continuation(asked, answer)]).nats[0]
    bits.append(nats / math.log(2) / len(text.lstrip(" ").encode()))
  assert result["scores"]["bits_per_byte"]["value"] == pytest.approx(np.mean(bits))
  assert examined(run, package, "--tasks=gsm8k_gold_bpb_5shot", "--chat") == 2
  assert "has no chat_template.json, so it was not fine-tuned" in capsys.readouterr().err


@pytest.mark.parametrize(
  "options, message",
  [
    (["--tasks=zoo_rc_0sho"], "did you mean 'zoo_rc_0shot'?"),
    (["--tasks=drop_bpb_5shot"], "drop_bpb_5shot is not scored: its answers are Python tuples"),
    (["--suite=smal"], "--suite=smal is not one of small, olmes.* did you mean 'small'?"),
    ([], "nothing to examine on; give --tasks=NAME"),
    (["--tasks=zoo_rc_0shot", "--limit=-1"], "limit=-1 is negative"),
    (["--tasks=zoo_rc_0shot", "--num-fewshot=5"], "num_fewshot=5 is for tasks of lm-eval, and"),
    (["--tasks=zoo_rc_0shot", "--num-fewshot=-5"], "num_fewshot=-5 is negative; use 0"),
    (["--tasks=zoo_rc_0shot", "--step=3"], "holds no checkpoint of step 3"),
    (["--tasks=zoo_rc_0shot", "--olmes=nowhere"], "--olmes=nowhere holds no oe_eval_tasks"),
  ],
)
def test_a_mistake_is_one_line(run, package, capsys, options, message):
  assert examined(run, package, *options) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert re.search(message.replace("?", "[?]"), error)


def test_another_tokenizer_is_refused(run, package, tmp_path, capsys):
  own = Examinee(run, Settings()).tokenizer
  description = json.loads(json.dumps(own.description))
  description["model"]["vocab"]["zz"] = own.vocab_size
  (tmp_path / "other.json").write_text(json.dumps(description))
  options = ["--tasks=zoo_rc_0shot", f"--tokenizer={tmp_path}/other.json"]
  assert examined(run, package, *options) == 2
  assert "has 273 ids and the run's vocabulary 272; give the tokenizer" in capsys.readouterr().err


def test_a_run_without_checkpoint_is_refused(run, package, tmp_path, capsys):
  shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
  assert examined(tmp_path / "bare", package, "--tasks=zoo_rc_0shot") == 2
  assert "holds no checkpoint; train the run first" in capsys.readouterr().err


def test_an_imported_model_is_examined_as_the_run_is(run, package, tmp_path, capsys):
  pytest.importorskip("safetensors")
  assert cli.main(["export", str(run), f"--out={tmp_path}/hf"]) == 0
  assert cli.main(["import", f"{tmp_path}/hf", f"--out={tmp_path}/back"]) == 0
  capsys.readouterr()
  shown = []
  for folder in (run, tmp_path / "back"):
    assert examined(folder, package, "--tasks=zoo_rc_0shot", "--json") == 0
    told = capsys.readouterr()
    shown.append(json.loads(told.out)[0]["scores"])
  assert shown[0] == shown[1]
  assert "its training text is not known" in told.err


def test_the_list_names_every_benchmark_and_why_not(package, capsys):
  assert cli.main(["downstream", "--list", f"--olmes={package}", "--json"]) == 0
  shown = json.loads(capsys.readouterr().out)
  assert "zoo_rc_0shot" in shown["tasks"] and len(shown["benchmarks"]) == 29
  assert all(row["here"] == "yes" or row["tasks, or why not"] for row in shown["benchmarks"])


@pytest.fixture(scope="module")
def study(run, tmp_path_factory):
  """The run and a dense one as a study."""
  folder = tmp_path_factory.mktemp("study")
  arms = [{"name": n, "seed": 0, "status": "done", "error": ""} for n in ("dense", "moe_20")]
  fake_study.dump(folder / "study.json", fake_study.study_info(arms))
  fake_study.dump(folder / "plan.json", {"budget": fake_study.BUDGET, "arms": []})
  ignored = shutil.ignore_patterns("downstream")
  shutil.copytree(run, folder / "runs" / "moe_20-s0", ignore=ignored)
  trained(folder / "runs" / "dense-s0", "dense")
  return folder


def test_a_study_is_compared_and_its_items_looked_for(study, package, capsys):
  tasks = "--tasks=zoo_rc_0shot,gsm8k_gold_bpb_5shot"
  assert examined(study, package, tasks) == 0
  shown = capsys.readouterr()
  assert "pretrained: MoE minus dense" in shown.out and "one seed" in shown.out
  assert "zoo_rc_0shot: 0 of 4 items share 13 words in a row" in shown.err
  found = json.loads((study / "downstream.json").read_text())
  rows = found["states"]["pretrained"]["comparisons"]
  score = {
    (row["arm"], row["scale"], row["label"]): row["score"]
    for row in found["states"]["pretrained"]["scores"]
  }
  for row in rows:
    of = row["scale"], row["label"]
    assert row["difference"] == pytest.approx(score["moe_20", *of] - score["dense", *of])
  assert {row["label"] for row in rows} >= {"zoo_rc_0shot", "math", "all tasks"}
  assert found["contamination"]["moe_20 (seed 0)"]["zoo_rc_0shot"]["num_items"] == 4


def test_runs_of_a_study_that_are_not_finished_are_named(package, tmp_path, capsys):
  statuses = {"moe_10": "pending", "moe_17": "running", "dense": "failed"}
  study = fake_study.write_study(tmp_path / "study", fake_study.Fake(statuses=statuses))
  assert examined(study, package, "--tasks=zoo_rc_0shot") == 2  # the others have no weights
  said = capsys.readouterr().err.splitlines()
  names = "dense (seed 0), moe_10 (seed 0), moe_17 (seed 0)"
  assert said[0] == f"not finished, so not examined: {names}"
  assert "is no run folder" in said[1] and len(said) == 2


def test_chats_of_a_study_are_for_its_fine_tuned_runs(study, package, tmp_path, capsys):
  options = ["--tasks=gsm8k_gold_bpb_5shot", "--context=128", "--no-contamination", "--chat"]
  assert examined(study, package, *options) == 2
  said = capsys.readouterr().err
  assert f"--chat: none of the 2 runs of {study} was fine-tuned on chats" in said
  assert "the `study` command again with --config.finetuning.data=CHATS" in said
  assert said.count("\n") == 1
  shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("downstream*"))
  tuned = tmp_path / "study/runs/moe_20-s0"
  template = template_for(Examinee(tuned, Settings()).tokenizer)
  template.save(tuned)
  assert examined(tmp_path / "study", package, *options, "--json") == 0
  shown = capsys.readouterr()
  assert "not fine-tuned on chats, so asked in plain text: dense (seed 0)\n" in shown.err
  asked = {row["run"]: row["key"]["chat"] for row in json.loads(shown.out)["results"]}
  assert asked == {"dense (seed 0)": "", "moe_20 (seed 0)": template.jinja()}


def test_the_report_shows_benchmarks_beside_the_paper(study, package, capsys):
  assert examined(study, package, "--tasks=zoo_rc_0shot", "--no-contamination") == 0
  found = report.read(study)
  drawing = report.figure_8(found)
  assert drawing is not None and "</svg>" in drawing.svg(6.6)
  text = report.table_2(found).markdown()
  assert "20.88" in text and "paper, 7B: dense, 2C" in text and "moe_20" in text
  tables = {made.name: made for made in report.all_tables(found)}
  (section,) = report.section(found, {"downstream": drawing}, tables)
  assert "RACE" in section.body and "was not counted" in section.body
  assert report.section({}, {}, {}) == [] and report.read(study / "runs") == {}
