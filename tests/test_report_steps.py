"""Figures and tables of the paper's three steps: what they show is what the files hold."""

import csv
import io
import json
import math
import re
import shutil
import subprocess

import pytest

from moe_parity.errors import UserError
from moe_parity.paper import tables as published
from moe_parity.report import (
  architecture,
  data_reuse,
  figure_style,
  figures,
  page,
  sections,
  sweeps,
)
from moe_parity.study import reading
from tests.helpers import fake_steps, fake_study
from tests.helpers.drawing import draw
from tests.test_report_page import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  fake = fake_study.Fake(rates=(0.17, 0.26, 0.38), telemetry=False)
  folder = fake_study.write_study(tmp_path_factory.mktemp("steps"), fake)
  fake_steps.write_steps(folder)
  page.write_report(folder)
  return folder


def test_the_page_has_sentences_tables_and_figures_of_every_step(folder):
  _, words = read(folder / "report/index.html")
  for step in (fake_steps.architecture(), fake_steps.activation_rate(), fake_steps.data_reuse()):
    for sentence in step["sentences"]:
      assert sentence in words
  assert "left out: E 7, no <shape> at this budget" in words
  assert "runner-up is not distinguishable (not complete)" in words
  assert "moe: the best setting is moe_26_lr2, 0.0030 BPC better than its own" in words
  names = {path.name for path in (folder / "report").iterdir()}
  figures = ("shape_scatter", "sweeps", "fixed_data", "transfer", "reuse_by_scheme", "reuse_decay")
  tables = ("architecture_layout", "architecture_shape", "backbones", "activation_rate", "tuning")
  assert {f"{f}.png" for f in figures} <= names
  assert {f"{t}.{e}" for t in (*tables, "data_reuse") for e in ("csv", "md", "tex")} <= names
  assert (folder / "report/index.html").stat().st_size < 1.5e6


def test_without_a_step_s_file_there_is_no_figure_of_it():
  for drawn in (architecture.shape_scatter, sweeps.panels, sweeps.fixed_data, sweeps.transfer):
    assert drawn({}) is None
  assert data_reuse.by_scheme({}) is None and data_reuse.decay({}) is None


def test_a_damaged_step_file_is_named(tmp_path):
  (tmp_path / "data_reuse.json").write_text("{")
  with pytest.raises(UserError, match="data_reuse.json is not JSON"):
    reading.read_steps(tmp_path)
  (tmp_path / "data_reuse.json").write_text("[]")
  with pytest.raises(UserError, match="not an object"):
    reading.read_steps(tmp_path)


def test_stage_tables_have_the_papers_columns_and_csv_all_digits(folder):
  layout, shape, dense = architecture.stage_tables(fake_steps.architecture())
  heads = [column.header for column in layout.columns]
  for head in ("N", "N_a", "M train", "H", "D_h", "L", "E", "K", "D_e", "D_se", "loss"):
    assert head in heads
  assert {"mu", "zeta", "loss"} <= {column.header for column in shape.columns}
  assert "E" not in {column.header for column in dense.columns}
  rows = list(csv.DictReader(io.StringIO(layout.csv())))
  full = next(row for row in rows if row["label"] == "full")
  assert float(full["simultaneous_low"]) == 0.01 and float(full["loss"]) == 1.93
  assert rows[-1]["loss"] == "" and rows[-1]["verdict"] == "not done"


def test_the_shape_scatter_puts_table_8_at_d_model_over_layers(folder):
  own, other, _ = draw(architecture.shape_scatter(fake_steps.architecture())).axes
  (points,) = other.collections
  first = published.table("table08")[0]  # d 640, 34 layers, mu 51.30, loss 1.694; best 1.674
  assert list(points.get_offsets()[0]) == pytest.approx([640 / 34, 51.30])
  assert points.get_array()[0] == pytest.approx(100 * (1.694 / 1.674 - 1))
  assert first["zeta_printed"] == pytest.approx(640 / 33 + 1, abs=0.01)
  assert len(own.collections[0].get_offsets()) == 4


def test_published_fixed_data_rows_meet_dense_at_equal_tokens():
  two, seven = sweeps.published_fixed_data()
  # Table 9 at 114B: 0.5235 at 8.74 %; dense 2B at 114B: 0.4808. Table 11: 0.4664; dense 7B 0.4594
  assert two[1][0] == pytest.approx(0.0874) and two[2][0] == pytest.approx(0.5235 / 0.4808)
  assert seven[2][-1] == pytest.approx(0.4664 / 0.4594)
  assert len(two[1]) == 5 and len(seven[1]) == 6


