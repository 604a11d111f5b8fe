import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from moe_parity import cli
from moe_parity.commands import plan
from moe_parity.report.table_formats import general, of_rows
from tests.helpers.small_store import small_store
from tests.helpers.workers import without_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_planning_loads_no_jax():
  plan = json.loads(without_jax("plan", f"--config={ROOT}/configs/paper_7b.py", "--json"))
  assert len(plan["arms"]) == 8
  for arm in plan["arms"]:  # all on one device, as the config has no mesh: more than any holds
    memory = arm["device_memory_bytes"]
    assert memory["parameters"] == 4 * arm["exact_num_params"] and memory["total"] > 100 * 2**30


def test_a_plan_gives_bytes_per_device_where_the_mesh_is_known(capsys):
  config = f"--config={ROOT}/configs/paper_2b.py:activation_rate=0.2"

  def held(*arguments):
    assert cli.main(["plan", config, "--config.budget.batch_multiple=8", *arguments, "--json"]) == 0
    return [arm["device_memory_bytes"] for arm in json.loads(capsys.readouterr().out)["arms"]]

  one, eight = held(), held("--config.mesh.fsdp=2", "--config.mesh.expert=4")
  for before, after in zip(one, eight, strict=True):
    assert before["parameters"] / 8 < after["parameters"] < before["parameters"] / 1.9
  assert held("--config.mesh.fsdp=-1") == [None, None]


def test_plan_prints_a_row_an_arm(capsys):
  assert cli.main(["plan", f"--config={ROOT}/configs/demo.py"]) == 0
  out = capsys.readouterr().out
  for name in ("dense", "moe_12", "moe_20", "moe_30", "moe_50", "dense_active", "dense_small"):
    assert name in out


def test_a_plan_takes_its_vocabulary_from_a_finished_store(tmp_path, capsys):
  store = small_store(tmp_path, count=300, tokenizer="bpe:300")
  overrides = [f"--config.data.source={tmp_path}/store", "--config.data.tokenizer=store"]
  command = ["plan", f"--config={ROOT}/configs/demo.py:tiny", "--config.budget.dense_tokens=5120"]
  assert cli.main([*command, *overrides, "--json"]) == 0
  plan = json.loads(capsys.readouterr().out)
  size = store.tokenizer.vocab_size
  assert {arm["architecture"]["vocab_size"] for arm in plan["arms"]} == {size} != {272}
  assert not any("assumed" in note for note in plan["notes"])
  assert cli.main([*command, "--config.data.tokenizer=store"]) == 0
  assert "not known before the token store is read" in capsys.readouterr().out


def test_a_plan_names_text_that_is_not_there(tmp_path, capsys):
  command = ["plan", f"--config={ROOT}/configs/demo.py:tiny"]
  source = f"--config.data.source=prose={tmp_path},code={tmp_path}/misspelt,gs://bucket/text"
  assert cli.main([*command, source]) == 0
  said = [line for line in capsys.readouterr().out.splitlines() if "not found" in line]
  assert said == [
    f"note: data.source: {tmp_path}/misspelt not found; `study` refuses that before training"
  ]
  assert cli.main(command) == 0
  assert "not found" not in capsys.readouterr().out


def test_a_plan_shows_what_the_papers_convention_hides(capsys):
  command = ["plan", f"--config={ROOT}/configs/demo.py", "--config.budget.convention=paper"]
  assert cli.main([*command, "--json"]) == 0
  plan = json.loads(capsys.readouterr().out)
  ratio = {arm["name"]: arm["costs"]["relative"]["executed_flops"] for arm in plan["arms"]}
  assert ratio["moe_12"] == pytest.approx(1.15, abs=0.01) and ratio["dense"] == 1
  (note,) = [note for note in plan["notes"] if "every matrix product" in note]
  assert "moe_12 1.15" in note and "moe_50" not in note
  assert cli.main(command) == 0
  assert "executed x dense" in capsys.readouterr().out


def test_account_prices_a_table_and_its_printed_values(tmp_path, capsys):
  path = tmp_path / "shapes.csv"
  path.write_text(
    "n_layers,n_dense_layers,d_model,d_ffn,n_heads,E,K,De,Dse,seq_len,N_params,iters,batch_seqs\n"
    "16,1,1408,3904,11,88,2,352,704,2048,2.15e9,142822,1600\n"
  )
  assert cli.main(["account", str(path), "--json"]) == 0
  (row,) = json.loads(capsys.readouterr().out)
  assert row["N_params"] == 2_150_612_992
  assert row["D_tokens"] == 142822 * 1600 * 2048
  assert row["difference_pct"]["N_params"] == pytest.approx(0.0285, abs=1e-3)
  assert cli.main(["account", str(path)]) == 0
  assert "N params off %" in capsys.readouterr().out


