"""What becomes of lm-eval's metrics, against aggregations by hand. Needs no lm-eval."""

import math
import statistics

import numpy as np
import pytest

from moe_parity.downstream import lm_eval_scores, metrics, results
from moe_parity.errors import UserError


def mean(items):
  return sum(items) / len(items)


def f1(pairs):
  """Of the class 1, from (gold, answer)."""
  both = sum(gold == answer == 1 for gold, answer in pairs)
  return 2 * both / max(sum(gold + answer for gold, answer in pairs), 1)


class Task:
  """What is read of a task of lm-eval."""

  OUTPUT_TYPE = "generate_until"

  def __init__(self, aggregations, higher):
    self._aggregations, self._higher = aggregations, higher

  def aggregation(self):
    return self._aggregations

  def higher_is_better(self):
    return self._higher


def scored(rows, aggregations, higher):
  """Scores of items that are given as metric -> value each."""
  samples = [
    {"filter": "none", "doc_id": n, "metrics": list(row)} | row for n, row in enumerate(rows)
  ]
  found = {
    f"{metric},none": aggregate([row[metric] for row in rows if metric in row])
    for metric, aggregate in aggregations.items()
  }
  return lm_eval_scores.of_samples(Task(aggregations, higher), "zoo", samples, found)


def test_only_means_of_items_are_scores_of_items():
  """A mean of errors, which should be small, a median, and a mean."""
  rows = [{"wrong": 0.0, "mid": 1.0, "right": 1}, {"wrong": 0.5, "mid": 2.0, "right": 0},
          {"wrong": 1.0, "mid": 9.0, "right": 0}]  # fmt: skip
  how = {"wrong": mean, "mid": statistics.median, "right": mean}
  found = scored(rows, how, {"wrong": False, "mid": True, "right": True})
  assert set(found.values.by_metric) == {"wrong", "right"} and found.metric == "wrong"
  assert [found.scores[m]["value"] for m in how] == pytest.approx([0.5, 2.0, 1 / 3])
  assert [found.scores[m]["higher_is_better"] for m in how] == [False, True, True]
  assert [found.scores[m]["is_share"] for m in how] == [False, False, True]
  assert found.scores["mid"]["interval"] == [1.0, 9.0] and not found.notes


def test_items_that_all_score_zero_make_no_mean_of_a_median():
  """Two runs have to agree on what a metric is, whatever they score."""
  rows = [{"mid": 0.0, "right": 1.0}, {"mid": 0.0, "right": 0.0}]
  found = scored(rows, {"mid": statistics.median, "right": mean}, {"mid": True, "right": True})
  assert set(found.values.by_metric) == {"right"}
  assert found.scores["mid"]["value"] == 0 and found.scores["mid"]["interval"] is None


def test_a_score_of_all_items_has_an_interval_of_its_own():
  rng = np.random.default_rng(0)
  rows = [{"f1": (int(gold), int(gold ^ (rng.random() < 0.3)))} for gold in rng.random(200) < 0.5]
  found = scored(rows, {"f1": f1}, {"f1": True})
  assert found.metric == "f1" and not found.values.by_metric
  score, wanted = found.scores["f1"], f1([row["f1"] for row in rows])
  assert score["value"] == wanted and not score["is_share"]
  low, high = score["interval"]
  assert low < wanted < high and 0.06 < high - low < 0.2  # about 4 sqrt(p (1 - p) / 200)


def test_a_byte_perplexity_gives_bits_of_every_item_too():
  """Which are compared between arms, as one number of all items is not."""
  rows = [{"byte_perplexity": (-8.0, 4)}, {"byte_perplexity": (-9.0, 12)}]

  def of_bytes(pairs):
    return math.exp(-sum(nats for nats, _ in pairs) / sum(size for _, size in pairs))

  found = scored(rows, {"byte_perplexity": of_bytes}, {"byte_perplexity": False})
  assert found.metric == "bits_per_byte"
  assert found.scores["bits_per_byte"]["value"] == pytest.approx(17 / 16 / math.log(2))
  assert found.scores["byte_perplexity"]["value"] == pytest.approx(math.exp(17 / 16))
  assert not any(score["higher_is_better"] for score in found.scores.values())


def test_a_metric_in_percent_is_held_against_no_chance():
  """100 for a right choice: neither Wilson's interval nor the chance level is of that scale."""
  values = results.Values(("a", "b"), {"acc": np.array([0.0, 100.0]), "rouge1": np.zeros(2)})
  found = results.scores_of(values, {"acc": 0.25, "rouge1": 0.25})
  assert found["acc"]["chance"] is None and found["acc"]["against_chance"] == ""
  assert found["rouge1"]["interval"] is None and found["rouge1"]["chance"] is None
  right = results.scores_of(results.Values(("a", "b"), {"acc": np.ones(2)}), {"acc": 0.25})
  assert right["acc"]["chance"] == 0.25 and right["acc"]["interval"][1] == 1


