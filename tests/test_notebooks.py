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

from moe_parity import cli
from moe_parity.commands import train
from moe_parity.commands.train import select_run
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
def test_a_badge_and_a_first_cell_name_no_owner_that_is_made_up(path):
  """No owner is made up: Colab's own page opens, and the first cell asks for the repository."""
  version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
  first, text = code_of(path)[0], "".join(cells(path)[0]["source"])
  assert re.search(r'^REPOSITORY = ""  #@param', first, re.M)
  assert re.search(rf'^REF = "v{version}"  #@param', first, re.M)
  assert "colab-badge.svg)](https://colab.research.google.com/)" in text and "OWNER" not in text
  assert "set `REPOSITORY` in the first cell" in text


@by_notebook
def test_a_release_names_its_repository_in_badge_and_first_cell(colab, path, tmp_path):
  copy = pathlib.Path(shutil.copy(path, tmp_path))
  colab.name_repository(copy, "https://github.com/me/moe_parity.git", "v9.9")
  place = f"github/me/moe_parity/blob/v9.9/notebooks/{path.name}"
  assert f"(https://colab.research.google.com/{place})" in "".join(cells(copy)[0]["source"])
  first = code_of(copy)[0]
  assert 'REPOSITORY = "https://github.com/me/moe_parity.git"  #@param' in first
  assert 'REF = "v9.9"  #@param' in first
  changed = [a != b for a, b in zip(cells(copy), cells(path), strict=True)]
  assert changed == [True, True] + [False] * (len(changed) - 2)
  with pytest.raises(ValueError, match="Colab opens https://github.com"):
    colab.name_repository(copy, "https://example.org/x", "v1")


def git(folder, *words):
  who = ("-c", "user.name=x", "-c", "user.email=x@x")
  subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


@pytest.mark.parametrize("tagged", [True, False])
def test_the_first_cell_fetches_the_repository_that_is_given(tmp_path, monkeypatch, capfd, tagged):
  """At REF where the repository has it, else at its newest state, and says so."""
  source, kernel = tmp_path / "source", tmp_path / "kernel"
  (source / "launch").mkdir(parents=True)
  kernel.mkdir()
  git(source, "init", "--quiet")
  for state in ("released", "newest"):
    (source / "launch/colab.py").write_text(state)
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", state)
    if state == "released" and tagged:
      git(source, "tag", "v0.1.0")
  fetching = code_of(NOTEBOOKS[0])[0].split("sys.path[:0]")[0]
  monkeypatch.chdir(kernel)
  with pytest.raises(ValueError, match="set REPOSITORY, in this cell, to its URL"):
    exec(fetching, {})
  exec(fetching.replace('REPOSITORY = ""', f"REPOSITORY = {str(source)!r}"), {})
  fetched = (kernel / "moe_parity/launch/colab.py").read_text()
  assert fetched == ("released" if tagged else "newest")
  assert ("v0.1.0 is not there" in capfd.readouterr().out) != tagged


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


@pytest.mark.parametrize(
  "old",
  [
    {"jax": "0.7.2", "flax": "0.11.2"},
    {"jax": "0.11.2", "flax": "0.12.9"},  # flax.nnx does not import there
  ],
)
def test_an_older_jax_or_flax_in_the_kernel_computes_nothing(colab, monkeypatch, old):
  assert colab.kernel_can_compute(ROOT)
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


def form_of(number, title, **values):
  """What a notebook's form sets as it stands: no TINY run reads these values."""
  (form,) = [text for text in code_of(NOTEBOOKS[number - 1]) if f"#@title {title}" in text]
  values |= {"ROOT": ROOT}
  exec(form, values)
  return values


def test_the_pair_is_one_run_an_arm_at_full_size_too(capsys, tmp_path, monkeypatch):
  """Its text says that one seed proves nothing: the demo has two, and tunes each of its arms."""
  monkeypatch.chdir(tmp_path)
  command = form_of(2, "What to train")["COMMAND"]
  assert cli.main([*command, "--list-runs"]) == 0
  listed = [line.split() for line in capsys.readouterr().out.splitlines()]
  trained = [words for words in listed if set(words) & {"dense", "moe_20"}]
  assert len(trained) == 2
  assert not any("_lr" in word for words in listed for word in words)


def test_the_run_to_look_into_is_one_of_the_plan(tmp_path, monkeypatch):
  """The demo's arms have two seeds each, of which `train` takes one."""
  asked = []
  engine = types.SimpleNamespace(run=lambda *words: asked.append(words))
  opened = types.SimpleNamespace(open_run=lambda folder: folder)
  form_of(3, "Which run", engine=engine, mp=opened)
  monkeypatch.chdir(tmp_path)
  ((command, *words),) = asked
  chosen = []
  stop = lambda arms, name, seed: chosen.append(select_run(arms, name, seed)) or sys.exit(0)  # noqa: E731
  monkeypatch.setattr(train, "select_run", stop)
  with pytest.raises(SystemExit, match="0"):
    cli.main([command, *words])
  assert [(arm.name, arm.seed) for arm in chosen] == [("moe_20", 0)]


def test_the_step_of_the_pod_is_priced_as_it_stands(capsys):
  """The form's own values, which no TINY run reads."""
  values = form_of(6, "Which step")
  assert cli.main(["compile", *values["OF"], "--search=0", "--json"]) == 0
  priced = json.loads(capsys.readouterr().out)
  reported = json.loads((ROOT / "results/compile_7b_v5p-128.json").read_text())
  assert values["TOPOLOGY"] == reported["topology"] and values["ARM"] == reported["arm"]
  assert reported["mesh"] in [{axis: row[axis] for axis in reported["mesh"]} for row in priced]


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
