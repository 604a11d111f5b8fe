"""The first cell of the notebooks: the kernel looks, an engine environment computes.

Colab's own jax, numpy and flax are older than this package needs, and replacing them breaks its TPU
and GPU. So the kernel gets only what planning and reading lack there, without dependencies, and
training runs in an environment of its own, which is driven by the command line and read through run
folders. Where the kernel's own environment has what training needs (a checkout's .venv in
JupyterLab or VS Code), it is the engine. Standard library only.

  python launch/colab.py https://github.com/you/moe_parity v0.1.0

makes the badges and the first cells of this checkout's notebooks open that repository at that tag.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

# Module -> distribution that planning and reading need in addition to what Colab and Jupyter bring.
KERNEL = {"ml_collections": "ml_collections", "absl": "absl-py", "yaml": "PyYAML"}
LOG = "engine.log"
ENGINE_NEEDS = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def in_colab() -> bool:
  """Whether this kernel is Colab's."""
  return importlib.util.find_spec("google.colab") is not None if _has("google") else False


def _has(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


def kernel_command(missing: list[str]) -> list[str]:
  """Installs what the kernel lacks and nothing that comes with it; [] where it lacks nothing."""
  if not missing:
    return []
  return [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing]


def engine_commands(root: pathlib.Path, folder: pathlib.Path, extra: str) -> list[list[str]]:
  """Makes an environment of its own with this checkout and JAX for an accelerator.

  Args:
    extra: gpu | gpu-cuda12 | tpu | "" for a CPU.
  """
  what = f"{root}[{extra}]" if extra else str(root)
  python = str(folder / "bin" / "python")
  version = (root / ".python-version").read_text().strip()
  uv = [shutil.which("uv") or "uv"]
  make = [*uv, "venv", "--quiet", "--allow-existing", "--python", version, str(folder)]
  constraints = ["-c", str(root / "constraints.txt")]
  return [make, [*uv, "pip", "install", "--quiet", "--python", python, *constraints, "-e", what]]


def accelerator_extra() -> str:
  """The extra of this machine's accelerator."""
  if any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*")):
    return "tpu"
  if not shutil.which("nvidia-smi"):
    return ""
  asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
  driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
  return ("gpu" if int(driver.split(".")[0]) >= 580 else "gpu-cuda12") if driver.strip() else ""


def kernel_can_compute(root: pathlib.Path) -> bool:
  """Whether the kernel's own environment has all that training needs, new enough."""
  text = (root / "pyproject.toml").read_text()
  for name in ENGINE_NEEDS:
    wanted = re.search(rf'"{name}>=([\d.]+)"', text)
    try:
      found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      return False
    if wanted and _numbers(found) < _numbers(wanted[1]):
      return False
  return True


def _numbers(version: str) -> list[int]:
  return [int(part) for part in re.findall(r"\d+", version)[:3]]


def setup(root: pathlib.Path, engine: bool | str = True) -> "Engine | None":
  """Prepares the kernel, and the engine where a notebook computes.

  Args:
    root: of the checkout.
    engine: False for a notebook that only plans and reads; an extra to install whatever the machine
      has, such as "tpu" to compile for slices.
  """
  root = pathlib.Path(root).resolve()
  missing = [name for module, name in KERNEL.items() if not _has(module)]
  if command := kernel_command(missing):
    subprocess.run(command, check=True)
    importlib.invalidate_caches()
  if engine is False:
    return None
  if not in_colab() and kernel_can_compute(root):
    return Engine(root, sys.executable)
  extra = engine if isinstance(engine, str) else accelerator_extra()
  folder = root.parent / f"moe_parity_engine{'_' + extra if extra else ''}"
  if not (folder / "done").exists():
    print(f"making the engine environment {folder} ...")
    if not shutil.which("uv"):
      subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    for command in engine_commands(root, folder, extra):
      subprocess.run(command, check=True)
    (folder / "done").touch()
  return Engine(root, str(folder / "bin" / "python"))


class Engine:
  """The environment that computes: commands of `moe-parity`, and Python with the package."""

  def __init__(self, root: pathlib.Path, python: str):
    self.root, self.python = root, python

  def start(self, *arguments: object) -> subprocess.Popen:
    """Starts `moe-parity ARGUMENTS` in the background; what it prints goes to engine.log."""
    with open(LOG, "a") as log:
      return subprocess.Popen(
        [self.python, "-m", "moe_parity.cli", *map(str, arguments)],
        stdout=log, stderr=subprocess.STDOUT, env=self._environment(),
      )  # fmt: skip

  def run(self, *arguments: object) -> str:
    """Runs `moe-parity ARGUMENTS` to its end; what it printed.

    Raises:
      RuntimeError: it failed; the last lines it wrote.
    """
    return self._finished([self.python, "-m", "moe_parity.cli", *map(str, arguments)])

  def ask(self, code: str, **values: object):
    """Runs Python in the engine, with `mp` imported and the values by name, and returns `answer`.

        engine.ask("answer = mp.open_run(RUN).routing(TEXT).to_dict()", RUN=run, TEXT="Once")

    Args:
      values: what JSON can hold.
    Raises:
      RuntimeError: the code failed.
    """
    lines = [
      "import json, sys",
      "import moe_parity as mp",
      "globals().update(json.loads(sys.argv[1]))",
    ]
    lines += [code, "print('\\n' + json.dumps(answer))"]
    printed = self._finished([self.python, "-c", "\n".join(lines), json.dumps(values, default=str)])
    return json.loads(printed.splitlines()[-1])

  def _finished(self, command: list[str]) -> str:
    done = subprocess.run(
      command, capture_output=True, text=True, env=self._environment(), check=False
    )
    if done.returncode:
      raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-12:]))
    return done.stdout

  def _environment(self) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "MPLBACKEND": "agg"}