def test_names_and_values_say_what_is_a_share_of_right_answers():
  half = np.array([0.0, 0.5, 1.0])
  yes = ("acc", "acc_norm", "exact_match (strict-match)", "f1", "em", "correct", "rouge1_acc",
         "pass@1", "prompt_level_strict_acc", "internet_acc", "iter")  # fmt: skip
  no = ("rougeL", "bleu_max", "bleu_diff", "mcc", "brier_score", "word_perplexity", "bits_per_byte",
        "likelihood", "pearson", "ter", "chrf++", "bert_score", "wer (none)")  # fmt: skip
  assert [name for name in yes if not metrics.is_share(name, half)] == []
  assert [name for name in no if metrics.is_share(name, half)] == []
  for value in (1.01, -0.01, np.nan, np.inf):
    assert not metrics.is_share("acc", half, np.array([value]))


def test_a_perplexity_is_lower_whatever_a_task_says():
  task = Task({}, {"perplexity": True, "bits_per_byte": True, "score": None, "wrong": False})
  labels = ["perplexity", "bits_per_byte", "score", "wrong (first)", "other"]
  wanted = {"perplexity", "bits_per_byte", "wrong (first)"}
  assert lm_eval_scores.lower_is_better(task, labels) == wanted


def test_a_direction_that_no_task_states_is_said():
  rows = [{"points": 1.0}, {"points": 4.0}]
  found = scored(rows, {"points": mean}, {"points": None})
  (line,) = found.notes
  assert "zoo does not say which way points is better, so higher is" in line
  assert found.scores["points"]["higher_is_better"]


def test_a_metric_that_some_items_lack_is_of_those_that_have_it():
  rows = [{"right": 1.0, "part": 1.0}, {"right": 0.0}, {"right": 0.0, "part": 0.0}]
  how = {"right": mean, "part": mean}
  found = scored(rows, how, {"right": True, "part": True})
  assert set(found.values.by_metric) == {"right"} and found.scores["part"]["value"] == 0.5


def test_a_score_that_is_no_number_is_named():
  rows = [{"right": 1.0, "odd": 1.0}, {"right": 0.0, "odd": 1.0}]
  how = {"right": mean, "odd": lambda items: math.nan}
  found = scored(rows, how, {"right": True, "odd": True})
  assert found.notes == ["zoo: odd is no number (nan) and is not shown"]
  with pytest.raises(UserError, match=r"zoo has no score that is a number \(odd\); choose a task"):
    scored([{"odd": 1.0}], {"odd": how["odd"]}, {"odd": True})


def test_a_score_without_interval_says_why(monkeypatch):
  """A correlation has no value where all drawn items are alike; a slow one is given up."""
  rows = [{"fit": 1.0}, {"fit": 2.0}]

  def fit(items):
    if len(set(items)) < 2:
      raise ZeroDivisionError
    return 0.5

  found = scored(rows, {"fit": fit}, {"fit": True})
  assert found.scores["fit"]["value"] == 0.5 and found.scores["fit"]["interval"] is None
  assert found.notes == ["zoo: fit has no interval: it fails on drawn items (ZeroDivisionError)"]
  monkeypatch.setattr(lm_eval_scores, "MOST_SECONDS", -1.0)
  found = scored(rows, {"fit": statistics.median}, {"fit": True})
  assert found.notes == ["zoo: fit has no interval: 0 of 200 draws took -1 s"]


class Choosing(Task):
  """A task of choices; where each has a context of its own, `doc_to_text` is the right one."""

  OUTPUT_TYPE = "multiple_choice"

  def __init__(self, multiple_input=0):
    super().__init__({"acc": mean}, {"acc": True})
    self.multiple_input = multiple_input

  def doc_to_choice(self, doc):
    return doc["choices"]

  def doc_to_text(self, doc):
    return doc["place"]


def chosen(target, acc, task, nats=(2.0, 3.0, 5.0)):
  """Scores of one item with three choices."""
  doc = {"choices": ["2", "²", "1"], "place": 1}
  sample = {
    "filter": "none", "doc_id": 0, "metrics": ["acc"], "acc": acc, "doc": doc, "target": target,
    "arguments": [("q", f" {choice}") for choice in doc["choices"]],
    "filtered_resps": [(-n, False) for n in nats],
  }  # fmt: skip
  return lm_eval_scores.of_samples(task, "zoo", [sample], {"acc,none": acc}).scores


@pytest.mark.parametrize(
  ("target", "place", "task"),
  [
    (2, 2, Choosing()),
    ("2", 0, Choosing()),  # the choice that is "2", not the one with this number
    ("1", 2, Choosing()),
    ("²", 1, Choosing()),  # a digit to Python, and no number
    (" the rest", 1, Choosing(multiple_input=3)),  # one text, after each of three contexts
  ],
)
def test_the_right_choice_is_the_one_that_lm_eval_takes(target, place, task):
  found = chosen(target, 1.0, task)
  wanted = (2.0, 3.0, 5.0)[place] / math.log(2) / len(f" {'2²1'[place]}".encode())
  assert found["bits_per_byte"]["value"] == pytest.approx(wanted)
  assert found["acc"]["chance"] == pytest.approx(1 / 3)


def test_several_right_choices_are_guessed_more_often():
  found = chosen([0, 2], 1.0, Choosing())
  assert found["acc"]["chance"] == pytest.approx(2 / 3)
  assert "bits_per_byte" not in found  # of which of them?


def test_a_probability_of_right_choices_has_no_chance_level():
  """A task may call the mass on its right choices accuracy, as TruthfulQA's mc2."""
  assert chosen(0, 0.25, Choosing())["acc"]["chance"] is None
