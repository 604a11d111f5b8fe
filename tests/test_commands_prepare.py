import json

import pytest

from moe_parity import cli
from moe_parity.commands.common import open_data
from moe_parity.data.corpus import parse_sources
from moe_parity.defaults import base
from moe_parity.errors import UserError
from tests.helpers.small_store import records, write_jsonl


@pytest.fixture
def mixture(tmp_path):
  """Two domains: a file whose records name other domains, and a folder of text."""
  first = write_jsonl(tmp_path / "a.jsonl", records(40))
  (tmp_path / "src").mkdir()
  for number in range(11):
    (tmp_path / "src" / f"{number}.py").write_text(f"print({number})\n" * (number + 2))
  return [f"prose={first}", f"code={tmp_path}/src"]


def test_one_command_makes_a_mixture_store_and_show_lists_it(tmp_path, mixture, capsys):
  store = str(tmp_path / "s")
  arguments = ["--source", *mixture, "--held-out=hash:0.25", f"--store={store}"]
  assert cli.main(["prepare", *arguments, "--json"]) == 0
  made = json.loads(capsys.readouterr().out)
  stages = {row["stage"]: row["megabytes"] for row in made.pop("stages")}
  assert list(stages) == ["read", "tokenize", "write"]
  whole = sum(split["num_bytes"] for split in made["splits"].values())
  assert stages["tokenize"] == whole / 1e6
  assert cli.main(["data", "show", store, "--verify"]) == 0
  lines = capsys.readouterr().out.splitlines()
  train = made["splits"]["train"]
  for domain, totals in train["by_domain"].items():
    (line,) = [line for line in lines if line.split()[:2] == ["train", domain]]
    counts = [totals[f"num_{key}"] for key in ("documents", "bytes", "chars", "tokens")]
    assert line.split()[2:6] == [f"{count:,}" for count in counts]
  assert set(train["by_domain"]) == {"prose", "code"}
  assert f"train stream sha256 {train['sha256']}" in lines
  assert cli.main(["data", "show", store, "--json"]) == 0
  assert json.loads(capsys.readouterr().out) == made


