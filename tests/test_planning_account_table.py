"""A table of shapes in, its costs out: the paper's own columns, unseen rows, and bad cells."""

import csv
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.errors import UserError
from moe_parity.planning.account_table import account_file, account_table, printable

MOE = dict(
  n_layers="24",
  n_dense_layers="1",
  seq_len="2048",
  d_model="2048",
  d_ffn="5464",
  n_heads="16",
  d_head="128",
  E="78",
  K="6",
  De="512",
  Dse="3072",
)
DENSE = dict(
  n_layers="28", seq_len="2048", d_model="2176", d_ffn="8848", n_heads="17", d_head="128"
)


def one(row, convention="paper"):
  return account_table([row], convention)[0]


def write(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  with path.open("w", newline="") as lines:
    writer = csv.DictWriter(lines, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


def test_a_row_nobody_printed_costs_what_the_formulas_say():
  found = one(MOE | {"iters": "1000", "batch_seqs": "640"})
  d, f, s, layers, moe = 2048, 5464, 2048, 24, 23
  params = 4 * d * d * layers + 3 * d * f + 3 * d * (78 * 512 + 3072) * moe
  active = 4 * d * d * layers + 3 * d * f + 3 * d * (6 * 512 + 3072) * moe
  train = 6 * active + 12 * layers * d * s
  tokens = 1000 * 640 * 2048
  assert (found["N_params"], found["Na_params"], found["M_train"]) == (params, active, train)
  assert found["M_forward"] == train / 3 and found["M_flops_per_token"] == train
  assert found["ra_pct"] == pytest.approx(100 * active / params)
  assert found["D_tokens"] == tokens and found["C_flops"] == pytest.approx(train * tokens)
  assert found["D_over_N"] == pytest.approx(tokens / params)
  assert found["lr"] == pytest.approx(1.79734 * params**-0.712922 * tokens**0.307491)
  assert found["batch_seqs"] == pytest.approx(0.580688 * tokens**0.570944 / 2048)
  assert found["mu"] == 21 and found["beta"] == 3 and found["gamma"] == 1
  assert found["zeta"] == pytest.approx(85.333, abs=1e-3)
  assert found["kappa"] == pytest.approx(train / 6 / active)


def test_paper_full_adds_the_router_norms_and_elementwise_work():
  plain, full = one(MOE), one(MOE, "paper_full")
  router, norms = 78 * 2048 * 23, 49 * 2048
  assert full["N_params"] - plain["N_params"] == router + norms
  assert full["M_train"] - plain["M_train"] == 6 * router + 9 * 24 * 16 * 2048 + 45 * 24 * 2048


def test_executed_adds_router_head_and_blocks_of_attention():
  paper, executed = one(MOE), account_table([MOE], "executed", vocab_size=65536)[0]
  d, layers, moe = 2048, 24, 23
  assert executed["N_params"] == paper["N_params"]
  assert paper["N_with_vocabulary"] is None
  assert executed["N_with_vocabulary"] == paper["N_params"] + 2 * 65536 * d
  skipped = 4 * layers * d * (2048 - 512) // 2
  added = 2 * 78 * d * moe + 2 * 65536 * d - skipped
  assert executed["M_forward"] == paper["M_forward"] + added
  own = account_table([MOE | {"vocab_size": "100"}], "executed", vocab_size=7)[0]
  assert own["N_with_vocabulary"] == paper["N_params"] + 200 * d


def test_executed_without_a_vocabulary_is_refused():
  with pytest.raises(UserError, match="row 1, column vocab_size: .*--vocab-size"):
    one(MOE, "executed")


@pytest.mark.parametrize("cells", [{}, {"E": ""}, {"E": "0"}, {"E": "-", "K": "-"}])
def test_a_row_without_experts_is_dense(cells):
  found = one(DENSE | cells)
  assert found["layout"] == "dense" and found["ra_pct"] == 100
  assert found["N_params"] == 2_147_590_144


@pytest.mark.parametrize(
  "cells, layout, moe_layers",
  [
    ({"n_dense_layers": "1"}, "1dense", 23),
    ({"n_dense_layers": "0"}, "full", 24),
    ({"n_dense_layers": ""}, "full", 24),
    ({"scheme": "full+SE"}, "full", 24),
    ({"n_dense_layers": "", "scheme": "interleave+SE"}, "interleave", 12),
    ({"scheme": "1dense+SE"}, "1dense", 23),
    ({"n_dense_layers": "", "layout": "D" * 4 + "M" * 20}, "DDDDMMMMMMMMMMMMMMMMMMMM", 20),
  ],
)
def test_the_layout_comes_from_the_columns_that_are_there(cells, layout, moe_layers):
  found = one(MOE | cells)
  assert found["layout"] == layout and found["n_layers"] - found["n_dense_layers"] == moe_layers


def test_a_missing_head_size_or_count_spans_the_width():
  for column in ("d_head", "n_heads"):
    row = {name: text for name, text in MOE.items() if name != column}
    assert one(row)["N_params"] == one(MOE)["N_params"]


def test_shared_key_heads_and_a_free_head_size_are_counted():
  found = one(MOE | {"n_kv_heads": "4", "d_head": "64"})
  attention = 24 * (2 * 2048 * 16 * 64 + 2 * 2048 * 4 * 64)
  assert one(MOE)["N_params"] - found["N_params"] == 24 * 4 * 2048**2 - attention


def test_tokens_come_from_steps_before_the_printed_figure():
  printed = one(MOE | {"D_tokens": "1.30e11"})
  assert printed["D_tokens"] == 1.30e11 and printed["difference_pct"]["D_tokens"] == 0
  both = one(MOE | {"D_tokens": "1.30e11", "iters": "98816", "batch_seqs": "640"})
  assert both["D_tokens"] == 129_520_107_520
  assert both["difference_pct"]["D_tokens"] == pytest.approx(-0.3692, abs=1e-3)
  assert one(MOE)["C_flops"] is None and one(MOE)["lr"] is None


def test_printed_values_are_set_against_ours():
  found = one(
    MOE
    | {
      "N_params": "6.52e9",
      "ra_pct": "20.03",
      "M_flops_per_token": "3.01e9",
      "M_kind": "forward",
      "D_tokens": "1.3e11",
      "D_unique_tokens": "6.5e10",
      "epochs": "2.00",
    }
  )
  difference = found["difference_pct"]
  assert difference["N_params"] == pytest.approx(100 * (6_513_770_496 / 6.52e9 - 1))
  assert difference["ra_pct"] == pytest.approx(-0.02, abs=0.01)
  assert difference["M_flops_per_token"] == pytest.approx(0.05, abs=0.01)
  assert difference["epochs"] == 0 and found["printed"]["epochs"] == 2
  assert json.loads(json.dumps(found)) == found


def test_printable_rows_are_flat_and_have_no_empty_column():
  rows = printable(account_table([MOE | {"N_params": "6.52e9"}, DENSE], "paper"))
  assert len({tuple(row) for row in rows}) == 1
  assert rows[0]["N_params off %"] == pytest.approx(-0.096, abs=1e-3)
  assert rows[1]["N_params off %"] is None and "C_flops" not in rows[0]
  assert not any(isinstance(value, dict) for row in rows for value in row.values())
  assert printable([]) == []


def test_a_file_is_read_with_its_byte_order_mark_and_blank_lines(tmp_path):
  path = write(tmp_path / "shapes.csv", [MOE, DENSE | dict.fromkeys(MOE, "") | DENSE])
  text = path.read_text()
  path.write_text("\ufeff" + text.replace("\n", "\n\n", 1), encoding="utf-8")
  assert [row["layout"] for row in account_file(path, "paper")] == ["1dense", "dense"]


@pytest.mark.parametrize(
  "cells, column, words",
  [
    ({"K": "79"}, "K", ["K=79", "E=78", "cannot choose more"]),
    ({"n_layers": ""}, "n_layers", ["empty", "give a number"]),
    ({"n_layers": None}, "n_layers", ["missing", "give a number"]),
    ({"d_model": "wide"}, "d_model", ["'wide'", "not a number"]),
    ({"d_model": "2048.5"}, "d_model", ["2048.5", "not a whole number"]),
    ({"d_model": "-2048"}, "d_model", ["-2048", "at least 0"]),
    ({"d_model": "inf"}, "d_model", ["inf", "finite"]),
    ({"d_model": "0"}, "d_model", ["0 is below 1"]),
    ({"De": ""}, "De", ["empty"]),
    ({"d_ffn": ""}, "d_ffn", ["d_ffn=0", "1 dense layer"]),
    ({"n_dense_layers": "24"}, "n_dense_layers", ["no MoE layer", "E=78"]),
    ({"scheme": "2dense"}, "n_dense_layers", ["contradicts '2dense'"]),
    ({"scheme": "1dense+SE", "Dse": "0"}, "Dse", ["shared expert"]),
    ({"layout": "mixed"}, "layout", ["'mixed' is not the name of a layout"]),
    ({"n_kv_heads": "5"}, "n_heads", ["n_heads=16", "n_kv_heads=5"]),
    ({"n_heads": None, "d_head": None}, "n_heads", ["d_head"]),
    ({"n_heads": "17", "d_head": None}, "n_heads", ["17 does not divide d_model=2048"]),
    ({"M_kind": "both"}, "M_kind", ["'both'", "forward or train"]),
    ({"D_tokens": "many"}, "D_tokens", ["'many'"]),
    ({"seq_len": "0"}, "seq_len", ["0 is below 1"]),
    ({"d_ffn": "1e17"}, "d_ffn", ["1e17", "above 2^53"]),
    ({"D_tokens": "1e9", "D_unique_tokens": "0"}, "D_unique_tokens", ["0 unique tokens"]),
  ],
)
def test_a_bad_cell_is_named_by_file_row_column_rule_and_way_out(tmp_path, cells, column, words):
  bad = {name: text for name, text in (MOE | cells).items() if text is not None}
  path = write(tmp_path / "shapes.csv", [bad])
  with pytest.raises(UserError) as error:
    account_file(path, "paper")
  message = str(error.value)
  for word in [f"{path}: row 1, column {column}:", ";", *words]:
    assert word in message
  assert "\n" not in message and "num_" not in message and "experts_per" not in message


def test_the_row_at_fault_is_named_and_not_the_first():
  with pytest.raises(UserError, match="the table: row 3, column K"):
    account_table([MOE, MOE, MOE | {"K": "79"}], "paper")


@pytest.mark.parametrize(
  "text, words",
  [
    ("", "no header"),
    ("n_layers,E\n", "no rows"),
    ("n_layers,E,E\n1,2,2\n", "'E' appears twice"),
    ("n_layers,E\n1,2,3\n", "row 1 .line 2. has 3 cells under 2 columns"),
    ("n_layers,E\n1\n", "has 1 cells"),
    ('n_layers,E\n"1,2\n', "not a CSV file"),
    (b"n_layers\n\xff\xfe\n", "not a CSV file"),
  ],
)
def test_a_broken_file_is_refused(tmp_path, text, words):
  path = tmp_path / "shapes.csv"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError, match=words):
    account_file(path, "paper")


def test_a_missing_file_and_an_unknown_convention_are_refused(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    account_file(tmp_path / "none.csv", "paper")
  with pytest.raises(UserError, match="'papers' is not known; give paper"):
    account_file(tmp_path / "none.csv", "papers")


CELL = st.one_of(
  st.none(),
  st.sampled_from(["", "-", "x", "nan", "-1", "0", "1e400", "7", "3.5"]),
  st.integers(0, 300).map(str),
  st.text("0123456789.eE+-DM x", max_size=5),
)


COLUMN = st.sampled_from(
  [
    *MOE,
    "scheme",
    "layout",
    "iters",
    "batch_seqs",
    "D_tokens",
    "D_unique_tokens",
    "M_kind",
    "n_kv_heads",
    "N_params",
  ]
)


@given(changes=st.dictionaries(COLUMN, CELL, max_size=4))
def test_any_cell_gives_a_cost_or_an_error_a_person_can_read(changes):
  row = {name: text for name, text in (MOE | changes).items() if text is not None}
  try:
    found = one(row)
  except UserError as error:
    assert "row 1, column" in str(error) and ";" in str(error)
  else:
    assert 0 < found["Na_params"] <= found["N_params"]
