"""Scores of single items, programs that models write, and items in the training text."""

import math

import numpy as np
import pytest

from moe_parity.data.readers import Document
from moe_parity.downstream import contamination, intervals, metrics, sandbox
from moe_parity.downstream.tasks import BenchmarkTask, Item
from moe_parity.errors import UserError


def test_lengths_decide_where_nats_are_divided():
  item = Item("0", ("Q",), (" aa", " éé", " a long one"), gold=1)
  task = BenchmarkTask("t", "own", "choices", "accuracy", 0, (item,))
  nats, tokens = np.array([3.0, 4.0, 5.0]), np.array([2, 1, 10])
  found = metrics.of_choices(task, nats, tokens)
  assert found["accuracy"].tolist() == [0]  # 3 nats are fewest
  assert found["accuracy_per_char"].tolist() == [0]  # 5 / 11
  assert found["accuracy_per_token"].tolist() == [0]  # 5 / 10
  assert metrics.of_choices(task, np.array([3.0, 2.9, 50.0]), tokens)["accuracy"].tolist() == [1]
  assert found["bits_per_byte"][0] == pytest.approx(4 / math.log(2) / 5)
  assert task.chance == pytest.approx(1 / 3) and task.majority == 1.0


@pytest.mark.parametrize(
  "text, number",
  [("So: 1,234.", 1.0), ("1234.0 apples", 1.0), ("it is 12", 0.0), ("", 0.0), ("1234 or 7", 0.0)],
)  # fmt: skip
def test_the_last_number_is_the_answer(text, number):
  assert metrics.exact_number(text, ("1234",)) == number


def test_words_are_compared_without_articles_and_marks():
  assert metrics.exact_match(" The Beatles!\n", ("beatles",)) == 1.0
  assert metrics.f1("a red fox", ("the red dog", "fox red")) == 1.0
  assert metrics.f1("blue", ("red",)) == metrics.f1("", ("red",)) == 0.0
  assert metrics.f1("red dog runs", ("red dog",)) == pytest.approx(0.8)


def test_the_interval_is_that_of_a_mean():
  values = np.random.default_rng(0).normal(2.0, 0.5, 400)
  low, high = intervals.bootstrap(values)
  half = 1.96 * values.std(ddof=1) / 20
  assert low == pytest.approx(values.mean() - half, abs=0.01)
  assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_items_that_score_alike_have_wilsons_interval_or_none():
  low, high = intervals.bootstrap(np.zeros(30))
  assert low == 0 and high == pytest.approx(0.1135, abs=1e-3)
  assert intervals.bootstrap(np.full(30, 2.5)) is None
  assert intervals.against(None, 0.5) == ""
  assert intervals.against([0.1, 0.2], 0.25) == "below"


def test_weights_make_a_ratio_of_sums():
  values, weights = np.array([1.0, 3.0, 2.0]), np.array([1.0, 1.0, 8.0])
  assert intervals.mean(values, weights) == 2.0
  low, high = intervals.bootstrap(values, weights)
  assert 1 <= low < 2 < high <= 3


def test_a_limit_is_a_fixed_part_of_all_items():
  items = tuple(Item(str(i), ("Q",), (" a",)) for i in range(50))
  task = BenchmarkTask("t", "own", "gold", "bits_per_byte", 0, items)
  ten, five = (task.limited(n).items for n in (10, 5))
  assert ten[:5] == five and len(set(ten)) == 10 and ten != items[:10]
  assert task.limited(0) is task and task.limited(50).fingerprint == task.fingerprint
  assert task.limited(10).fingerprint != task.fingerprint


def test_a_program_passes_only_if_it_ends_well():
  assert sandbox.run("x = 1\nassert x == 1")
  assert not sandbox.run("assert False")
  assert not sandbox.run("syntax error here")
  assert sandbox.run("print('much ' * 100_000)")


@pytest.mark.parametrize("leaving", ["sys.exit(0)", "os._exit(0)", "raise SystemExit", "quit()"])
def test_a_program_that_leaves_before_its_tests_has_failed(leaving):
  item = Item("0", ("",), tests="assert False")
  assert not sandbox.passes(item, f"import os, sys\n{leaving}\n")


@pytest.mark.parametrize(
  "program",
  [
    "while True: pass",
    "x = bytearray(2 << 30)",
    "import subprocess; subprocess.run(['true'], check=True)",
    "open('f', 'wb').write(bytes(4 << 20))",
    "open('../f', 'w')",
    "import os; os.remove('/nowhere') if os.fork() else None",
    "import socket; socket.socket()",
    "import os; os.environ['SECRET']",
    "input()",
  ],
)
def test_limits_of_the_sandbox_hold(program, monkeypatch):
  monkeypatch.setenv("SECRET", "1")
  assert not sandbox.run(program, seconds=1)


def test_a_body_gets_its_header_and_a_whole_function_does_not():
  item = Item("0", ("",), header="def f(x):\n", entry="def f(", tests="assert f(2) == 4")
  assert sandbox.passes(item, "  return 2 * x")
  assert sandbox.passes(item, "def f(x):\n  return x + 2")
  assert not sandbox.passes(item, "  return x")


def test_items_in_the_training_text_are_counted(tmp_path):
  """One question stands in the text, one does not, one is too short to tell."""
  words = " ".join(f"word{i}" for i in range(20))
  reads = []

  def documents():
    reads.append(1)
    yield Document(f"before {words} after", "prose", "a book")

  asked = {"t": {"0": words, "1": words[::-1], "2": "short"}, "u": {"0": "other " * 15}}
  found = contamination.count(tmp_path, {"text": "1"}, documents, asked)
  assert contamination.count(tmp_path, {"text": "1"}, documents, asked) == found
  assert len(reads) == 1
  assert (found["t"]["num_contaminated"], found["t"]["num_too_short"]) == (1, 1)
  assert found["t"]["items"] == ["0"] and found["u"]["num_contaminated"] == 0
  assert contamination.without(("0", "1", "2"), found["t"]["items"]) == [1, 2]


def test_a_suite_needs_its_tasks():
  from moe_parity.downstream import catalog

  with pytest.raises(UserError, match="--suite=small needs arc_easy_rc_0shot"):
    catalog.suite("small", {})