def test_a_store_that_is_there_is_opened_and_has_no_stages(tmp_path, mixture, capsys):
  arguments = ["prepare", "--source", *mixture, f"--store={tmp_path}/s", "--held-out=hash:0.25"]
  assert cli.main(arguments) == 0
  capsys.readouterr()
  assert cli.main([*arguments, "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["stages"] == []


@pytest.mark.parametrize("option", ["--store=other", "--held-out=hash:0.1"])
def test_options_that_a_finished_store_leaves_unused_are_refused(tmp_path, mixture, capsys, option):
  arguments = ["--source", *mixture, f"--store={tmp_path}/s", "--held-out=hash:0.25"]
  assert cli.main(["prepare", *arguments]) == 0
  assert cli.main(["prepare", "--source", f"{tmp_path}/s", "--tokenizer=store"]) == 0
  capsys.readouterr()
  assert cli.main(["prepare", "--source", f"{tmp_path}/s", "--tokenizer=store", option]) == 2
  said = capsys.readouterr().err
  assert f"{option}: {tmp_path}/s is a finished token store" in said and said.count("\n") == 1


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path, mixture, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  arguments = ["--source", *mixture, "--store=~/s", "--held-out=hash:0.25"]
  assert cli.main(["prepare", *arguments]) == 0
  assert (tmp_path / "home/s/manifest.json").is_file() and not (tmp_path / "~").exists()


def test_an_empty_split_and_a_missing_field_say_what_there_is(tmp_path, capsys):
  path = write_jsonl(tmp_path / "a.jsonl", [{"body": "a text", "url": "u"}])
  assert cli.main(["prepare", "--source", path, f"--store={tmp_path}/s"]) == 2
  words = "field 'text' is missing; the record has 'body', 'url': name its text by text_key"
  assert words in capsys.readouterr().err
  arguments = ["--source", path, "--text-key=body", f"--store={tmp_path}/s"]
  assert cli.main(["prepare", *arguments]) == 2
  said = capsys.readouterr().err
  assert "the validation split is empty (of 1 documents, held out by hash:0.01); hold out" in said


def test_a_config_names_all_that_prepare_takes(tmp_path):
  path = tmp_path / "a.jsonl"
  lines = [{"body": f"{i} text", "kind": "xy"[i % 2], "work": f"w{i}"} for i in range(30)]
  write_jsonl(path, lines)
  path.write_text(path.read_text() + "broken\n")
  config = base()
  config.data.source = f"{path},extra={write_jsonl(tmp_path / 'b.jsonl', lines[:3])}"
  config.data.update(text_key="body", domain_key="kind", source_key="work")
  config.data.update(store=str(tmp_path / "s"), held_out="works:w7,w2?", tokenizer="bytes")
  with pytest.raises(UserError, match="raise max_bad_records"):
    open_data(config)
  config.data.max_bad_records = 1
  store = open_data(config)
  assert store.validation.num_documents == 11
  assert store.manifest["bad_records"]["count"] == 1
  assert set(store.train.documents.domains) == {"x", "y", "extra"}
  config.data.update(source=str(tmp_path / "s"), tokenizer="store", store="")
  path.unlink()
  assert open_data(config).train.fingerprint == store.train.fingerprint


@pytest.mark.parametrize("field, value, words", [
  ("held_out", "hash:2", "data.held_out='hash:2' has a share that is not over 0"),
  ("source", "a,,b", "has an empty part"),
  ("source", "nowhere/at/all", "nowhere/at/all does not exist"),
  ("source", "nowhere/*.txt", r"nowhere/\*.txt matches no file"),
  ("max_bad_records", -1, "max_bad_records=-1"),
  ("tokenizer", "store", "tokenizer=store is for a finished store"),
])  # fmt: skip
def test_data_that_a_config_cannot_mean_is_refused_by_name(tmp_path, field, value, words):
  config = base()
  config.data.source = write_jsonl(tmp_path / "a.jsonl", records(9))
  config.data.store = str(tmp_path / "s")
  config.data[field] = value
  with pytest.raises(UserError, match=words):
    open_data(config)
  assert not (tmp_path / "s").exists()


def test_a_store_is_not_mixed_with_text(tmp_path, mixture):
  config = base()
  config.data.source, config.data.store = ",".join(mixture), str(tmp_path / "s")
  config.data.held_out = "hash:0.25"
  open_data(config)
  config.data.source += f",{tmp_path}/s"
  with pytest.raises(UserError, match="is a token store: give it alone"):
    open_data(config)


def test_sources_are_written_with_commas_and_names():
  found = parse_sources("a/b.jsonl, code=src/,./year=2020/x,gs://b/y=1.txt", text_key="body")
  assert [(s.path, s.domain, s.text_key) for s in found] == [
    ("a/b.jsonl", "", "body"),
    ("src/", "code", "body"),
    ("./year=2020/x", "", "body"),
    ("gs://b/y=1.txt", "", "body"),
  ]


def test_documents_without_a_domain_get_their_sources_name(tmp_path):
  (tmp_path / "talks").mkdir()
  for name in ("one", "two", "three"):
    (tmp_path / "talks" / f"{name}.txt").write_text(f"{name} is a text of its own\n")
  config = base()
  for source, domains in (
    ("talks", {"talks"}),
    ("talks/*.txt", {"one", "two", "three"}),
    ("talks/t*.txt", {"two", "three"}),
    ("spoken=talks", {"spoken"}),
  ):
    name, _, path = source.rpartition("=")
    path = tmp_path / path
    config.data.source = f"{name}={path}" if name else str(path)
    config.data.held_out = f"source:{write_jsonl(tmp_path / 'held.jsonl', records(3))}"
    config.data.store = str(tmp_path / f"s-{len(list(tmp_path.iterdir()))}")
    store = open_data(config)
    table = store.train.documents
    assert {table.domains[i] for i in table.domain} == domains


def test_a_key_that_no_evaluation_text_has_is_refused(tmp_path, mixture, capsys):
  arguments = ["--source", *mixture, f"--store={tmp_path}/s", "--held-out=hash:0.25"]
  assert cli.main(["prepare", *arguments]) == 0
  (tmp_path / "questions.txt").write_text("what is it")
  capsys.readouterr()
  asked = ["data", "contamination", f"{tmp_path}/s", "--against", f"{tmp_path}/questions.txt"]
  assert cli.main([*asked, "--text-key=body"]) == 2
  assert "text_key='body': no record of the corpus has it" in capsys.readouterr().err
  assert cli.main(asked) == 0


def test_training_text_is_searched_for_any_evaluation_text(tmp_path, capsys):
  words = [f"word{i}" for i in range(400)]
  texts = [" ".join(words[i : i + 40]) for i in range(0, 400, 40)]
  source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
  held_out = write_jsonl(tmp_path / "b.jsonl", [{"text": "nothing of the kind"}])
  store = str(tmp_path / "s")
  assert cli.main(["prepare", "--source", source, f"--store={store}",
                   f"--held-out=source:{held_out}"]) == 0  # fmt: skip
  copied = f"Copied: {' '.join(words[85:100]).upper()}!"
  questions = write_jsonl(tmp_path / "q.jsonl", [{"q": copied}, {"q": "quite new " * 30}])
  capsys.readouterr()
  command = ["data", "contamination", store, "--json"]
  assert cli.main([*command, "--against", f"exam={questions}", "--text-key=q"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["num_documents"], found["num_contaminated"]) == (2, 1)
  assert set(found["by_domain"]) == {"exam"}
  assert [d["index"] for d in found["documents"]] == [0]
  assert found["documents"][0]["num_shared"] == 3  # of 16 words, 15 of them copied
  assert cli.main(command) == 0
  assert json.loads(capsys.readouterr().out)["num_contaminated"] == 0
