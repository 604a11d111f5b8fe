"""Four spellings of one table agree, and carry what was measured."""

import csv
import io

import pytest

from moe_parity.report import table_formats, tables

REPORT = {
  "arms": [
    {"name": "moe_20 & co_|", "kind": "moe", "role": "arm", "seed": 3, "status": "done",
     "activation_rate": 0.20031, "num_params": 2_150_612_992, "train_flops": 9.383e20,
     "num_tokens": 3.09e11, "epochs": 2.714, "train_cross_entropy": 1.91234, "bpc": 0.487256789,
     "bpb": 0.4861, "macro_bpc": 0.5, "by_domain": {"math": {"bpc": 0.61, "bpb": 0.6}}},
    {"name": "moe_30", "kind": "moe", "role": "arm", "seed": 3, "status": "failed",
     "activation_rate": 0.3, "bpc": None, "by_domain": {}},
  ],
  "comparisons": [
    {"name": "moe_20", "activation_rate": 0.2, "baseline": "dense", "num_seeds": 1,
     "difference": -0.0123456, "interval": [-0.02, -0.004], "simultaneous": None,
     "verdict": "MoE better"},
  ],
  "references": [],
}  # fmt: skip


def test_csv_keeps_full_precision_and_splits_intervals():
  rows = list(csv.DictReader(io.StringIO(tables.arms(REPORT).csv())))
  assert float(rows[0]["bpc"]) == 0.487256789 and rows[0]["name"] == "moe_20 & co_|"
  assert rows[1]["bpc"] == "" and rows[1]["status"] == "failed"
  (row,) = csv.DictReader(io.StringIO(tables.comparisons(REPORT).csv()))
  assert (row["interval_low"], row["interval_high"]) == ("-0.02", "-0.004")
  assert row["simultaneous_low"] == ""


def test_markdown_latex_and_html_show_the_same_cells():
  table = tables.arms(REPORT)
  cells = [c for row in table.cells() for c in row if c and "&" not in c]
  assert "20.03" in cells and "0.4873" in cells and "2.151B" in cells and "9.383e20" in cells
  for text in (table.markdown(), table.latex().replace("\\_", "_"), table.html()):
    for cell in cells:
      assert cell in text


def test_special_characters_are_escaped_in_every_spelling():
  table = tables.arms(REPORT)
  assert "moe_20 & co_\\|" in table.markdown()
  assert "moe\\_20 \\& co\\_|" in table.latex()
  assert "moe_20 &amp; co_|" in table.html()
  widths = {line.count(" | ") for line in table.markdown().splitlines()}
  assert widths == {len(table.columns) - 1}


def test_latex_rows_have_as_many_cells_as_the_header():
  lines = [
    line for line in tables.comparisons(REPORT).latex().splitlines() if line.endswith("\\\\")
  ]
  assert {line.replace("\\&", "").count("&") for line in lines} == {7}
  assert len(lines) == 2


def test_a_minus_is_a_minus_sign_and_in_latex_math():
  assert "\N{MINUS SIGN}0.0123" in tables.comparisons(REPORT).markdown()
  assert "$-$0.0123" in tables.comparisons(REPORT).latex()


def test_seeds_share_a_row_of_shapes_and_not_of_the_plan():
  arms = [
    {"name": "moe", "seed": s, "num_steps": 10 + s, "architecture": {"num_experts": 24}}
    for s in (0, 1)
  ]
  assert [r["num_experts"] for r in tables.shapes(arms).rows] == [24]
  assert [r["num_steps"] for r in tables.plan(arms).rows] == [10, 11]


@pytest.mark.parametrize(
  "value, shown",
  [(999, "999"), (120_000, "120,000"), (3.472e6, "3.472M"), (2.15e9, "2.15B"), (1.3e12, "1.3T")],
)
def test_counts_keep_four_digits(value, shown):
  assert table_formats.count(value) == shown


def test_a_failed_check_is_loud():
  numbers = {"planned": 100, "measured": 104, "difference_pct": 4.0, "tolerance_pct": 0.3}
  part = {"checks": [{"name": "num_params", "passed": False, "how": "arrays", **numbers}]}
  (row,) = tables.certificate("certificate", [("moe", part)]).cells()
  assert row == ["moe", "num_params", "100", "104", "+4.000", "0.3", "NO", "arrays"]
