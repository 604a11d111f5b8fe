"""The notebooks run top to bottom, and their first cell leaves the kernel's own packages alone."""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest

from tests.helpers import scripts

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = ("jax", "jaxlib", "numpy", "flax", "optax", "scipy", "orbax-checkpoint")
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def colab():
  return scripts.load("launch/colab.py")


@functools.cache
def cells(path):
  return json.loads(path.read_text())["cells"]


def code_of(path):
  return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def test_there_are_six_notebooks():
  assert [path.stem[0] for path in NOTEBOOKS] == list("123456")


@by_notebook
def test_a_notebook_is_committed_without_outputs(path):
  for cell in cells(path):
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None


@by_notebook
def test_badge_and_first_cell_name_one_repository_and_release(path):
  version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
  first = code_of(path)[0]
  repository = re.search(r'^REPOSITORY = "https://github.com/(\S+)"  #@param', first, re.M)[1]
  reference = re.search(r'^REF = "(\S+)"  #@param', first, re.M)[1]
  assert reference == f"v{version}"
  place = f"github/{repository}/blob/{reference}/notebooks/{path.name}"
  assert f"colab.research.google.com/{place})" in "".join(cells(path)[0]["source"])


def test_all_first_cells_are_the_same_but_for_the_engine():
  firsts = {re.sub(r"engine=(True|False|\"tpu\")\)", "engine=)", code_of(p)[0]) for p in NOTEBOOKS}
  assert len(firsts) == 1
  assert all(re.search(r"^TINY = False  #@param", code_of(path)[1], re.M) for path in NOTEBOOKS)


def test_the_kernel_gets_nothing_that_colab_brings(colab):
  command = colab.kernel_command(list(colab.KERNEL.values()))
  assert "--no-deps" in command
  wanted = {name.lower().replace("_", "-") for name in command[command.index("--no-deps") + 1 :]}
  assert not wanted & set(COLAB) and wanted == {"ml-collections", "absl-py", "pyyaml"}
  assert colab.kernel_command([]) == []


def test_the_engine_is_an_environment_of_its_own(colab, tmp_path):
  make, install = colab.engine_commands(ROOT, tmp_path / "engine", "tpu")
  assert make[1] == "venv" and make[-1] == str(tmp_path / "engine")
  assert install[install.index("--python") + 1] == str(tmp_path / "engine" / "bin" / "python")
  assert install[-1] == f"{ROOT}[tpu]"


def test_an_older_jax_in_the_kernel_does_not_compute(colab, monkeypatch):
  assert colab.kernel_can_compute(ROOT)
  old = {"jax": "0.7.2", "flax": "0.11.2"}
  real = colab.importlib.metadata.version
  monkeypatch.setattr(colab.importlib.metadata, "version", lambda n: old.get(n) or real(n))
  assert not colab.kernel_can_compute(ROOT)


def test_a_slider_changes_text_and_without_widgets_it_is_shown(colab, monkeypatch, capsys):
  pytest.importorskip("ipywidgets")
  shown = []
  monkeypatch.setattr("IPython.display.display", shown.append)
  box = colab.sliders(lambda n, kind: f"{n} of {kind}", n=(3, 1, 9), kind=["a", "b"])
  number, kind, text = box.children
  assert text.value == "3 of a"
  number.value = 7
  kind.value = "b"
  assert text.value == "7 of b"
  monkeypatch.setitem(sys.modules, "ipywidgets", None)
  assert colab.sliders(lambda n, kind: f"{n} of {kind}", n=(3, 1, 9), kind=["a"]) is None
  assert "3 of a" in shown[-1].data


def test_what_the_engine_computes_comes_back_and_its_error_too(colab):
  engine = colab.Engine(ROOT, sys.executable)
  assert engine.ask("answer = [mp.__name__, X * 2]", X=21) == ["moe_parity", 42]
  with pytest.raises(RuntimeError, match="ZeroDivisionError"):
    engine.ask("answer = 1 / 0")
  with pytest.raises(RuntimeError, match="no such file"):
    engine.run("plan", "--config=nowhere.py")


def test_a_command_that_fails_is_shown_and_not_passed_over(colab, monkeypatch, tmp_path):
  pytest.importorskip("IPython")
  monkeypatch.chdir(tmp_path)
  cell = types.SimpleNamespace(update=lambda shown: None)
  monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: cell)
  process = colab.Engine(ROOT, sys.executable).start("plan", "--config=nowhere.py")
  with pytest.raises(RuntimeError, match="no such file"):
    colab.watch(process, lambda: "", 0.1)


@pytest.mark.slow
def test_pip_would_change_none_of_colab_s_packages(colab, tmp_path):
  """pip's resolver, asked without installing, in an environment that has none of them."""
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
  command = [
    str(tmp_path / "env" / "bin" / "python"),
    *colab.kernel_command(["ml_collections"])[1:],
  ]
  asked = [*command, "--dry-run", "--report", str(tmp_path / "report.json")]
  subprocess.run(asked, check=True)
  report = json.loads((tmp_path / "report.json").read_text())
  names = [item["metadata"]["name"].replace("_", "-") for item in report["install"]]
  assert names == ["ml-collections"]


@pytest.mark.slow
@by_notebook
def test_a_notebook_runs_top_to_bottom(path, tmp_path):
  """In a folder of its own below a checkout, as small as it goes."""
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  for name in ("launch", "moe_parity", "configs", "results", "pyproject.toml", ".python-version"):
    (tmp_path / name).symlink_to(ROOT / name)
  shutil.copytree(path.parent, tmp_path / "notebooks")
  book = nbformat.read(tmp_path / "notebooks" / path.name, 4)
  for cell in book.cells:
    cell.source = cell.source.replace("TINY = False", "TINY = True")
  where = {"metadata": {"path": str(tmp_path / "notebooks")}}
  nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