def test_fixed_data_shows_only_sweeps_that_held_tokens(folder):
  step = fake_steps.activation_rate()
  (axis,) = draw(sweeps.fixed_data(step)).axes
  (own,) = [line for line in axis.lines if str(line.get_label()).startswith("this study")]
  assert list(own.get_ydata()) == pytest.approx([rate**-0.03 for rate in fake_steps.RATES])
  assert "slope -0.030" in own.get_label()
  compute_only = step | {"sweeps": step["sweeps"][:2]}
  assert sweeps.fixed_data(compute_only) is None
  assert sweeps.panels(step | {"sweeps": step["sweeps"][:1]}) is None


def test_every_optimum_and_the_papers_best_runs_are_inside_axes(folder):
  (axis,) = draw(sweeps.transfer(fake_steps.activation_rate())).axes
  (low, high), (left, right) = axis.get_ylim(), axis.get_xlim()
  assert low < 0.16 and high > 0.35 and left < 1_200_000
  assert low < 0.1883 and right > 3.29e9  # 3B, the best run of Table 16


def test_an_interval_that_misses_its_point_is_drawn_to_the_point(folder):
  step = fake_steps.activation_rate()
  arm = step["sweeps"][0]["arms"][1]
  arm["interval"] = [arm["bpc"] + 1e-6, arm["bpc"] + 0.01]
  assert len(draw(sweeps.panels(step)).axes) == 4  # three sweeps in a grid of two by two
  assert (
    figure_style.bars(2.0, [2.5, 3.0]) == [[0.0], [1.0]] and figure_style.bars(2.0, None) is None
  )


def test_reuse_is_in_percent_of_the_dense_arm_of_its_own_scheme(folder):
  own, other = draw(data_reuse.by_scheme(fake_steps.data_reuse())).axes
  strict = own.lines[0]
  expected = [100 * ((1.9 + 0.05 * math.log(r / 0.25) ** 2) / 1.95 - 1) for r in fake_steps.RATES]
  assert list(strict.get_ydata()) == pytest.approx(expected)
  assert len(other.lines) == 3 and own.get_ylim() == other.get_ylim()


def test_far_larger_differences_get_an_axis_of_their_own():
  step = fake_steps.data_reuse()
  for scheme in step["schemes"]:
    scheme["baseline"]["bpc"] = 2.6
  own, other = draw(data_reuse.by_scheme(step)).axes
  assert own.get_ylim() != other.get_ylim() and own.get_ylim()[0] < -20 < other.get_ylim()[0]
  labels = [text.get_text() for text in own.figure.legends[0].get_texts()]
  assert labels[:3] == ["strict (1.8 to 10 epochs)", "unique (1.8 to 10 epochs)", "4 epochs"]


def test_every_comparison_has_its_figure_tables_and_certificate(tmp_path):
  rates = (0.17, 0.26, 0.38)
  fake_study.write_study(tmp_path, fake_study.Fake(rates=rates, telemetry=False))
  for name, budget in (
    ("unique", {"reuse": "unique", "equal_data": False}),
    # As an earlier version called budget.held_fixed.
    ("fixed_data", {"shared": "tokens", "dense_tokens": 3_000_000}),
    ("epochs_16", {"reuse": "epochs", "epochs": 16.0}),
    ("epochs_4", {"reuse": "epochs", "epochs": 4.0}),
  ):
    fake = fake_study.Fake(rates=rates, telemetry=False, seeds=(0, 1, 2), seed_sd=0.003)
    comparison = fake_study.write_study(tmp_path / "parts" / name, fake)
    plan = json.loads((comparison / "plan.json").read_text())
    plan["budget"] |= budget
    if name == "epochs_4":
      listed = json.loads((comparison / "study.json").read_text())
      for of in (plan, listed):
        of["arms"] = [arm for arm in of["arms"] if not arm["name"].startswith("dense")]
      (comparison / "study.json").write_text(json.dumps(listed))
    (comparison / "plan.json").write_text(json.dumps(plan))
  _, words = read(page.write_report(tmp_path))
  assert "At equal parameters and compute but not equal data, 3 of 3 MoE arms beat dense" in words
  assert "At equal parameters and tokens but not equal compute, 3 of 3 MoE" in words
  assert "3M tokens, whatever that costs" in words and "reuse: 4 epochs." in words
  assert words.index("reuse: 4 epochs.") < words.index("reuse: 16 epochs.")
  assert (
    words.count("Certificate: passed (every check: ") == 4 and "It trains no dense arm" in words
  )
  names = {path.name for path in (tmp_path / "report").iterdir()}
  for comparison in ("unique", "fixed_data", "epochs_4"):
    for made in ("paper_columns", "certificate", "certificates"):
      assert {f"{comparison}_{made}.{ending}" for ending in ("md", "csv", "tex")} <= names
    assert f"{comparison}_activation_rate.svg" in names
  assert "unique_comparisons.csv" in names
  verdict = json.loads((tmp_path / "parts/epochs_4/analysis.json").read_text())["verdict"]
  assert verdict["headline"] == "No verdict: no dense arm is part of this comparison."


