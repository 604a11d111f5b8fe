"""The first cell of the notebooks in an environment with Colab's versions changes none of them."""

import json
import pathlib
import subprocess
import sys
import tomllib

import pytest

from tests.helpers import scripts

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSIONS = ROOT / "tests/helpers/colab_versions.txt"
pytestmark = pytest.mark.slow


def normal(name: str) -> str:
  return name.lower().replace("_", "-")


def colab_versions() -> dict[str, str]:
  """Package -> version."""
  lines = [line for line in VERSIONS.read_text().splitlines() if not line.startswith("#")]
  return {normal(name): version for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
  """The interpreter of an environment in which pip finds Colab's versions; only their names."""
  folder = tmp_path_factory.mktemp("colab")
  subprocess.run([sys.executable, "-m", "venv", folder], check=True)
  (packages,) = folder.glob("lib/python3.*/site-packages")
  for name, version in colab_versions().items():
    info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("pip\n")
  return folder / "bin/python"


def would_install(python, command, report, *more) -> dict[str, str]:
  """Package -> version of what a pip command would put there, as pip's own resolver says."""
  asked = [str(python), *command[1:], *more, "--dry-run", "--report", str(report)]
  subprocess.run(asked, check=True, capture_output=True, text=True)
  installs = [item["metadata"] for item in json.loads(report.read_text())["install"]]
  return {normal(item["name"]): item["version"] for item in installs}


def test_the_first_cell_changes_none_of_colabs_packages(python, tmp_path):
  """Whatever the kernel lacks, with Colab's versions as constraints and without."""
  colab = scripts.load("launch/colab.py")
  command = colab.kernel_command(list(colab.KERNEL.values()))
  for more in ([], ["--constraint", str(VERSIONS)]):
    assert set(would_install(python, command, tmp_path / "report.json", *more)) == {
      "ml-collections"
    }


def test_a_plain_install_would_replace_colabs_jax_and_flax(python, tmp_path):
  """Why the first cell does not install the package as usual; and that this test would see it."""
  needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
  command = [str(python), "-m", "pip", "install", "--quiet", *needs]
  installs, colabs = would_install(python, command, tmp_path / "report.json"), colab_versions()
  replaced = {name for name in installs if name in colabs}
  assert replaced >= {"jax", "jaxlib", "flax"}
  assert all(installs[name] != colabs[name] for name in replaced)
