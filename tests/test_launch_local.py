"""launch/local.sh on machines with uv, with a Python, with an old one, with none."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.helpers.fake_programs import Programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
# `python -m venv F`, `uv venv F` and `pip install --target F uv` leave programs that record calls.
MAKES = """
made = sys.argv[-1] if "venv" in sys.argv and "install" not in sys.argv else ""
if "--target" in sys.argv:
  {pip} or sys.exit(1)
  made = sys.argv[sys.argv.index("--target") + 1]
if made:
  os.makedirs(made + "/bin", exist_ok=True)
  for name in ("python", "moe-parity", "uv"):
    file = made + "/bin/" + name
    os.path.lexists(file) or os.symlink({recorder!r}, file)
if "-c" in sys.argv:
  sys.exit({too_old})
"""


@pytest.fixture
def checkout(tmp_path):
  """A checkout with launch/ and what the environment is made from."""
  root = tmp_path / "checkout"
  shutil.copytree(ROOT / "launch", root / "launch")
  for name in ("pyproject.toml", "constraints.txt", ".python-version"):
    shutil.copy(ROOT / name, root / name)
  return root


@pytest.fixture
def programs(tmp_path):
  return Programs(tmp_path)


def add(programs, name, *, too_old=0, pip=True):
  recorder = str(programs.folder / "recorder")
  programs.add("recorder", MAKES.format(recorder=recorder, too_old=0, pip=True))
  programs.add(name, MAKES.format(recorder=recorder, too_old=too_old, pip=pip))


def local(checkout, programs, *words, **env):
  return subprocess.run(
    ["bash", checkout / "launch/local.sh", *words],
    env={"PATH": programs.path, "HOME": str(checkout), **env},
    cwd=checkout.parent,
    capture_output=True,
    text=True,
  )


def test_with_uv_the_environment_is_made_by_uv_and_once(checkout, programs):
  add(programs, "uv")
  assert local(checkout, programs, "plan", "--config=a b").returncode == 0
  made, installed, started = programs.calls()
  assert made == ["uv", "venv", "--quiet", "--allow-existing", "--python", "3.12", ".venv"]
  assert installed[-2:] == ["-e", ".[test]"] and "constraints.txt" in installed
  assert started == ["moe-parity", "plan", "--config=a b"]
  assert local(checkout, programs, "demo").returncode == 0
  assert programs.calls()[3:] == [["moe-parity", "demo"]]


def test_another_extra_makes_the_environment_again(checkout, programs):
  add(programs, "uv")
  local(checkout, programs, "demo")
  local(checkout, programs, "demo", EXTRA="tpu")
  installed = [call[-1] for call in programs.calls("uv") if "install" in call]
  assert installed == [".[test]", ".[test,tpu]"]


def test_without_uv_a_new_python_makes_a_venv(checkout, programs):
  add(programs, "python3.12")
  assert local(checkout, programs, "demo").returncode == 0
  calls = [call for call in programs.calls() if "-c" not in call[:2]]
  assert calls[0] == ["python3.12", "-m", "venv", ".venv"]
  assert calls[1][:4] == ["python", "-m", "pip", "install"] and calls[1][-1] == ".[test]"


@pytest.mark.parametrize("pip", [True, False])
def test_an_old_python_brings_uv_which_brings_a_new_python(checkout, programs, pip):
  add(programs, "python3", too_old=1, pip=pip)
  done = local(checkout, programs, "demo")
  assert done.returncode == 0, done.stderr
  calls = [call for call in programs.calls() if "-c" not in call[:2]]
  assert calls[0][:4] == ["python3", "-m", "pip", "install"]
  assert calls[0][-3:] == ["--target", ".venv/uv", "uv"]
  if not pip:
    assert calls[1] == ["python3", "-m", "venv", ".venv/uv"]
    assert calls[2][:4] == ["python", "-m", "pip", "install"] and calls[2][-1] == "uv"
  made = calls[1 if pip else 3]
  assert made == ["uv", "venv", "--quiet", "--allow-existing", "--python", "3.12", ".venv"]
  assert calls[-1] == ["moe-parity", "demo"]


def test_with_no_python_at_all_the_way_out_is_one_line(checkout, programs):
  done = local(checkout, programs, "demo")
  assert done.returncode == 2 and "astral.sh/uv/install.sh" in done.stderr
  assert not (checkout / ".venv/stamp").exists()


def test_an_install_that_fails_is_tried_again_next_time(checkout, programs):
  programs.add("uv", "sys.exit('install' in sys.argv)")
  assert local(checkout, programs, "demo").returncode == 1
  add(programs, "uv")
  assert local(checkout, programs, "demo").returncode == 0


def test_a_dry_run_prints_the_commands_and_makes_nothing(checkout, programs):
  add(programs, "python3", too_old=1)
  done = local(checkout, programs, "--dry-run", "plan", "--config=a b")
  assert [call for call in programs.calls() if "-c" not in call[:2]] == []
  assert not (checkout / ".venv").exists()
  lines = done.stdout.splitlines()
  assert "python3 -m pip install" in lines[0] and lines[0].endswith("--target .venv/uv uv")
  assert lines[1].startswith(".venv/uv/bin/uv venv --quiet")
  assert lines[-1] == f"{checkout}/.venv/bin/moe-parity plan --config=a\\ b"


def test_two_workers_that_start_at_once_make_one_environment(checkout, programs):
  recorder = str(programs.folder / "recorder")
  slow = MAKES.format(recorder=recorder, too_old=0, pip=True) + "import time\ntime.sleep(0.3)\n"
  programs.add("recorder")
  programs.add("uv", slow)
  started = [
    subprocess.Popen(
      ["bash", checkout / "launch/local.sh", "demo"],
      env={"PATH": programs.path},
      stderr=subprocess.DEVNULL,
    )
    for _ in range(2)
  ]
  assert [process.wait() for process in started] == [0, 0]
  assert len(programs.calls("uv")) == 2 and len(programs.calls("moe-parity")) == 2


@pytest.mark.parametrize("script", ["local", "gpu", "tpu", "slurm", "gke"])
def test_every_script_has_help_with_an_example(script):
  done = subprocess.run(
    ["bash", ROOT / f"launch/{script}.sh", "--help"], capture_output=True, text=True, check=True
  )
  assert f"bash launch/{script}.sh " in done.stdout


def test_shellcheck_finds_nothing():
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed: apt-get install shellcheck")
  scripts = sorted((ROOT / "launch").glob("*.sh")) + sorted((ROOT / "launch").glob("*.sbatch"))
  done = subprocess.run(
    ["shellcheck", "-x", "-P", ROOT, *scripts], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stdout


def test_launchers_need_the_standard_library_only(tmp_path):
  code = (
    "import sys, pkgutil, importlib, moe_parity.launch as room\n"
    "for found in pkgutil.iter_modules(room.__path__):\n"
    "  found.name == '__main__' or importlib.import_module('moe_parity.launch.' + found.name)\n"
    "ours = {m for m in sys.modules if m.startswith('moe_parity.')}\n"
    "print(*(m for m in ours if not m.startswith(('moe_parity.launch', 'moe_parity.errors'))))\n"
  )
  done = subprocess.run(
    [sys.executable, "-SE", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 0 and done.stdout.strip() == "", done.stderr + done.stdout


def test_launchers_are_written_in_the_python_of_a_tpu_vm():
  import ast

  for file in [*(ROOT / "moe_parity/launch").glob("*.py"), ROOT / "moe_parity/errors.py"]:
    ast.parse(file.read_text(), feature_version=(3, 10))


def test_a_launcher_is_that_of_its_checkout_wherever_it_is_run(tmp_path):
  other = tmp_path / "elsewhere/moe_parity/launch"
  other.mkdir(parents=True)
  (other / "__main__.py").write_text("raise SystemExit('another checkout')")
  for folder in (other, other.parent):
    (folder / "__init__.py").touch()
  done = subprocess.run(
    ["bash", ROOT / "launch/slurm.sh", "submit", "--help"],
    cwd=tmp_path / "elsewhere",
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and "launch/slurm.sh submit" in done.stdout, done.stderr


def test_an_option_of_no_one_is_refused_before_any_set_up(checkout, programs):
  add(programs, "uv")
  done = local(checkout, programs, "--frob", "demo")
  assert done.returncode == 2 and programs.calls() == [] and not (checkout / ".venv").exists()
  assert done.stderr == (
    "error: --frob is no option of local.sh; options of moe-parity stand behind its command\n"
  )