@pytest.mark.parametrize(
  "argv, words",
  [
    (["plan", "--config=nowhere.py"], "no such file"),
    (["account", "nowhere.csv"], "nowhere.csv"),
    (["account", "x.csv", "--convention=papre"], "papre"),
    (["bench", "--only=stepp"], "did you mean 'step'"),
    (["report", "nowhere"], "nowhere"),
    (["evaluate", "nowhere"], "no run folder"),
    (["prepare", "--sauce=x"], "unknown option '--sauce=x'; did you mean '--source'?"),
    (["prepare", "books"], "unexpected argument 'books'; see moe-parity prepare --help"),
    (["--version"], "unknown option '--version'"),
    (["plann"], "COMMAND=plann is not one of plan, account"),
    (["data", "sho"], "did you mean 'show'?"),
    (["data", "show", "x", "--verifi"], "unknown option '--verifi'; did you mean '--verify'?"),
    (["plan"], "--config is missing; see moe-parity plan --help"),
    (["plan", "--confg=x"], "unknown option '--confg=x'; did you mean '--config'?"),
    (["compile"], "--config, --topology are missing"),
    (["plan", "--config=x", "--share=much"], "--share=much is not a number"),
    (["plan", "--config=x", "--share=0.3"], "none is given; add --topology=h100"),
    (["plan", "--config=x", "--share=3", "--topology=l4"], "--share=3 is not above 0 and at most"),
    (["demo", "--workdir=gs://a/b"], "study --config=configs/demo.py --workdir=gs://bucket/name"),
    (["bench", "--only=step", "--results=x"], "step writes no file; of the benchmarks decode"),
    (["bench", "--only=decode", "--results=/dev/null"], "--results=/dev/null cannot be made"),
    (["report", f"{ROOT}/results/demo"], "holds the analysis of 42 runs and none of the runs"),
    (
      ["study", f"--config={ROOT}/configs/demo.py:tiny", "--workdir=w", "--dry-run", "--list-runs"],
      "--dry-run and --list-runs print two different lists",
    ),
    (
      ["study", f"--config={ROOT}/configs/demo.py:tiny", "--workdir=w", "--stale-after=-1"],
      "stale_seconds=-1 is not above 0; 300 is usual",
    ),
    (["study", "--config=x", "--workdir=w", "--run=1.5"], "--run=1.5 is not a whole number"),
    (["study", "--config=x", "--workdir=w", "--dryrun"], "did you mean '--dry-run'?"),
    (["report", "x", "--rescore=some"], "--rescore=some is not one of new, all, none"),
    (["predict", "--runs"], "--runs: expected at least one argument"),
    (["sft", "x", "--data=builtin", "--epochs=1.5"], "--epochs: '1.5' is no list of whole numbers"),
    (["train", f"--config={ROOT}/configs/demo.py:tiny", "--workdir=w"], "choose one of"),
    (
      ["train", f"--config={ROOT}/configs/demo.py:tiny", "--workdir=w", "--arm=mo"],
      "--arm=mo: the plan's arms are dense",
    ),
    (
      ["train", f"--config={ROOT}/configs/demo.py:tiny", "--workdir=w", "--arm=moe_20", "--seed=7"],
      "--seed=7 is no seed of the plan's; choose one of --arm=moe_20 --seed=0\n",
    ),
    (
      ["compile", f"--config={ROOT}/configs/demo.py:tiny", "--topology=v5e-8"],
      "compile takes one arm and the plan has 3; choose one of --arm=dense, --arm=moe_20",
    ),
    (
      ["compile", f"--config={ROOT}/configs/demo.py:tiny", "--topology=v5e-8", "--arm=moe_21"],
      "--arm=moe_21: the plan's arms are dense, moe_20, moe_40; did you mean 'moe_20'?",
    ),
  ],
)
def test_wrong_input_is_one_line_and_exit_two(argv, words, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  assert cli.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_what_follows_test_goes_to_pytest_in_its_order(monkeypatch):
  seen = []
  monkeypatch.setattr(subprocess, "call", lambda command, cwd: seen.append(command[3:]) or 5)
  assert cli.main(["test", "-k", "hours", "tests/test_cli.py", "-q"]) == 5
  assert cli.main(["test", "--lf"]) == 5
  assert seen == [["-k", "hours", "tests/test_cli.py", "-q"], ["--lf"]]


def test_help_teaches_the_question(capsys):
  assert cli.main([]) == 2
  out = capsys.readouterr().out
  assert "moe-parity demo" in out and "N_a / N" in out
  with pytest.raises(SystemExit) as done:
    cli.main(["plan", "--help"])
  assert done.value.code == 0


def test_a_full_disk_is_said_in_one_line_however_deep_it_lies(monkeypatch, capsys):
  def full(args):
    try:
      raise OSError(28, "No space left on device")
    except OSError as error:
      raise RuntimeError("save failed") from error

  monkeypatch.setattr(plan, "run", full)
  assert cli.main(["plan", "--config=x"]) == 2
  assert "the disk is full" in capsys.readouterr().err


def test_a_reader_that_has_enough_gets_no_traceback():
  read, write = os.pipe()
  os.close(read)
  command = [sys.executable, "-m", "moe_parity.cli", "plan", f"--config={ROOT}/configs/demo.py"]
  with os.fdopen(write, "w") as closed:
    done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT)
  assert (done.returncode, done.stderr) == (141, "")


def test_a_header_keeps_the_underscore_of_a_symbol():
  table = of_rows([{"r_a %": 1.5, "num_params": 12_345, "D^": None}])
  assert table.text() == "r_a %  num params  D^\n-----  ----------  --\n  1.5      12,345\n"


def test_numbers_in_tables_read_well():
  assert general(1234567) == "1,234,567"
  assert general(2_150_612_992) == "2.151e+09"
  assert general(0.000123456) == "0.0001235"
  assert general(True) == "True" and general(None) == ""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_says_what_a_command_is_for_and_shows_one(name, capsys):
  with pytest.raises(SystemExit):
    cli.main([name, "--help"])
  assert f"moe-parity {name}" in capsys.readouterr().out.replace("usage: moe-parity", "", 1)
  about = getattr(importlib.import_module(f"moe_parity.commands.{name}"), "ABOUT", "")
  for line in about.splitlines():
    if line.startswith("  moe-parity "):
      args, _ = cli._parser().parse_known_args(line.split()[1:])
      assert args.subcommand == name