def stop(process: subprocess.Popen) -> int:
  """Asks a command to stop, as Ctrl-C does, and waits for it; its exit code."""
  if process.poll() is None:
    process.send_signal(signal.SIGINT)
  return process.wait()


def watch(process: subprocess.Popen, look, seconds: float = 5.0, until=lambda: False) -> None:
  """Shows what `look()` returns, again and again, until a command ends or `until()` holds.

  Args:
    look: gives HTML; called in the kernel.
  Raises:
    RuntimeError: the command failed; the last lines it wrote.
  """
  from IPython.display import HTML, display

  shown = display(HTML("<i>starting ...</i>"), display_id=True)
  while process.poll() is None and not until():
    time.sleep(seconds)
    shown.update(HTML(look()))
  if process.poll():
    raise RuntimeError("\n".join(pathlib.Path(LOG).read_text().splitlines()[-12:]))
  shown.update(HTML(look()))


def sliders(function, **choices):
  """A page of controls above the HTML that `function(**values)` returns.

  Where ipywidgets is missing the HTML for the first values is shown, and the call says how to get
  others.

  Args:
    choices: by argument: (value, low, high) of a slider (whole numbers or not, by the value),
      (value, low, high, "log") of a logarithmic one, or a list to choose from, the first at first.
  """
  from IPython.display import HTML, display

  first = {n: c[0] for n, c in choices.items()}
  try:
    import ipywidgets
  except ImportError:
    display(
      HTML(f"<p><i>No ipywidgets here: call it with other values.</i></p>{function(**first)}")
    )
    return None
  controls = {name: _control(ipywidgets, name, choice) for name, choice in choices.items()}
  shown = ipywidgets.HTML(function(**first))

  def update(_):
    shown.value = function(**{name: control.value for name, control in controls.items()})

  for control in controls.values():
    control.observe(update, names="value")
  box = ipywidgets.VBox([*controls.values(), shown])
  display(box)
  return box


def _control(widgets, name: str, choice):
  style = {"style": {"description_width": "11em"}, "layout": {"width": "34em"}}
  common = {"description": name.replace("_", " "), "continuous_update": False} | style
  if isinstance(choice, list):
    return widgets.Dropdown(
      options=choice, value=choice[0], description=common["description"], **style
    )
  value, low, high, *kind = choice
  if kind:
    import math

    ends = {"min": math.log10(low), "max": math.log10(high)}
    return widgets.FloatLogSlider(
      value=value, base=10, step=0.02, readout_format=".3s", **ends, **common
    )
  if isinstance(value, int):
    return widgets.IntSlider(value=value, min=low, max=high, **common)
  return widgets.FloatSlider(value=value, min=low, max=high, step=(high - low) / 100, **common)


BADGE = r"(?<=colab-badge.svg\)\]\()[^)]*"  # where the badge leads


def name_repository(notebook: pathlib.Path, url: str, ref: str) -> None:
  """Makes a notebook's badge and its first cell open a repository on GitHub.

  Raises:
    ValueError: the URL is none of GitHub, which alone Colab opens by its address.
  """
  owner_and_name = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?", url)
  if not owner_and_name:
    raise ValueError(f"{url}: Colab opens https://github.com/OWNER/NAME; give such a URL")
  there = f"github/{owner_and_name[1]}/blob/{ref}/notebooks/{notebook.name}"
  text = re.sub(BADGE, f"https://colab.research.google.com/{there}", notebook.read_text())
  for name, value in (("REPOSITORY", url), ("REF", ref)):
    text = re.sub(rf'({name} = \\")[^"\\]*(\\"  #@param)', rf"\g<1>{value}\g<2>", text)
  notebook.write_text(text)


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("usage: python launch/colab.py https://github.com/OWNER/NAME TAG")
  for path in sorted(pathlib.Path(__file__).parent.parent.glob("notebooks/*.ipynb")):
    name_repository(path, *sys.argv[1:])
