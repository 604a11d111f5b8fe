"""A colored text shows every token, and nothing of it becomes markup."""

import numpy as np
import pytest

from moe_parity.errors import UserError
from moe_parity.report.routed_text import RoutedText, color

TEXT = RoutedText(
  ("<b>", "\n", "a"),
  np.array([[[2, 0]], [[1, 2]], [[2, 1]]]),
  np.array([[[0.7, 0.2]], [[0.5, 0.4]], [[0.25, 0.125]]]),
  (2,),
  3,
)


def test_rows_and_loads_count_each_choice_once():
  assert [row["expert"] for row in TEXT.rows()] == [2, 0, 1, 2, 2, 1]
  assert TEXT.rows()[4] == {
    "position": 2, "token": "a", "layer": 2, "choice": 1, "expert": 2, "gate": 0.25
  }  # fmt: skip
  assert TEXT.loads().tolist() == [[1 / 6, 2 / 6, 3 / 6]]


def test_a_text_is_escaped_and_its_gates_shown():
  shown = TEXT.html(2)
  assert "<b>" not in shown.replace("<b>Layer 2</b>", "") and "&lt;b&gt;" in shown
  assert 'title="expert 2: 0.250, expert 1: 0.125"' in shown
  assert f"background:{color(2, 3)}" in shown
  with pytest.raises(UserError, match="layer 1 is no MoE layer; they are 2"):
    TEXT.html(1)
