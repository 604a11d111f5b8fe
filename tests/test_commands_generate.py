"""The command on a run that `train` made."""

import json
import pathlib
import re
import shutil

import pytest

from moe_parity import cli, files
from tests.helpers.small_store import small_store

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("generate") / "run"
  few = ["--config.budget.dense_tokens=10000", "--config.train.save_every=4"]
  config = f"--config={ROOT}/configs/demo.py:tiny"
  assert cli.main(["train", config, "--arm=moe_20", f"--workdir={folder}", *few]) == 0
  return folder


def steps(folder):
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_prompts_are_continued_and_the_same_again_as_json(run, capsys, tmp_path):
  (tmp_path / "more.jsonl").write_text('{"prompt": "Call me "}\n"é"\n')
  command = ["generate", str(run), "--prompt", "The ", f"--prompts={tmp_path}/more.jsonl"]
  command += ["--max-tokens=7", "--temperature=0.9", "--top-k=60", "--top-p=0.95", "--seed=4"]
  assert cli.main(command) == 0
  out = capsys.readouterr().out
  assert cli.main([*command, "--json"]) == 0
  done = json.loads(capsys.readouterr().out)
  assert [c["prompt"] for c in done] == ["The ", "Call me ", "é"]
  assert out == "\n\n".join(c["prompt"] + c["text"] for c in done) + "\n"
  assert all(c["finish"] == "stop" or len(c["tokens"]) == 7 for c in done)


def test_any_checkpoint_and_any_mesh_will_do(run, capsys):
  first, *_, last = steps(run)

  def tokens(*options):
    assert cli.main(["generate", str(run), "--prompt=a", "--max-tokens=5", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)[0]["tokens"]

  newest = tokens()
  assert tokens(f"--step={last}") == newest == tokens("--fsdp=2", "--expert=4")
  assert len(tokens(f"--step={first}", "--dtype=bfloat16", "--context=300")) == 5


@pytest.mark.parametrize(
  "options, message",
  [
    (["--prompt=a", "--step=3"], "no checkpoint of step 3; there are those of"),
    ([], "there is no prompt; give --prompt="),
    (["--prompt=" + 70 * "a"], "prompt 1 of 71 tokens.* exceed the 64 positions"),
    (["--prompt=a", "--temperature=-1"], "temperature=-1.0 must be"),
    (["--prompt=a", "--dtype=float16"], "model.dtype='float16' is not known"),
    (["--prompts=nowhere.jsonl"], "--prompts=nowhere.jsonl is no file"),
    (["--prompt=a", "--data=9"], "9 devices and 8 are here"),
    (["--prompt=a", "--context=-1"], "context=-1 is negative"),
  ],
)
def test_a_mistake_is_one_line(run, capsys, options, message):
  assert cli.main(["generate", str(run), *options]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert re.search(message, error)


def test_what_is_not_a_prompt_is_named_by_its_line(run, capsys, tmp_path):
  for text, message in (
    ('"fine"\n{"text": "a"}\n', "line 2 is no prompt"),
    ("oh", "line 1 is not"),
  ):
    (tmp_path / "bad.jsonl").write_text(text)
    assert cli.main(["generate", str(run), f"--prompts={tmp_path}/bad.jsonl"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_checkpoints_stays_as_it_is(run, capsys, tmp_path):
  for name in ("plan.json", "config.json"):
    shutil.copy(run / name, tmp_path)
  assert cli.main(["generate", str(tmp_path), "--prompt=a"]) == 2
  assert "holds no checkpoint; train the run first" in capsys.readouterr().err
  assert not (tmp_path / "checkpoints").exists()


def test_another_tokenizer_is_refused(run, capsys, tmp_path):
  other = small_store(tmp_path, count=300, tokenizer="bpe:300").tokenizer
  other.save(tmp_path / "tokenizer.json")
  command = ["generate", str(run), "--prompt=a", f"--tokenizer={tmp_path}/tokenizer.json"]
  assert cli.main(command) == 2
  assert "has 300 ids and the run's vocabulary 272; give the tokenizer" in capsys.readouterr().err


def test_rotary_positions_end_where_training_did(run, capsys, tmp_path):
  folder = tmp_path / "rope"
  shutil.copytree(run, folder)
  config = json.loads((folder / "config.json").read_text())
  config["model"]["position"] = "rope"
  files.write_json(folder / "config.json", config, seal=True)
  assert cli.main(["generate", str(folder), "--prompt=a", "--context=65"]) == 2
  assert "context=65 exceeds the 64 positions of training" in capsys.readouterr().err
