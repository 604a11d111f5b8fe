"""A notebook in JupyterLab, in a browser: a slider is moved and the text follows."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import types
import urllib.request

import pytest

from tests.helpers.workers import wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytest.importorskip("jupyterlab", reason='pip install -e ".[browser]"')
sync_api = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[browser]"')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CHROMIUM, reason="apt-get install chromium"),
]
PATIENCE = 180_000  # ms; how long things take says who else is on the machine


@contextlib.contextmanager
def lab(folder):
  """The URL of a JupyterLab that serves a folder."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  settings = [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token="]
  settings += [f"--ServerApp.root_dir={folder}", "--no-browser", "--allow-root"]
  log = open(folder / "lab.log", "w")  # noqa: SIM115 - closed below
  process = subprocess.Popen(
    [sys.executable, "-m", "jupyterlab", *settings], stdout=log, stderr=log,
    env=os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config")},
  )  # fmt: skip
  url = f"http://127.0.0.1:{port}"

  def is_up():
    with contextlib.suppress(OSError):
      return urllib.request.urlopen(f"{url}/api", timeout=5).status == 200
    return False

  try:
    wait_until(is_up, process)
    yield url
  finally:
    process.terminate()
    process.wait()
    log.close()


@contextlib.contextmanager
def page_of(url="about:blank"):
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1400, "height": 1600})
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    yield page
    browser.close()


def test_moving_a_slider_changes_the_plan_in_jupyterlab(tmp_path):
  for name in ("launch", "moe_parity", "configs", "results", "pyproject.toml", ".python-version"):
    (tmp_path / name).symlink_to(ROOT / name)
  book = json.loads((ROOT / "notebooks/1_plan.ipynb").read_text())
  for cell in book["cells"]:
    cell["source"] = "".join(cell["source"]).replace("TINY = False", "TINY = True")
  (tmp_path / "1_plan.ipynb").write_text(json.dumps(book))
  with lab(tmp_path) as url, page_of(f"{url}/lab/tree/1_plan.ipynb?reset") as page:
    page.locator(".jp-CodeCell").first.wait_for()  # before, the menu has no entries
    page.get_by_text("(ipykernel) | Idle").wait_for()  # before, it is asked which kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    shown = page.locator(".widget-html-content").first
    shown.wait_for()
    before = shown.inner_text()
    assert "moe" in before and "dense" in before
    page.locator(".noUi-handle").first.press("ArrowRight")
    page.wait_for_function(
      "before => document.querySelector('.widget-html-content').innerText != before", arg=before
    )
    after = shown.inner_text()
  assert "moe" in after and "dense" in after


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated")  # treescope uses it
def test_the_model_of_notebook_3_is_shown_in_a_printed_page():
  """treescope's compressed form waits until it is looked at, and a page that is printed or
  converted showed '(Loading...)'."""
  pytest.importorskip("treescope", reason='pip install -e ".[notebooks]"')
  cells = json.loads((ROOT / "notebooks/3_look_inside.ipynb").read_text())["cells"]
  (cell,) = ["".join(cell["source"]) for cell in cells if "treescope.render" in str(cell["source"])]
  code = cell.split('"""')[1]
  run = types.SimpleNamespace(model=lambda: {"embedding": [1, 2], "head": "DV"})
  values = {"mp": types.SimpleNamespace(open_run=lambda place: run), "RUN": "runs/a"}
  exec(code, values)
  with page_of() as page:
    page.set_content(f'<div style="height: 9000px"></div>{values["answer"]}')
    page.wait_for_function("document.querySelector('treescope-container') !== null")
    page.wait_for_timeout(1000)
    shown = page.evaluate("document.querySelector('treescope-container').shadowRoot.textContent")
  assert "embedding" in shown and "Loading" not in shown
