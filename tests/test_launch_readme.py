"""launch/README.md and the help of each launcher: their commands are ones that are taken."""

import pathlib
import re
import shlex

import pytest

from moe_parity import cli
from moe_parity import config as configs
from moe_parity.launch import gke, gpu, slurm, tpu
from moe_parity.launch.__main__ import main
from tests.helpers.fake_gcloud import Cloud
from tests.helpers.fake_programs import Programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "launch/README.md").read_text()


def shown():
  """Commands of the page, of the scripts' heads and of --help that call a launcher."""
  heads = [path.read_text() for path in sorted((ROOT / "launch").glob("*.sh"))]
  text = "\n".join([README, *heads, *(f"`{m.EXAMPLE}`" for m in (gke, gpu, slurm, tpu))])
  text = re.sub(r" *\\\n[ #]*", " ", text)
  found = re.findall(
    r"bash launch/(?!local)(\w+\.sh [^`\n]*)", text.replace("\n--slices", " --slices")
  )
  found = [re.split(r"`|  +#", command)[0].strip() for command in found]
  return sorted({c for c in found if not re.search(r"\.\.\.|--help|\|", c)})


def test_there_is_a_command_for_each_launcher():
  assert {command.split(".")[0] for command in shown()} == {"gpu", "slurm", "gke", "tpu"}
  assert len(shown()) >= 8


@pytest.mark.parametrize("command", shown())
def test_a_command_that_is_shown_is_taken(command, tmp_path, monkeypatch):
  programs = Programs(tmp_path)
  Cloud(programs)
  programs.add("nvidia-smi", "print('0, 580.65.06')")
  programs.add("git", "print('c0ffee')")
  monkeypatch.setenv("PATH", programs.path)
  launcher, *words = shlex.split(command)
  name = launcher.split(".")[0]
  first = [] if name == "gpu" else [words.pop(0)]
  assert main([name, *first, "--dry-run", *words]) == 0
  launched = words[words.index("study") :] if "study" in words else []
  if launched:
    monkeypatch.chdir(ROOT)
    args, overrides = cli._parser().parse_known_args(launched)
    configs.load(args.config, overrides)


def test_the_page_says_that_no_launcher_ran_on_a_cloud():
  assert "No cloud launcher has been run on a cloud" in README


def test_files_that_the_page_names_exist():
  for name in re.findall(r"`(\w+\.(?:sh|yaml))`", README):
    assert (ROOT / "launch" / name).exists(), name


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["gke"], "the following arguments are required: ACTION; see launch/gke.sh --help"),
    (["gke", "delete"], "arguments are required: --name; see launch/gke.sh delete --help"),
    (["tpu", "dwn"], "invalid choice: 'dwn' (choose from "),
    (["slurm", "submit", "--hours=x"], "argument --hours: invalid float value: 'x'; see"),
    (["supervise", "--frob"], "see python -m moe_parity.launch supervise --help"),
  ],
)
def test_a_wrong_option_is_one_line(capsys, words, says):
  assert main(words) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and says in said and said.count("\n") == 1
