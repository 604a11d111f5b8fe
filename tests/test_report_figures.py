"""What is drawn is what was measured: data are read back from the figures' artists."""

import numpy as np
import pytest

from moe_parity.report import figure_style, figures, routing
from moe_parity.study import reading
from moe_parity.study.analysis import compare
from tests.helpers import fake_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  fake = fake_study.Fake(rates=(0.1, 0.25, 0.5), statuses={"dense_2c": "running"})
  return fake_study.write_study(tmp_path_factory.mktemp("study"), fake)


@pytest.fixture(scope="module")
def report(folder):
  return compare.analyze(folder)


def draw(drawing, width=figure_style.DESK):
  with figure_style.settings():
    return drawing.draw(width)


def test_the_activation_rate_figure_draws_the_numbers(report):
  upper, lower = draw(figures.activation_rate(report)).axes
  moe = [g for g in report["groups"] if g["kind"] == "moe"]
  points = next(line for line in upper.lines if line.get_label() == "MoE arm")
  assert list(points.get_xdata()) == [g["activation_rate"] for g in moe]
  assert list(points.get_ydata()) == [g["bpc"] for g in moe]
  dense = next(line for line in upper.lines if line.get_label() == "dense")
  assert set(dense.get_ydata()) == {
    next(g["bpc"] for g in report["groups"] if g["name"] == "dense")
  }
  bars = [c for c in lower.containers if hasattr(c, "has_yerr")]
  for bar, row in zip(bars, report["comparisons"], strict=True):
    ends = bar.lines[2][0].get_segments()[0]
    assert ends[:, 0] == pytest.approx([row["activation_rate"]] * 2)
    assert ends[:, 1] == pytest.approx(row["simultaneous"])
  assert upper.get_xscale() == "log"


def test_every_line_of_a_dense_control_has_its_own_dashes(report):
  dense = next(g for g in report["groups"] if g["name"] == "dense")
  controls = [dense | {"name": f"small_{i}", "role": "control"} for i in range(4)]
  shown = draw(figures.activation_rate(report | {"groups": [*report["groups"], *controls]})).axes[0]
  lines = [line for line in shown.lines if str(line.get_label()).endswith("(control)")]
  assert len({str(line._dash_pattern) for line in lines}) == len(controls)


def test_an_unbracketed_minimum_is_marked_as_such(report):
  edge = {**report, "curve": {**report["curve"]}}
  edge["curve"]["minimum"] = {**report["curve"]["minimum"], "bracketed": False}
  labels = [line.get_label() for line in draw(figures.activation_rate(edge)).axes[0].lines]
  assert "minimum (not bracketed)" in labels


def test_without_dense_or_curve_the_arms_are_still_drawn(report):
  bare = {**report, "comparisons": [], "curve": None}
  bare["groups"] = [g for g in report["groups"] if g["kind"] == "moe"]
  (axis,) = draw(figures.activation_rate(bare)).axes
  assert [line.get_label() for line in axis.lines] == ["MoE arm"]
  words = [figures.activation_rate(of).caption for of in (report, bare)]
  assert ["Below:" in one for one in words] == [True, False]
  assert figures.activation_rate({**bare, "groups": []}) is None


def test_loss_curves_end_at_the_tokens_and_flops_that_were_spent(folder):
  study = reading.read_study(folder)
  left, right = draw(figures.loss_curves(study)).axes
  runs = [run for run in study.runs]
  assert len(left.lines) == len(runs) == 5  # the running one too, as far as it got
  for run, a, b in zip(runs, left.lines, right.lines, strict=True):
    train, _, _ = reading.read_metrics(run.folder)
    assert a.get_xdata()[-1] == train[-1]["num_tokens"]
    expected = train[-1]["num_tokens"] * run.plan["train_flops_per_token"]
    assert b.get_xdata()[-1] == pytest.approx(expected)


@pytest.mark.parametrize(("lines", "span"), [(350, 7), (150, 5), (24, 3)])
def test_smoothing_averages_two_percent_or_five_lines_so_far(lines, span):
  train = [{"num_tokens": i, "cross_entropy": float(i % 11)} for i in range(lines)]
  tokens, loss = figures._smooth(train)
  assert tokens[-1] == lines - 1 and len(tokens) == min(lines, figures.MAX_POINTS)
  assert loss[0] == 0 and loss[1] == pytest.approx(tokens[1] / 2)
  assert loss[-1] == pytest.approx(np.mean([i % 11 for i in range(lines - span, lines)]))
  assert len(figures._smooth(train * 10)[0]) == figures.MAX_POINTS


def test_expert_loads_are_relative_and_ordered_within_a_layer(tmp_path, folder):
  run = next(r for r in reading.read_study(folder).runs if r.name == "moe_25")
  loads = np.full((40, 2, 4), 0.25, np.float32)
  loads[-1, 1], loads[-2, 1] = [0.0, 0.1, 0.2, 0.7], [0.0, 0.1, 0.2, 0.7]
  np.savez(tmp_path / "routing.npz", steps=np.arange(40), num_tokens=np.arange(40), loads=loads)
  figure = draw(routing.loads([fake_study.dataclasses.replace(run, folder=tmp_path)]))
  final, over_time = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[:2])
  # drawn as log2, cut off at an eighth
  assert 2**final == pytest.approx(np.array([[1, 1, 1, 1], [2.8, 0.8, 0.4, 0.125]]), rel=1e-5)
  assert 2 ** over_time[1, -1] == pytest.approx(2.8) and over_time.shape == (2, 40)


def test_routing_health_leaves_out_dense_runs(folder):
  figure = draw(routing.health(reading.read_study(folder)))
  assert {len(axis.lines) for axis in figure.axes} == {3}
  max_vio = figure.axes[0].lines[0].get_ydata()
  train, _, _ = reading.read_metrics(folder / "runs/moe_10-s0")
  assert max_vio[0] == max(train[0]["max_vio"])
  dense = [r for r in reading.read_study(folder).runs if r.plan["kind"] == "dense"]
  assert routing.loads(dense) is None


def test_phone_and_desk_show_the_same_lines_at_their_own_width(report):
  drawing = figures.activation_rate(report)
  for width in (figure_style.PHONE, figure_style.DESK):
    figure = draw(drawing, width)
    assert figure.get_figwidth() == width
    assert len(figure.axes[0].lines) == len(draw(drawing).axes[0].lines)


def test_no_two_of_many_lines_look_alike():
  assert len(set(figure_style.series(20))) == 20
  assert len({color for color, _ in figure_style.series(8)}) == 8


def test_the_same_study_gives_the_same_svg(report):
  assert figures.activation_rate(report).svg(4.0) == figures.activation_rate(report).svg(4.0)


def test_drawing_leaves_the_settings_of_matplotlib_alone(report):
  import matplotlib

  before = dict(matplotlib.rcParams)
  figures.activation_rate(report).png(3.0, dpi=40)
  assert dict(matplotlib.rcParams) == before
