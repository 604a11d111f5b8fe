"""Published points stand where the printed tables put them; the oracle is the printed digits."""

import pytest

from moe_parity.report import paper_figures, tables
from moe_parity.study import reading
from moe_parity.study.analysis import compare
from tests.helpers import fake_study
from tests.helpers.drawing import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  fake = fake_study.Fake(rates=(0.1, 0.25, 0.5), telemetry=False)
  return fake_study.write_study(tmp_path_factory.mktemp("study"), fake)


def test_published_sweeps_hold_the_digits_of_tables_10_14_and_16():
  two, three = paper_figures.published_sweeps()
  # Table 10 row 7: 0.4857 at 19.94 %, dense 2B 0.4921; M 3.13e9 against 1.44e10
  assert two.rates[6] == pytest.approx(0.1994)
  assert two.excess_pct[6] == pytest.approx(100 * (0.4857 / 0.4921 - 1))
  assert two.compute_ratio[6] == pytest.approx(3.13e9 / 1.44e10)
  assert two.reference_multiple == pytest.approx(1.64 / 0.936)
  # Table 16 row 4: 0.4747 at 18.83 %, dense 3B 0.4833 and 0.4684
  assert three.excess_pct[3] == pytest.approx(100 * (0.4747 / 0.4833 - 1))
  assert three.reference_pct == pytest.approx(100 * (0.4684 / 0.4833 - 1))
  assert (len(two.rates), len(three.rates)) == (12, 9)


def test_a_study_and_the_paper_are_in_percent_of_their_own_dense(folder):
  report = compare.analyze(folder)
  (axis,) = draw(paper_figures.excess_over_dense(report)).axes
  bars = axis.containers
  bits = {g["name"]: g["bpc"] for g in report["groups"]}
  expected = [100 * (bits[n] / bits["dense"] - 1) for n in ("moe_10", "moe_25", "moe_50")]
  assert [bar.lines[0].get_ydata()[0] for bar in bars] == pytest.approx(expected)
  low, high = report["comparisons"][0]["simultaneous"]
  ends = bars[0].lines[2][0].get_segments()[0][:, 1]
  assert ends == pytest.approx([100 * low / bits["dense"], 100 * high / bits["dense"]])
  assert paper_figures.excess_over_dense({**report, "comparisons": []}) is None


def test_the_cost_of_a_token_is_a_ratio_to_the_plans_dense_arm(folder):
  study = reading.read_study(folder)
  (axis,) = draw(paper_figures.compute_ratio(study)).axes
  own = next(line for line in axis.lines if line.get_label() == "this study")
  assert list(own.get_ydata()) == pytest.approx([0.1, 0.25, 0.5])  # fake arms cost 6 r_a N 1.2
  without = [arm for arm in study.plan["arms"] if arm["kind"] == "moe"]
  bare = fake_study.dataclasses.replace(study, plan={"arms": without})
  assert paper_figures.compute_ratio(bare) is None


def test_the_paper_s_columns_join_plan_and_score(folder):
  study, report = reading.read_study(folder), compare.analyze(folder)
  rows = tables.paper_columns(report, study.plan["arms"]).rows
  moe = next(r for r in rows if r["name"] == "moe_25")
  score = next(r["bpc"] for r in report["arms"] if r["name"] == "moe_25")
  assert moe["bpc"] == score and moe["num_experts"] == 24
  assert moe["tokens_per_param"] == moe["num_tokens"] / moe["num_params"]
