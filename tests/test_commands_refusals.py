"""Places, options and config files that cannot be meant: one line and exit 2, before any work."""

import os
import pathlib

import pytest

from moe_parity import cli
from moe_parity import config as configs
from moe_parity.data import prepare
from moe_parity.errors import UserError
from moe_parity.evaluation.split_rows import check_rows
from tests.helpers.small_store import small_store

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = f"--config={ROOT}/configs/demo.py:tiny"


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/x"])
@pytest.mark.parametrize("command", ["train", "study"])
def test_a_workdir_that_cannot_be_written_is_one_line(
  command, place, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(prepare, "open_data", lambda *a: pytest.fail("text was read first"))
  (tmp_path / "a-file").write_text("x")
  arguments = [command, CONFIG, f"--workdir={place}"]
  assert cli.main([*arguments, "--arm=dense"] if command == "train" else arguments) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: --workdir={place} cannot be made or written (")
  assert error.count("\n") == 1 and os.listdir(tmp_path) == ["a-file"]


def test_a_study_that_only_prints_makes_no_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "cache"))
  assert cli.main(["study", CONFIG, f"--workdir={tmp_path}/new", "--list-runs"]) == 0
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  "text, words",
  [
    ("x = 1\n", "has no function get_config"),
    ("get_config = 3\n", "has no function get_config"),
    ("def get_config(arg=None):\n  return {}\n", "get_config returns dict, not a config"),
    ("def get_config(arg=None):\n  return 1 / 0\n", "line 2: ZeroDivisionError"),
    ("def get_config(:\n", "line 1: SyntaxError"),
    ("import no_such_module_\n", "line 1: ModuleNotFoundError"),
    (
      "from moe_parity.defaults import base\n\ndef get_config(arg=None):\n  c = base()\n"
      "  c.seed = 1.5\n  return c\n",
      "line 5: TypeError: .*'seed'",
    ),
    (
      "from moe_parity.defaults import dense_arm\n\ndef get_config(arg=None):\n"
      "  return dense_arm(d_modle=3)\n",
      "line 4: KeyError: .*did you mean 'd_model'",
    ),
  ],
  ids=range(8),
)
def test_a_config_file_that_fails_is_one_line_with_its_line(text, words, tmp_path):
  (tmp_path / "c.py").write_text(text)
  with pytest.raises(UserError, match=words) as caught:
    configs.load(str(tmp_path / "c.py"))
  assert "\n" not in str(caught.value) and f"--config={tmp_path}/c.py" in str(caught.value)


def test_a_key_that_a_config_file_invents_is_refused(tmp_path, capsys):
  source = (ROOT / "configs/demo.py").read_text()
  changed = source.replace("  return config", "  config.evaluation.max_token = 5\n  return config")
  (tmp_path / "c.py").write_text(changed)
  assert cli.main(["plan", f"--config={tmp_path}/c.py"]) == 2
  message = "evaluation has no field 'max_token'; did you mean 'max_tokens'?"
  assert capsys.readouterr().err == f"error: {message}\n"


def test_held_out_text_too_short_for_a_row_is_refused_first(tmp_path):
  split, seq_len = small_store(tmp_path).validation, 10**6
  check_rows(split, seq_len, "document")  # needs none
  for asked, words in (
    (dict(mode="packed"), "evaluation.mode='packed' needs"),
    (dict(mode="document", is_validating=True), "train.eval_every needs"),
    (dict(mode="strided", is_moe=True), "the probe of MoE layers needs"),
  ):
    with pytest.raises(UserError, match=f"no row of seq_len=1000000, which {words}"):
      check_rows(split, seq_len, **asked)


def test_a_place_that_no_command_checks_is_one_line(monkeypatch, capsys):
  """A file where `report/` belongs, or --out below a file, ended in a traceback."""
  for error, words in (
    (FileExistsError(17, "File exists", "s/report"), "s/report: File exists"),
    (IsADirectoryError(21, "Is a directory", "a.tmp", None, "a.json"), "a.json: Is a directory"),
    (PermissionError(13, "Permission denied", "a\nb"), r"a\nb: Permission denied"),
  ):

    def fail(args, error=error):
      raise error

    monkeypatch.setattr("moe_parity.commands.doctor.run", fail)
    assert cli.main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {words}; choose another place, or change its permissions\n"


def test_an_error_that_names_a_name_is_one_line(capsys):
  """A newline in a path made two lines, an escape sequence was the terminal's to obey."""
  for name, shown in (("a\nb", r"a\nb"), ("\x1b[2Ja", r"\x1b[2Ja"), ("\udcff", r"\udcff")):
    assert cli.main(["prepare", f"--source={name}/none"]) == 2
    said = capsys.readouterr().err
    assert shown in said and said.count("\n") == 1
