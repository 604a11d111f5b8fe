"""Commands that read a disk say how what is on a bucket comes there."""

import pathlib
import types

import pytest

from moe_parity import cli
from moe_parity.commands import study
from moe_parity.commands.common import copy_command
from moe_parity.defaults import base
from moe_parity.errors import UserError


@pytest.mark.parametrize("command", [
  ["downstream", "--tasks=piqa_rc_0shot"], ["generate", "--prompt=a"], ["report"],
  ["import", "--out=x"],
])  # fmt: skip
def test_a_command_names_what_copies_a_run(command, capsys):
  assert cli.main([command[0], "gs://b/runs/a", *command[1:]]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith(
    "`study` alone works on a bucket; copy it to a disk (gcloud storage cp -r gs://b/runs/a .) and"
    " give the folder there"
  )


@pytest.mark.parametrize("command", ["export", "import"])
def test_no_folder_named_after_a_url_is_written(command, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main([command, "run", "--out=gs://b/out"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: gs://b/out: {command} writes into a folder of this machine")
  assert line.endswith("give one, and copy it when it is done") and not any(tmp_path.iterdir())


def test_each_service_has_its_command():
  assert copy_command("gs://b/a/") == "gcloud storage cp -r gs://b/a ."
  assert copy_command("http://x/y") == "with the tool of that service"


@pytest.mark.parametrize(("workdir", "several", "words"), [
  ("gs://b/s", False, "`moe-parity downstream s --suite=...` on it copied to a disk (gcloud storage"
                      " cp -r gs://b/s .)"),
  (pathlib.Path("a/s"), True, "in one process, `moe-parity downstream a/s --suite=...` on it"),
])  # fmt: skip
def test_a_study_that_cannot_be_examined_says_what_does(workdir, several, words):
  config = base()
  config.downstream.suite = "small"
  with pytest.raises(UserError) as error:
    study._open_exam(types.SimpleNamespace(workdir=workdir), config, several)
  assert str(error.value).endswith(words)
  assert "leave its suite and tasks empty" in str(error.value)
