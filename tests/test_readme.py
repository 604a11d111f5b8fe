"""What the front page shows is what files say, and what it tells people to type is there."""

import importlib.util
import json
import pathlib
import re

import pytest

from moe_parity import cli
from moe_parity import config as configs

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_every_number_block_of_the_readme_is_the_files_of_results():
  spec = importlib.util.spec_from_file_location("quote", ROOT / "results" / "quote.py")
  quote = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(quote)
  assert "| dense |" in README
  assert quote.quoted(README) == README


def test_files_and_pictures_named_in_the_readme_exist():
  named = re.findall(r"(?:configs|launch|results|moe_parity)/[\w/.]+\.\w+", README)
  assert len(named) > 8
  for name in named:
    assert (ROOT / name).exists(), name


def shown_commands():
  """Every command that the front page, the help, configs and launchers tell people to type."""
  verb = rf"(?:{'|'.join(cli.COMMANDS)})\b"
  files = [*(ROOT / "configs").glob("*.py"), *(ROOT / "launch").glob("*.sh")]
  lines = "\n".join([README, cli.ABOUT, *(path.read_text() for path in files)]).splitlines()
  found = set()
  for line in lines:
    typed = re.findall(rf"(?:moe-parity|launch/\w+\.sh) +({verb}[^`#]*)", line)
    if line.startswith("| `"):
      typed += re.findall(rf"`({verb}[^`]*)`", line)
    for command in typed:
      command = re.sub(r" +-", " -", command.rstrip("\\"))  # `plan  --config=` is one command
      found.add(re.split(r" {2,}", command)[0].strip())
  return sorted(command for command in found if not re.search(r"\.\.\.|--help", command))


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_that_is_shown_is_one_that_the_program_takes(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, overrides = cli._parser().parse_known_args(command.split())
  if "config" in args and args.config is not None:
    configs.load(args.config, overrides)
  else:
    assert not overrides or args.subcommand == "test"


@pytest.mark.parametrize("line", re.findall(r"launch/local\.sh (plan --config.*)", README))
def test_plan_commands_of_the_readme_run(line, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert cli.main(line.split("#")[0].split()) == 0


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_has_no_outputs_and_runs_top_to_bottom(path, monkeypatch):
  monkeypatch.setenv("MPLBACKEND", "Agg")
  monkeypatch.chdir(path.parent)
  names: dict = {}
  for cell in json.loads(path.read_text())["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
      exec("".join(cell["source"]), names)  # noqa: S102 - our own notebook
  assert names["moe"] and names["dense"]