def test_arms_of_one_activation_rate_are_not_drawn_over_it(folder):
  report = json.loads((folder / "analysis.json").read_text())
  for group in report["groups"]:
    if group["kind"] == "moe":
      group["activation_rate"] = 0.3
  assert figures.activation_rate(report) is None
  none = dict.fromkeys(reading.STEPS, {})
  (section,) = sections.main_sweep({}, report, none)
  assert "MoE arms of different activation rates" in section.body
  assert sections.main_sweep({}, report, none | {"architecture": {"stages": []}}) == []


@pytest.mark.parametrize(
  "values, low, high", [((1, 8), 4, 8), ((1.9, 1.95), 3, 7), ((2e3, 3e7), 3, 6), ((3, 40), 3, 6)]
)
def test_a_logarithmic_axis_has_a_few_labels_inside_its_range(values, low, high):
  with figure_style.settings():
    _, axis = figure_style.new_figure(5, 3)
    figure_style.log_ticks(axis.xaxis, values)
    ticks = axis.get_xticks()
  assert low <= len(ticks) <= high
  assert values[0] / 1.2 <= ticks[0] and ticks[-1] <= values[1] * 2.3


def chromium(profile, *arguments):
  """What headless Chromium prints; the test is skipped where there is none."""
  browser = shutil.which("chromium") or shutil.which("chromium-browser")
  if not browser:
    pytest.skip("Chromium is not installed")
  fixed = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
  fixed += " --disable-background-networking --disable-component-update"
  command = [browser, *fixed.split(), "--allow-file-access-from-files"]
  command += [f"--user-data-dir={profile}", *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("width, shown, hidden", [(390, "phone", "desk"), (1200, "desk", "phone")])
def test_in_a_browser_the_page_fits_and_every_figure_is_drawn(
  folder, tmp_path, width, shown, hidden
):
  frame = tmp_path / "frame.html"
  frame.write_text(
    f'<iframe id="f" src="{(folder / "report/index.html").as_uri()}" '
    f'style="width:{width}px;height:900px;border:0"></iframe><p id="w"></p><script>'
    "f.onload = () => { const d = f.contentDocument;"
    "const seen = name => [...d.querySelectorAll('img.' + name)].map(i => "
    "[i.offsetWidth, i.naturalWidth, i.offsetLeft + i.offsetWidth]);"
    "w.textContent = '[[' + JSON.stringify({width: d.documentElement.scrollWidth,"
    "desk: seen('desk'), phone: seen('phone')}) + ']]' }</script>"
  )
  printed = chromium(tmp_path, "--virtual-time-budget=8000", "--dump-dom", frame.as_uri())
  found = json.loads(re.search(r"\[(\[\{.*\}\])\]", printed)[1])[0]
  assert width - 20 < found["width"] <= width  # a scroll bar may take 15
  assert len(found["desk"]) == len(found["phone"]) >= 8
  for on_screen, natural, right in found[shown]:
    assert on_screen > 250 and natural > 250 and right <= width
  assert all(on_screen == 0 for on_screen, _, _ in found[hidden])


def test_the_page_prints(folder, tmp_path):
  target = tmp_path / "page.pdf"
  page_ = (folder / "report/index.html").as_uri()
  chromium(tmp_path / "profile", f"--print-to-pdf={target}", "--no-pdf-header-footer", page_)
  content = target.read_bytes()
  pages = len(re.findall(rb"/Type\s*/Page\b", content))
  assert content.startswith(b"%PDF") and 5 <= pages <= 20
