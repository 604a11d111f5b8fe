"""Specialization on the page: the numbers of counted choices, nothing where none were counted."""

import numpy as np
import pytest

from moe_parity import cli
from moe_parity.evaluation import specialization as statistics
from moe_parity.report import specialization
from moe_parity.study import reading
from tests.helpers import fake_study
from tests.helpers.drawing import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two MoE arms; only one has counted choices: its second layer is split by domain."""
  fake = fake_study.Fake(rates=(0.2, 0.4), telemetry=False)
  folder = fake_study.write_study(tmp_path_factory.mktemp("study"), fake)
  rng = np.random.default_rng(1)
  domain = np.arange(20) % 2
  counts = rng.multinomial(300, np.full(6, 1 / 6), (20, 2))
  counts[:, 1] = np.where(np.arange(6) // 3 == domain[:, None], 100, 0)
  pairs = np.full((2, 6, 6), 40)
  choices = statistics.RoutingCounts(("prose", "code"), domain, np.full(20, 150), counts, pairs, 2)
  statistics.save(choices, folder / "runs/moe_20-s0")
  return folder


def test_the_layer_split_by_domain_is_shown_as_all_there_can_be(folder):
  (counted,) = specialization.read(reading.read_study(folder))
  first, second = specialization.table([counted]).rows
  assert counted.run.name == "moe_20" and second["information"] == pytest.approx(np.log(2))
  assert abs(first["share"]) < 0.02 and first["p_value"] > 0.02 and second["p_value"] < 0.01
  (axis,) = draw(specialization.by_layer([counted])).axes
  assert axis.lines[0].get_ydata()[1] == pytest.approx(100 * second["share"])
  fills = [line.get_markerfacecolor() for line in axis.lines[1:3]]
  assert fills[0] == "white" and fills[1] != "white"


def test_the_most_specialized_layer_has_experts_by_domain(folder):
  figure = draw(specialization.experts(specialization.read(reading.read_study(folder))))
  use, together = figure.axes[:2]
  assert use.get_title(loc="left") == "moe_20, MoE layer 2: use by domain"
  image = np.asarray(use.images[0].get_array())
  assert np.array_equal(np.sign(image), [[1] * 3 + [-1] * 3, [-1] * 3 + [1] * 3])
  assert np.asarray(together.images[0].get_array()).shape == (6, 6)


def test_without_counted_choices_there_is_no_figure_and_no_row(tmp_path):
  study = reading.read_study(
    fake_study.write_study(tmp_path, fake_study.Fake(rates=(0.2,), telemetry=False))
  )
  counted = specialization.read(study)
  assert specialization.table(counted).rows == []
  assert specialization.by_layer(counted) is None and specialization.experts(counted) is None


def test_counting_is_refused_where_nothing_routes(tmp_path, capsys):
  fake = fake_study.Fake(rates=(0.2,), telemetry=False, statuses={"moe_20": "failed"})
  folder = fake_study.write_study(tmp_path, fake)
  assert cli.main(["evaluate", str(folder), "--routing"]) == 2
  assert "no finished MoE run" in capsys.readouterr().err
  assert cli.main(["evaluate", str(folder), "--routing", "--mode=packed"]) == 2
